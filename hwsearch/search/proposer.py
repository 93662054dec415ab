"""Who proposes candidates: the protocol of search strategies, and the seeds that come before any of them."""

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
    """JSON that the proposer gets back in `asked`, now and whenever the record is replayed."""


@dataclass(frozen=True)
class Candidate:
    """A proposal that was accepted and written to the record under a number."""

    number: int
    point: Point
    strategy: str
    state: Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """What became of a candidate."""

    candidate: Candidate
    metrics: Mapping[str, float] | None
    """None if it could not be scored."""
    costs: Mapping[str, float | None]


class Proposer(Protocol):
    """A search strategy.

    Every proposer of a search hears of every candidate, whoever proposed it, in the order of the record. A
    resumed search replays `asked` and `tell` from the record and never `ask`, so what `ask` returns may
    depend only on the candidates and results heard of, on the seed, and on how often it was asked since the
    last candidate. Then a resumed search proposes what the undisturbed one would have proposed.
    """

    def started(self, reference: Mapping[str, float]) -> None:
        """The full-precision network has these metrics. Workers may be asked for candidates before that is known."""
        ...

    def ask(self) -> Proposal | None:
        """The next proposal, given what is known; None if this proposer has no more.

        One at a time: a strategy that thinks in batches keeps a queue. A proposal that repeats a candidate is
        refused, and the proposer is asked again.
        """
        ...

    def asked(self, candidate: Candidate) -> None:
        """A candidate was accepted and is being scored."""
        ...

    def tell(self, result: Result) -> None:
        """A candidate was scored or has failed."""
        ...


class SeedProposer:
    """Proposes a list of seeds, each once, and then no more."""

    def __init__(self, seeds: Iterable[Seed]) -> None:
        self._waiting = deque(seeds)

    def started(self, reference: Mapping[str, float]) -> None:
        """Seeds are what they are."""

    def ask(self) -> Proposal | None:
        """The next seed that is no candidate yet."""
        return Proposal(self._waiting[0].point, self._waiting[0].strategy) if self._waiting else None

    def asked(self, candidate: Candidate) -> None:
        """Strike the candidate off the list."""
        self._waiting = deque(seed for seed in self._waiting if seed.point != candidate.point)

    def tell(self, result: Result) -> None:
        """Results change nothing."""


@dataclass(frozen=True)
class Plan:
    """Seeds, and who proposes behind them; None where the strategy is the seeds alone.

    Then there are no more seeds than trials, but for those that are scored in any case.
    """

    seeds: tuple[Seed, ...]
    proposer: Proposer | None = None
