"""A sampler that draws each width at random, and never learns."""

from collections.abc import Mapping

import numpy as np

from hwsearch.search.proposer import Candidate, Proposal, Proposer, Result
from hwsearch.search.samplers.sampler import Searched


class Dice:
    def __init__(self, searched: Searched) -> None:
        self._options = [len(widths) for _, widths in searched.space.free]
        self._seed = searched.experiment.seed
        self._heard = 0
        self._repeats = 0

    def started(self, reference: Mapping[str, float]) -> None:
        """The full-precision network is scored."""

    def ask(self) -> Proposal:
        draw = np.random.default_rng([self._seed, self._heard, self._repeats])
        self._repeats += 1
        return Proposal(tuple(int(draw.integers(options)) for options in self._options), "dice")

    def asked(self, candidate: Candidate) -> None:
        self._heard, self._repeats = self._heard + 1, 0

    def tell(self, result: Result) -> None:
        """A candidate is scored, or failed."""


def make(searched: Searched) -> Proposer:
    return Dice(searched)
