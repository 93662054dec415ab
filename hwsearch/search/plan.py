"""The plan of a search: the seeds that are scored first, and the proposer that follows them."""

from collections.abc import Mapping, Sequence

from hwsearch.errors import UserError
from hwsearch.experiment import Experiment
from hwsearch.extensions import SAMPLERS, STRATEGIES
from hwsearch.search.costs import CostBook
from hwsearch.search.exact.problem import AllocationProblem, Cost, allocation_problem
from hwsearch.search.objectives import SIZE
from hwsearch.search.priors import front_seeds, separable_loss
from hwsearch.search.proposer import Plan
from hwsearch.search.samplers.sampler import Searched
from hwsearch.search.space import Point, SearchSpace, Seed, ends_seeds, uniform_seeds
from hwsearch.sensitivity.estimate import needs_pool
from hwsearch.sensitivity.table import SensitivityTable


def wanted_priors(experiment: Experiment) -> tuple[str, ...]:
    """Return the names of the sensitivities that a search needs."""
    return STRATEGIES.load(experiment.search.strategy).priors(experiment.search)


def wants_nas(experiment: Experiment) -> bool:
    """Whether a search needs the results of the differentiable search."""
    return STRATEGIES.load(experiment.search.strategy).nas(experiment.search)


def check_strategy(experiment: Experiment) -> None:
    """Refuse a strategy that has nobody to propose.

    Raises:
        UserError: as said.
    """
    search = experiment.search
    if STRATEGIES.load(search.strategy).samples and search.sampler == "posterior" and not search.priors:
        raise UserError("search.priors: empty; the posterior sampler wants one to start from, or another search.sampler")


def trainings(experiment: Experiment) -> list[str]:
    """List what needs training mixtures, in the words of messages: a fidelity, a prior, the differentiable search."""
    found = [f"fidelity '{rung.fidelity.value}' trains" for rung in experiment.search.promotions if rung.fidelity.trained]
    if needs_pool(wanted_priors(experiment)):
        found.append("recoverability trains with each site quantized")
    if wants_nas(experiment):
        found.append("the differentiable search trains")
    return found


def make_plan(
    experiment: Experiment,
    space: SearchSpace,
    costs: CostBook,
    tables: Mapping[str, SensitivityTable],
    nas: Sequence[Point] = (),
) -> Plan:
    """Make the seeds and the proposer of an experiment.

    Args:
        experiment: says which strategy.
        space: its space.
        costs: what allocations are charged.
        tables: at least the sensitivities that `wanted_priors` names; not needed if no site is free.
        nas: what the differentiable search found, if `wants_nas` says that it is needed.

    Raises:
        UserError: an objective is no cost of the experiment, or there are neither seeds nor a proposer.
    """
    search = experiment.search
    size = costs.exact(SIZE)
    seeds = uniform_seeds(space) + ends_seeds(space) + [Seed("nas", point) for point in nas]
    priors = wanted_priors(experiment) if space.free else ()
    problems = {prior: _problem(space, tables[prior], size) for prior in priors}
    if not STRATEGIES.load(search.strategy).samples:
        always = len(_distinct(seeds))
        for prior, problem in problems.items():
            always = len(_distinct([*seeds, *front_seeds(problem, SIZE, prior, search.seed_sizes)]))
            seeds += _ever_finer(problem, prior, search.seed_sizes, search.trials)
        return Plan(_distinct(seeds)[: max(always, search.trials)], None)
    for prior, problem in problems.items():
        seeds += front_seeds(problem, SIZE, prior, search.seed_sizes)
    searched = Searched(experiment, space, costs, tables)
    return Plan(_distinct(seeds), SAMPLERS.load(search.sampler)(searched) if space.free else None)


def _problem(space: SearchSpace, table: SensitivityTable, size: Cost) -> AllocationProblem:
    return allocation_problem(space, separable_loss(table, space), (size,))


def _ever_finer(problem: AllocationProblem, prior: str, sizes: int, trials: int) -> list[Seed]:
    """Take a prior's front at more and more sizes, until it gives as many candidates as wanted or has no more."""
    found: dict[Point, Seed] = {}
    before = -1
    while len(found) < trials and len(found) > before:
        before = len(found)
        for seed in front_seeds(problem, SIZE, prior, sizes):
            found.setdefault(seed.point, seed)
        sizes = 2 * sizes + 1
    return list(found.values())


def _distinct(seeds: Sequence[Seed]) -> tuple[Seed, ...]:
    found: dict[Point, Seed] = {}
    for seed in seeds:
        found.setdefault(seed.point, seed)
    return tuple(found.values())
