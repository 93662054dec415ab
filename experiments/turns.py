"""Timing of calls that take turns, so that what slows the machine for a while slows all of them."""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


def in_turns(calls: Mapping[Name, Callable[[], object]], rounds: int) -> dict[Name, list[float]]:
    """Time every call once a round, after two rounds that count nothing. Each round begins with the next call.

    Returns:
        Seconds of each round on the clock of this thread, `[rounds]`, by the name of the call.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for number in range(-2, rounds):
        turn = number % len(order)
        for name in order[turn:] + order[:turn]:
            begun = time.thread_time()
            calls[name]()
            taken = time.thread_time() - begun
            if number >= 0:
                seconds[name].append(taken)
    return seconds
