"""Proposers of candidates: their protocol, the seeds that come first, and the next proposal of several proposers."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Protocol

import numpy as np

from hwsearch.search.space import Point, SearchSpace, Seed

ASKS_BEFORE_MUTATION = 8
"""After this many proposals that repeat candidates, the last one is mutated."""

MUTATIONS = 100
"""After this many mutations that lead to known points, the space counts as nearly full."""


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
        self._waiting: dict[Point, str] = {}
        for seed in seeds:
            self._waiting.setdefault(seed.point, seed.strategy)

    def started(self, reference: Mapping[str, float]) -> None:
        """Do nothing: seeds do not depend on the metrics."""

    def ask(self) -> Proposal | None:
        """Return the next seed that is no candidate yet."""
        return next((Proposal(*seed) for seed in self._waiting.items()), None)

    def asked(self, candidate: Candidate) -> None:
        """Strike the candidate off the list."""
        self._waiting.pop(candidate.point, None)

    def tell(self, result: Result) -> None:
        """Do nothing: seeds do not depend on results."""


@dataclass(frozen=True)
class Plan:
    """The seeds, and the proposer that follows them; None if the strategy consists of seeds only.

    In that case there are no more seeds than trials, unless the first seeds of the strategy are more already.
    """

    seeds: tuple[Seed, ...]
    proposer: Proposer | None = None


def new_proposal(
    proposers: Sequence[Proposer], known: Set[Point], space: SearchSpace, rng: np.random.Generator
) -> Proposal | None:
    """Return the proposal of the first proposer that has one, mutated if it repeats a candidate; None if none has one.

    Its point is canonical. `known` are the points of all candidates.
    """
    for proposer in proposers:
        proposal = proposer.ask()
        asks = 1
        while proposal is not None and space.canonical(proposal.point) in known and asks < ASKS_BEFORE_MUTATION:
            proposal = proposer.ask()
            asks += 1
        if proposal is None:
            continue
        if space.canonical(proposal.point) in known:
            point = unknown_neighbour(proposal.point, space, known, rng)
            return None if point is None else Proposal(point, f"{proposal.strategy}-mutated", proposal.state)
        return replace(proposal, point=space.canonical(proposal.point))
    return None


def unknown_neighbour(point: Point, space: SearchSpace, known: Set[Point], rng: np.random.Generator) -> Point | None:
    """Return an unknown canonical point near `point`, found by a random walk that changes one variable at a time.

    In a nearly full space, where the walk meets known points only, the first unknown point in lexical order is taken; None if
    there is none.
    """
    shape = space.shape
    walk = list(point)
    for _ in range(MUTATIONS):
        place = int(rng.integers(len(shape)))
        walk[place] = (walk[place] + int(rng.integers(1, shape[place]))) % shape[place]
        if (found := space.canonical(tuple(walk))) not in known:
            return found
    every = (space.canonical(each) for each in product(*map(range, shape)))
    return next((each for each in every if each not in known), None)
