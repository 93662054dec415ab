"""What an experiment's strategy comes to: the seeds that are scored first, and who proposes behind them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hwsearch.errors import UserError
from hwsearch.experiment import Experiment, Prior, SamplerKind, Split, Strategy
from hwsearch.search.exact.problem import AllocationProblem, Cost
from hwsearch.search.known_costs import CostBook
from hwsearch.search.objectives import QUALITY, SIZE, objectives_of
from hwsearch.search.posterior.engine import PosteriorEngine
from hwsearch.search.posterior.model import PriorSpread
from hwsearch.search.posterior.proposer import PosteriorProposer
from hwsearch.search.priors import front_seeds, loss_prior, prior_problem, separable_loss
from hwsearch.search.proposer import Proposer
from hwsearch.search.space import Point, SearchSpace, Seed, ends_seeds, uniform_seeds
from hwsearch.search.study import OptunaProposer
from hwsearch.sensitivity.estimate import needs_pool
from hwsearch.sensitivity.table import Method, SensitivityTable

_RANKING_SPREAD = PriorSpread(common=2.0)
"""The spread of a prior that only ranks. It is wide, because the scale of such a prior is a guess."""

_STRATEGY_PRIORS = {
    Strategy.UNIFORM: (),
    Strategy.CURVATURE: (Prior.CURVATURE,),
    Strategy.KL: (Prior.KL,),
    Strategy.NAS: (),
}


@dataclass(frozen=True)
class Plan:
    """Seeds, and who proposes behind them; None where the strategy is the seeds alone.

    Then there are no more seeds than trials, but for those that are scored in any case.
    """

    seeds: tuple[Seed, ...]
    proposer: Proposer | None


def wanted_priors(experiment: Experiment) -> tuple[Prior, ...]:
    """The sensitivities that a search needs."""
    return _STRATEGY_PRIORS.get(experiment.search.strategy, experiment.search.priors)


def wants_nas(experiment: Experiment) -> bool:
    """Whether a search needs the candidates of the differentiable search."""
    strategy = experiment.search.strategy
    return strategy is Strategy.NAS or (strategy is Strategy.PRIOR_CORRECTED and experiment.search.nas)


def trainings(experiment: Experiment) -> list[str]:
    """What a search needs training mixtures for, as messages say it: a fidelity, a prior, the differentiable search."""
    found = [f"fidelity '{rung.fidelity.value}' trains" for rung in experiment.search.promotions if rung.fidelity.trained]
    if needs_pool([Method(prior.value) for prior in wanted_priors(experiment)]):
        found.append("recoverability trains with each site quantized")
    if wants_nas(experiment):
        found.append("the differentiable search trains")
    return found


def check_strategy(experiment: Experiment) -> None:
    """Refuse a strategy that has nobody to propose.

    Raises:
        UserError: as said.
    """
    search = experiment.search
    if search.strategy is Strategy.PRIOR_CORRECTED and search.sampler is SamplerKind.POSTERIOR and not search.priors:
        raise UserError("search.priors: empty; the posterior sampler wants one to start from, or another search.sampler")


def make_plan(
    experiment: Experiment,
    space: SearchSpace,
    costs: CostBook,
    tables: Mapping[Prior, SensitivityTable],
    nas: Sequence[Point] = (),
) -> Plan:
    """The seeds and the proposer of an experiment.

    Args:
        experiment: says which strategy.
        space: its space.
        costs: what allocations are charged.
        tables: sensitivities, of `wanted_priors` at least; none where no site is free.
        nas: what the differentiable search found, where `wants_nas`.

    Raises:
        UserError: an objective that is no cost of the experiment, or no seeds and nobody to propose.
    """
    search = experiment.search
    size = costs.exact(SIZE)
    seeds = uniform_seeds(space) + ends_seeds(space) + [Seed("nas", point) for point in nas]
    priors = wanted_priors(experiment) if space.free else ()
    problems = {prior: _problem(space, tables[prior], size) for prior in priors}
    if search.strategy is not Strategy.PRIOR_CORRECTED:
        always = len(_distinct(seeds))
        for prior, problem in problems.items():
            always = len(_distinct([*seeds, *front_seeds(problem, SIZE, prior.value, search.seed_sizes)]))
            seeds += _ever_finer(problem, prior, search.seed_sizes, search.trials)
        return Plan(_distinct(seeds)[: max(always, search.trials)], None)
    for prior, problem in problems.items():
        seeds += front_seeds(problem, SIZE, prior.value, search.seed_sizes)
    return Plan(_distinct(seeds), _proposer(experiment, space, costs, tables) if space.free else None)


def _proposer(experiment: Experiment, space: SearchSpace, costs: CostBook, tables: Mapping[Prior, SensitivityTable]) -> Proposer:
    search = experiment.search
    if search.sampler is not SamplerKind.POSTERIOR:
        return OptunaProposer(search, space, objectives_of(search.objectives), experiment.seed)
    check_strategy(experiment)
    priors = [tables[prior] for prior in search.priors]
    scored = min(search.validation_mixtures, experiment.data.mixtures.count.get(Split.VALIDATION, search.validation_mixtures))
    engine = posterior_engine(space, priors, costs, search.objectives, search.limits, scored)
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
        objectives: columns; quality is skipped.
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
        [costs.known(column) for column in objectives if column != QUALITY],
        [(costs.known(column), limit) for column, limit in limits.items()],
        None if prior.noise_ratio else _RANKING_SPREAD,
    )


def _problem(space: SearchSpace, table: SensitivityTable, size: Cost) -> AllocationProblem:
    return prior_problem(space, separable_loss(table, space), (size,))


def _ever_finer(problem: AllocationProblem, prior: Prior, sizes: int, trials: int) -> list[Seed]:
    """A prior's front at ever more sizes, until there are as many candidates as wanted or the front has no more."""
    found: dict[Point, Seed] = {}
    before = -1
    while len(found) < trials and len(found) > before:
        before = len(found)
        for seed in front_seeds(problem, SIZE, prior.value, sizes):
            found.setdefault(seed.point, seed)
        sizes = 2 * sizes + 1
    return list(found.values())


def _distinct(seeds: Sequence[Seed]) -> tuple[Seed, ...]:
    found: dict[Point, Seed] = {}
    for seed in seeds:
        found.setdefault(seed.point, seed)
    return tuple(found.values())
