"""The posterior engine as a proposer of the driver.

Where many candidates are being scored, several are proposed at once: one more result would have changed little, and solving the
problem anew for each would take longer than a thousand workers can wait. Those behind the first are written to the record with
it, as its state, so that a resumed search proposes them too.
"""

from collections import deque
from collections.abc import Mapping

import numpy as np

from hwsearch.search.objectives import QUALITY
from hwsearch.search.posterior.engine import PosteriorEngine
from hwsearch.search.proposer import Candidate, Proposal, Result
from hwsearch.search.space import Point

STRATEGY = "prior-corrected"

RUNNING_PER_PROPOSAL = 32
"""Candidates being scored for each that is proposed at once: 31 at once for a thousand workers, one for fewer than 64."""

_BEHIND = "behind"
"""Key of a candidate's state: the points that were proposed together with it, the next one first."""


class PosteriorProposer:
    """Proposes what the engine thinks best; its draws are seeded by their place in the search, so that a resume repeats them."""

    def __init__(self, engine: PosteriorEngine, seed: int) -> None:
        self._engine = engine
        self._seed = seed
        self._heard = 0
        self._repeats = 0
        self._behind: deque[Point] = deque()

    def started(self, reference: Mapping[str, float]) -> None:
        """Losses are counted from the full-precision network's quality."""
        self._engine.refer(reference[QUALITY])

    def ask(self) -> Proposal | None:
        """Propose what was found together with an earlier candidate, or find anew."""
        if self._behind:
            return Proposal(self._behind[0], STRATEGY)
        count = max(1, self._engine.running // RUNNING_PER_PROPOSAL)
        points = self._engine.propose_several(count, np.random.default_rng([self._seed, self._heard, self._repeats]))
        self._repeats += 1
        if not points:
            return None
        return Proposal(points[0], STRATEGY, {_BEHIND: points[1:]} if len(points) > 1 else {})

    def asked(self, candidate: Candidate) -> None:
        """Count the candidate as being scored, and strike it off what waits to be proposed."""
        self._behind = deque(
            point for point in map(tuple, candidate.state.get(_BEHIND, self._behind)) if point != candidate.point
        )
        self._engine.start(candidate.point)
        self._heard += 1
        self._repeats = 0

    def tell(self, result: Result) -> None:
        """Learn from a candidate."""
        quality = None if result.metrics is None else result.metrics[QUALITY]
        self._engine.finish(result.candidate.point, quality)
