"""One metric over many utterances: the values, and by name the utterances that have none."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from hwsearch.metrics.errors import MetricUnavailable

Utterance = TypeVar("Utterance")


@dataclass(frozen=True)
class Scores:
    """The values by utterance id, and by id why the other utterances have none."""

    values: Mapping[str, float]
    unavailable: Mapping[str, str]


def score_each(utterances: Iterable[tuple[str, Utterance]], metric: Callable[[Utterance], float]) -> Scores:
    """Apply `metric` to each (id, utterance); one raising `MetricUnavailable` is listed with its reason.

    Raises:
        ValueError: two utterances share an id: one of them would vanish from the count.
    """
    values: dict[str, float] = {}
    unavailable: dict[str, str] = {}
    for identifier, utterance in utterances:
        if identifier in values or identifier in unavailable:
            raise ValueError(f"two utterances are called {identifier}")
        try:
            values[identifier] = metric(utterance)
        except MetricUnavailable as reason:
            unavailable[identifier] = str(reason)
    return Scores(values, unavailable)
