"""The expected cost of relaxed choices. The expectation of an additive cost is linear in the probabilities."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hwsearch.errors import UserError
from hwsearch.experiment import Experiment
from hwsearch.search.costs import compile_targets, experiment_workload, size_cost
from hwsearch.search.exact.costs import target_cost
from hwsearch.search.exact.problem import AllocationProblem, Cost, Widths, additive_cost
from hwsearch.search.objectives import SIZE

SUM_SQRT_BITS = "sum-sqrt-bits"


@dataclass(frozen=True, eq=False)
class ExpectedCost:
    """The expectation of a cost, as a share of the cost of the widest allocation."""

    table: Tensor
    """[choices, options] share of each option, float64; 0 where there is no option."""
    constant: float
    """Share that every allocation is charged."""

    def __call__(self, probabilities: Tensor) -> Tensor:
        """Return the expectation, [], for independent choices with probabilities [choices, options]."""
        return (probabilities.double() * self.table).sum() + self.constant


def expected_cost(problem: AllocationProblem, cost: Cost) -> ExpectedCost:
    """Make the expectation of an additive cost over the choices of `problem`.

    Raises:
        UserError: the widest allocation costs nothing.
        ValueError: the cost is not additive.
    """
    (table,), (constant,) = cost.tables, cost.constants
    merged = torch.from_numpy(problem.merged(table)).nan_to_num(posinf=0.0)
    exists = torch.from_numpy(problem.option_valid)
    widest = float(merged.gather(1, exists.sum(dim=1, keepdim=True) - 1).sum() + constant)
    if widest <= 0:
        raise UserError(f"nas.cost: {cost.name} of the widest allocation is {widest:g}; wanted more than 0")
    return ExpectedCost(merged / widest, float(constant) / widest)


def nas_cost(experiment: Experiment, widths: Widths) -> Cost:
    """Make the cost that `nas.cost` names, for sites with these widths.

    Raises:
        UserError: there is no such cost or target, or the cost is no sum over the sites.
    """
    workload = experiment_workload(experiment)
    made = {
        SIZE: partial(size_cost, experiment, widths),
        SUM_SQRT_BITS: partial(sum_sqrt_bits, widths),
    }
    for target, table in compile_targets(experiment, workload).items():
        for metric in table.metrics:
            if metric != "peak_activation_bytes":
                made[f"{metric}[{target}]"] = partial(target_cost, metric, table, widths)
    if experiment.nas.cost not in made:
        raise UserError(f"nas.cost is '{experiment.nas.cost}'; wanted one of {', '.join(made)}")
    return made[experiment.nas.cost]()


def sum_sqrt_bits(widths: Widths) -> Cost:
    """Make the reference system's cost (arXiv 2111.14479): the sum of the square roots of all widths."""
    return additive_cost(SUM_SQRT_BITS, widths, {site: {bits: math.sqrt(bits) for bits in options} for site, options in widths})
