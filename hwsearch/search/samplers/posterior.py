"""The posterior sampler: the allocation problem solved again under sensitivities that every scored candidate corrects."""

from collections.abc import Mapping, Sequence

from hwsearch.errors import UserError
from hwsearch.experiment import Split
from hwsearch.extensions import QUALITY_METRICS
from hwsearch.search.costs import CostBook
from hwsearch.search.posterior.engine import PosteriorEngine
from hwsearch.search.posterior.model import PriorSpread
from hwsearch.search.posterior.proposer import PosteriorProposer
from hwsearch.search.priors import loss_prior
from hwsearch.search.proposer import Proposer
from hwsearch.search.samplers.sampler import Searched
from hwsearch.search.space import SearchSpace
from hwsearch.sensitivity.table import SensitivityTable

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
    priors = [searched.tables[prior] for prior in search.priors]
    scored = min(search.validation_mixtures, experiment.data.mixtures.count.get(Split.VALIDATION, search.validation_mixtures))
    engine = posterior_engine(searched.space, priors, searched.costs, search.objectives, search.limits, scored)
    return PosteriorProposer(engine, experiment.seed)


def posterior_engine(
    space: SearchSpace,
    priors: Sequence[SensitivityTable],
    costs: CostBook,
    objectives: Sequence[str],
    limits: Mapping[str, float],
    scored_mixtures: int,
) -> PosteriorEngine:
    """The engine of a search.

    Args:
        space: the space.
        priors: sensitivities that the posterior starts from (`priors.loss_prior`).
        costs: what allocations are charged.
        objectives: columns. Metrics of quality are skipped: losses of SI-SNR stand for all of them.
        limits: largest values by column.
        scored_mixtures: how many mixtures a candidate is scored on; those of the sensitivities are the first of them.

    Raises:
        UserError: an objective or limit that is no cost.
    """
    prior = loss_prior(priors, space, scored_mixtures)
    return PosteriorEngine(
        prior.mean,
        prior.deviation,
        prior.valid,
        [costs.known(column) for column in objectives if column not in QUALITY_METRICS],
        [(costs.known(column), limit) for column, limit in limits.items()],
        None if prior.noise_ratio else _RANKING_SPREAD,
    )
