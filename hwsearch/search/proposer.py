"""Proposers of candidates: their protocol, and the seeds that come first."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from hwsearch.search.space import Point, Seed


@dataclass(frozen=True)
class Proposal:
    """A point of the space that a strategy would like to see scored."""

    point: Point
    strategy: str
    state: Mapping[str, Any] = field(default_factory=dict)
    """JSON that the proposer gets back in `asked`: when the proposal is accepted, and each time the record is replayed."""


@dataclass(frozen=True)
class Candidate:
    """A proposal that was accepted and written to the record under a number."""

    number: int
    point: Point
    strategy: str
    state: Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """The result of a candidate."""

    candidate: Candidate
    metrics: Mapping[str, float] | None
    """None if it could not be scored."""
    costs: Mapping[str, float | None]


class Proposer(Protocol):
    """A search strategy.

    Every proposer of a search hears of every candidate, whoever proposed it, in the order of the record. A resumed search
    replays `asked` and `tell` from the record, but never `ask`. So what `ask` returns may depend only on three things: the
    candidates and results that the proposer has heard of, the seed, and the number of calls of `ask` since the last candidate.
    Then a resumed search proposes the same candidates as an uninterrupted one.
    """

    def started(self, reference: Mapping[str, float]) -> None:
        """Hear the metrics of the full-precision network. `ask` may be called before this."""
        ...

    def ask(self) -> Proposal | None:
        """Return the next proposal; None if this proposer has no more.

        It returns one at a time: a strategy that works in batches keeps a queue. A proposal that repeats a candidate is refused,
        and the proposer is asked again.
        """
        ...

    def asked(self, candidate: Candidate) -> None:
        """Hear that a candidate was accepted and is being scored."""
        ...

    def tell(self, result: Result) -> None:
        """Hear that a candidate was scored or has failed."""
        ...


class SeedProposer:
    """Proposes a list of seeds, each once, and then no more."""

    def __init__(self, seeds: Iterable[Seed]) -> None:
        self._waiting = deque(seeds)

    def started(self, reference: Mapping[str, float]) -> None:
        """Do nothing: seeds do not depend on the metrics."""

    def ask(self) -> Proposal | None:
        """Return the next seed that is no candidate yet."""
        return Proposal(self._waiting[0].point, self._waiting[0].strategy) if self._waiting else None

    def asked(self, candidate: Candidate) -> None:
        """Strike the candidate off the list."""
        self._waiting = deque(seed for seed in self._waiting if seed.point != candidate.point)

    def tell(self, result: Result) -> None:
        """Do nothing: seeds do not depend on results."""


@dataclass(frozen=True)
class Plan:
    """The seeds, and the proposer that follows them; None if the strategy consists of seeds only.

    In that case there are no more seeds than trials, unless the first seeds of the strategy are more already.
    """

    seeds: tuple[Seed, ...]
    proposer: Proposer | None = None
