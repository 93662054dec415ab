"""The posterior engine as a proposer of the driver."""

from collections.abc import Mapping

import numpy as np

from hwsearch.search.objectives import QUALITY
from hwsearch.search.posterior.engine import PosteriorEngine
from hwsearch.search.proposer import Candidate, Proposal, Result

STRATEGY = "prior-corrected"


class PosteriorProposer:
    """Proposes what the engine thinks best; its draws are seeded by their place in the search, so that a resume repeats them."""

    def __init__(self, engine: PosteriorEngine, seed: int) -> None:
        self._engine = engine
        self._seed = seed
        self._heard = 0
        self._repeats = 0

    def started(self, reference: Mapping[str, float]) -> None:
        """Losses are counted from the full-precision network's quality."""
        self._engine.refer(reference[QUALITY])

    def ask(self) -> Proposal | None:
        """Propose."""
        point = self._engine.propose(np.random.default_rng([self._seed, self._heard, self._repeats]))
        self._repeats += 1
        return None if point is None else Proposal(point, STRATEGY)

    def asked(self, candidate: Candidate) -> None:
        """Count the candidate as being scored."""
        self._engine.start(candidate.point)
        self._heard += 1
        self._repeats = 0

    def tell(self, result: Result) -> None:
        """Learn from a candidate."""
        quality = None if result.metrics is None else result.metrics[QUALITY]
        self._engine.finish(result.candidate.point, quality)
