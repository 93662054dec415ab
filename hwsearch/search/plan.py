"""The plan of a search: the seeds that are scored first, and the proposer that follows them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

from hwsearch.errors import UserError
from hwsearch.experiment import Experiment
from hwsearch.extensions import SAMPLERS, STRATEGIES
from hwsearch.search.costs import CostBook
from hwsearch.search.elastic_seeds import elastic_fronts, elastic_losses, limited_seeds
from hwsearch.search.exact.problem import allocation_problem
from hwsearch.search.objectives import SIZE
from hwsearch.search.priors import front_seeds, separable_loss
from hwsearch.search.proposer import Plan
from hwsearch.search.samplers.sampler import Searched
from hwsearch.search.space import Point, SearchSpace, Seed, distinct, ends_seeds, uniform_seeds
from hwsearch.search.structure_losses import StructureLosses
from hwsearch.search.structure_seeds import structure_seeds
from hwsearch.sensitivity.estimate import needs_pool
from hwsearch.sensitivity.table import SensitivityTable

FrontSeeds = Callable[[int], list[Seed]]
"""Makes seeds from an exact front, at so many costs."""


def wanted_priors(experiment: Experiment) -> tuple[str, ...]:
    """Return the names of the sensitivities that a search needs."""
    return STRATEGIES.load(experiment.search.strategy).priors(experiment.search)


def wants_nas(experiment: Experiment) -> bool:
    """Whether a search needs the results of the differentiable search."""
    return STRATEGIES.load(experiment.search.strategy).nas(experiment.search)


def check_strategy(experiment: Experiment) -> None:
    """Refuse the posterior sampler without a prior.

    Raises:
        UserError: the strategy samples so.
    """
    search = experiment.search
    if STRATEGIES.load(search.strategy).samples and search.sampler == "posterior" and not search.priors:
        raise UserError("search.priors: empty; the posterior sampler wants one to start from, or another search.sampler")


def trainings(experiment: Experiment) -> list[str]:
    """List what needs training mixtures, in the words of messages."""
    found = ["the shared network trains"] if experiment.search.uses_shared else []
    found += [f"fidelity '{rung.fidelity.value}' trains" for rung in experiment.search.promotions if rung.fidelity.trained]
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
    structure_losses: StructureLosses = MappingProxyType({}),
) -> Plan:
    """Make the seeds and the proposer of an experiment.

    Args:
        experiment: the experiment.
        space: its space.
        costs: its costs.
        tables: the sensitivities that `wanted_priors` names; not needed if no site is free.
        nas: results of the differentiable search; needed if `wants_nas`.
        structure_losses: losses of the space's options; needed if there are any.

    Raises:
        UserError: an objective is no cost of the experiment, or there are neither seeds nor a proposer.
    """
    search = experiment.search
    seeds = uniform_seeds(space) + ends_seeds(space) + [Seed("nas", point) for point in nas]
    priors = wanted_priors(experiment) if space.free else ()
    losses = {prior: separable_loss(tables[prior], space) for prior in priors}
    fronts: list[FrontSeeds]
    if space.options:
        elastic = elastic_losses(space, losses, structure_losses)
        seeds += structure_seeds(space, structure_losses) + limited_seeds(space, elastic, costs, search)
        fronts = elastic_fronts(space, elastic, costs, search)
    else:
        size = costs.exact(SIZE)
        problems = {prior: allocation_problem(space, loss, (size,)) for prior, loss in losses.items()}
        fronts = [partial(front_seeds, problem, SIZE, prior) for prior, problem in problems.items()]
    if STRATEGIES.load(search.strategy).samples:
        for front in fronts:
            seeds += front(search.seed_sizes)
        searched = Searched(experiment, space, costs, tables, structure_losses)
        return Plan(tuple(distinct(seeds)), SAMPLERS.load(search.sampler)(searched) if space.variables else None)
    always = len(distinct(seeds))
    for front in fronts:
        always = len(distinct([*seeds, *front(search.seed_sizes)]))
        seeds += _ever_finer(front, search.seed_sizes, search.trials)
    return Plan(tuple(distinct(seeds)[: max(always, search.trials)]))


def _ever_finer(front: FrontSeeds, sizes: int, trials: int) -> list[Seed]:
    """Take a prior's front at more and more sizes, until it gives as many candidates as wanted or has no more."""
    found: list[Seed] = []
    before = -1
    while before < len(found) < trials:
        before = len(found)
        found = distinct([*found, *front(sizes)])
        sizes = 2 * sizes + 1
    return found
