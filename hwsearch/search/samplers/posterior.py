"""The posterior sampler: solves the allocation problem again under sensitivities that every scored candidate corrects.

Where many candidates are being scored, it proposes several at once: one more result would change little, and a thousand workers
cannot wait for a new solution each. The record keeps those behind the first as the state of the first, so that a resumed search
proposes them too.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from hwsearch.errors import UserError
from hwsearch.experiment import Split
from hwsearch.extensions import QUALITY_METRICS
from hwsearch.search.costs import CostBook
from hwsearch.search.exact.layout import Layout
from hwsearch.search.objectives import QUALITY
from hwsearch.search.posterior.engine import PosteriorEngine
from hwsearch.search.posterior.model import PriorSpread
from hwsearch.search.priors import loss_prior, no_prior, with_structure
from hwsearch.search.proposer import Candidate, Proposal, Proposer, Result
from hwsearch.search.samplers.sampler import Searched
from hwsearch.search.space import Point, SearchSpace
from hwsearch.sensitivity.table import SensitivityTable

STRATEGY = "prior-corrected"

RUNNING_PER_PROPOSAL = 32
"""Candidates being scored for each proposal made at once: a thousand workers get 31 at once, fewer than 64 get one."""

_BEHIND = "behind"
"""Key of a candidate's state: the points that were proposed together with it, the next one first."""

_RANKING_SPREAD = PriorSpread(common=2.0)
"""The spread of a prior that only ranks. It is wide, because the scale of such a prior is a guess."""


def make(searched: Searched) -> Proposer:
    """Start from the sensitivities of `search.priors`.

    Raises:
        UserError: there are none, or an objective or limit is no cost.
    """
    experiment, search = searched.experiment, searched.experiment.search
    if not search.priors:
        raise UserError("search.priors: empty; the posterior sampler wants one to start from, or another search.sampler")
    priors = [searched.tables[prior] for prior in search.priors] if searched.space.free else []
    scored = min(search.validation_mixtures, experiment.data.fixed_count(Split.VALIDATION) or search.validation_mixtures)
    objectives, limits, lost = search.objectives, search.limits, searched.structure_losses
    engine = posterior_engine(searched.space, priors, searched.costs, objectives, limits, scored, lost)
    return PosteriorProposer(engine, experiment.seed)


def posterior_engine(
    space: SearchSpace,
    priors: Sequence[SensitivityTable],
    costs: CostBook,
    objectives: Sequence[str],
    limits: Mapping[str, float],
    scored_mixtures: int,
    structure_losses: Mapping[str, Mapping[int, float]] = MappingProxyType({}),
) -> PosteriorEngine:
    """Make the engine of a search.

    Objectives that are metrics of quality are skipped, because losses of SI-SNR stand for all of them. The mixtures of the
    sensitivities `priors` are the first of the `scored_mixtures` that candidates are scored on. `structure_losses` are the losses
    of the space's options, by what is kept; that of the whole is 0.

    Raises:
        UserError: an objective or limit is no cost, or an option has no loss.
    """
    widths = loss_prior(priors, space, scored_mixtures) if space.free else no_prior(space)
    prior = with_structure(widths, space, structure_losses)
    return PosteriorEngine(
        prior.mean,
        prior.deviation,
        prior.valid,
        [costs.known(column) for column in objectives if column not in QUALITY_METRICS],
        [(costs.known(column), limit) for column, limit in limits.items()],
        None if prior.noise_ratio else _RANKING_SPREAD,
        Layout.of(space) if space.options else None,
    )


class PosteriorProposer:
    """Proposes what the engine thinks best. Draws are seeded by their place in the search, so that a resume repeats them."""

    def __init__(self, engine: PosteriorEngine, seed: int) -> None:
        self._engine = engine
        self._seed = seed
        self._heard = 0
        self._repeats = 0
        self._behind: deque[Point] = deque()

    def started(self, reference: Mapping[str, float]) -> None:
        """Take the quality of the full-precision network, from which losses are counted."""
        self._engine.refer(reference[QUALITY])

    def ask(self) -> Proposal | None:
        """Propose a point that was found together with an earlier candidate, or find new ones."""
        if self._behind:
            return Proposal(self._behind[0], STRATEGY)
        count = max(1, self._engine.running // RUNNING_PER_PROPOSAL)
        points = self._engine.propose_several(count, np.random.default_rng([self._seed, self._heard, self._repeats]))
        self._repeats += 1
        if not points:
            return None
        return Proposal(points[0], STRATEGY, {_BEHIND: points[1:]} if len(points) > 1 else {})

    def asked(self, candidate: Candidate) -> None:
        """Count the candidate as being scored, and strike it off the points that wait to be proposed."""
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
