"""What a relaxed choice costs: the expectation of an additive cost, which is linear in the probabilities."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hwsearch.errors import UserError
from hwsearch.experiment import Experiment
from hwsearch.search.costs import compile_targets, experiment_workload
from hwsearch.search.exact.costs import size_cost, target_cost
from hwsearch.search.exact.problem import AllocationProblem, Cost, Widths, additive_cost
from hwsearch.search.objectives import SIZE

SUM_SQRT_BITS = "sum-sqrt-bits"
"""The reference system's cost."""


@dataclass(frozen=True, eq=False)
class ExpectedCost:
    """Expectation of a cost as a share of what the widest allocation costs.

    Attributes:
        table: [choices, options] share that an option is charged, float64, 0 where there is no option.
        constant: share that every allocation is charged.
    """

    table: Tensor
    constant: float

    def __call__(self, probabilities: Tensor) -> Tensor:
        """The expectation, [], of independent choices with probabilities [choices, options]; 1 is the widest allocation."""
        return (probabilities.double() * self.table).sum() + self.constant


def expected_cost(problem: AllocationProblem, cost: Cost) -> ExpectedCost:
    """The expectation of `cost` over the choices of `problem`.

    Raises:
        UserError: the cost is the largest of several sums, or the widest allocation costs nothing.
    """
    if not cost.additive:
        raise UserError(
            f"nas.cost is {cost.name}, the largest of {len(cost.tables)} sums; wanted one that is a sum over the sites"
        )
    merged = torch.from_numpy(problem.merged(cost.tables[0])).nan_to_num(posinf=0.0)
    exists = torch.from_numpy(problem.option_valid)
    widest = float(merged.gather(1, exists.sum(dim=1, keepdim=True) - 1).sum() + cost.constants[0])
    if widest <= 0:
        raise UserError(f"nas.cost: {cost.name} of the widest allocation is {widest:g}; wanted more than 0")
    return ExpectedCost(merged / widest, float(cost.constants[0]) / widest)


def nas_cost(experiment: Experiment, widths: Widths) -> Cost:
    """The cost that `nas.cost` names, for sites with these widths.

    Raises:
        UserError: no such cost or target, or one that is no sum over the sites.
    """
    name = experiment.nas.cost
    workload = experiment_workload(experiment)
    if name == SUM_SQRT_BITS:
        return sum_sqrt_bits(widths)
    if name == SIZE:
        return size_cost(workload, widths)
    metric, _, target = name.removesuffix("]").partition("[")
    tables = compile_targets(experiment, workload)
    sums = {known: [metric for metric in table.metrics if metric != "peak_activation_bytes"] for known, table in tables.items()}
    if metric in sums.get(target, ()) and name.endswith("]"):
        return target_cost(metric, tables[target], widths)
    known = [SIZE, SUM_SQRT_BITS, *(f"{metric}[{table}]" for table, metrics in sums.items() for metric in metrics)]
    raise UserError(f"nas.cost is '{name}'; wanted one of {', '.join(known)}")


def sum_sqrt_bits(widths: Widths) -> Cost:
    """The reference system's cost (arXiv 2111.14479): the square roots of the widths, summed over all sites alike."""
    return additive_cost(SUM_SQRT_BITS, widths, {site: {bits: math.sqrt(bits) for bits in options} for site, options in widths})
