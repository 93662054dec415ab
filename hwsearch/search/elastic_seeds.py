"""Seeds of spaces with options, from exact solutions: fronts against every cost, and the optimum within the limits."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from hwsearch.errors import UserError
from hwsearch.experiment import SearchConfig
from hwsearch.extensions import QUALITY_METRICS
from hwsearch.search.costs import CostBook
from hwsearch.search.exact.elastic import ElasticProblem, optimum
from hwsearch.search.exact.layout import Layout, PartTable
from hwsearch.search.priors import elastic_front_seeds, elastic_loss
from hwsearch.search.space import SearchSpace, Seed
from hwsearch.search.structure_losses import StructureLosses

STRUCTURE = "structure"
"""Strategy of the seeds from the losses of options alone, where no width is free."""

_SECONDS = 5.0
"""Longest time to solve for the optimum within the limits."""

SiteLosses = Mapping[str, Mapping[int, float]]
"""Losses by free site and width."""


def elastic_losses(
    space: SearchSpace, priors: Mapping[str, SiteLosses], structure_losses: StructureLosses
) -> dict[str, PartTable]:
    """Add what is left out to the losses of each prior. Without free widths there are no priors, but one table all the same.

    Raises:
        UserError: an option has no loss.
    """
    given: dict[str, SiteLosses] = dict(priors) if space.free else {STRUCTURE: {}}
    return {prior: elastic_loss(space, losses, structure_losses) for prior, losses in given.items()}


def elastic_fronts(
    space: SearchSpace, losses: Mapping[str, PartTable], costs: CostBook, search: SearchConfig
) -> list[Callable[[int], list[Seed]]]:
    """Return what makes seeds from the exact front of each prior against each cost that is an objective, at so many costs.

    A cost that a target does not state for every width is left out.
    """
    columns = [column for column in search.objectives if column not in QUALITY_METRICS]
    known = [table for table in map(costs.part_table, columns) if _finite(table)]
    return [partial(elastic_front_seeds, space, loss, cost, prior) for prior, loss in losses.items() for cost in known]


def limited_seeds(space: SearchSpace, losses: Mapping[str, PartTable], costs: CostBook, search: SearchConfig) -> list[Seed]:
    """Return, for each prior, the configuration of least loss within all limits, as far as the costs are sums over the parts."""
    limits = {name: (costs.part_table(name), limit) for name, limit in search.limits.items()}
    limits = {name: (table, limit) for name, (table, limit) in limits.items() if _finite(table)}
    found = []
    for prior, loss in losses.items() if limits else ():
        problem = ElasticProblem(Layout.of(space), loss, {name: table for name, (table, _) in limits.items()})
        try:
            best = optimum(problem, {name: limit for name, (_, limit) in limits.items()}, _SECONDS)
        except UserError:
            continue  # the sums are too large by the little that they are off, or time ran out: the search finds its own way
        found.append(Seed(prior, space.canonical(tuple(best.indices.tolist()))))
    return found


def _finite(table: PartTable) -> bool:
    return bool(np.isfinite(table.choices).all() and np.isfinite(table.parts).all())
