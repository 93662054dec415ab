"""Jobs in processes of their own: each is a fresh Python, and none outlives the command."""

import os
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from hwsearch.data.interrupts import deaf_to_interrupts
from hwsearch.errors import UserError
from hwsearch.process.interrupts import checkpoint

Result = TypeVar("Result")

LOOK_SECONDS = 0.1
"""How often one who waits for a job looks for a signal."""

LEAVE_SECONDS = 3.0
"""How long jobs that are under way may go on where the rest is given up."""


def in_processes(work: Callable[..., Result], jobs: Sequence[tuple[Any, ...]], processes: int, ended: str) -> Generator[Result]:
    """Call `work` with each job's arguments, and give each result as soon as it is there, in any order.

    Whoever stops early closes the iterator: jobs that have not begun are dropped, and those that take long are ended.

    Args:
        work: a function of a module.
        jobs: their arguments.
        processes: how many work at once at most.
        ended: the error where a process ends before its job does.

    Raises:
        UserError: `ended`.
    """
    finished: SimpleQueue[Future[Result]] = SimpleQueue()
    with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=get_context("spawn"), initializer=_end_with_parent) as pool:
        try:
            with deaf_to_interrupts():
                for job in jobs:
                    pool.submit(work, *job).add_done_callback(finished.put)
            for _ in jobs:
                yield _next(finished).result()
        except BrokenProcessPool:
            checkpoint()  # whoever sends SIGTERM may send it to all
            raise UserError(ended) from None
        finally:
            late = threading.Timer(LEAVE_SECONDS, _end_children)
            late.start()
            pool.shutdown(wait=True, cancel_futures=True)
            late.cancel()


def _next(finished: "SimpleQueue[Future[Result]]") -> "Future[Result]":
    while True:
        checkpoint()
        try:
            return finished.get(timeout=LOOK_SECONDS)
        except Empty:
            continue


def _end_children() -> None:
    for child in active_children():
        child.terminate()


def _end_with_parent() -> None:
    """In a process of the pool: end when the one that started it has been killed."""

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
