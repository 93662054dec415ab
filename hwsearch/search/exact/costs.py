"""Costs of the simulator as sums over the sites.

The size of a file is such a sum. The time of a layer depends on the widths of its weights and activations jointly, so
latency is a sum only if activations are fixed. A cost that is no sum is refused. Peak memory is the largest of several sums, one
for each set of tensors that are alive at once.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from hw_models.compile import WIDTH_INDEX, CostTable
from hw_models.cost import evaluate
from hw_models.errors import TargetError
from hw_models.workload import Workload
from hwsearch.errors import UserError
from hwsearch.search.exact.problem import Cost, FloatArray, IntArray, Widths

_CHECKS = 256
"""Random allocations on which a sum is compared with the simulator."""

_TOLERANCE = 1e-9
"""Largest relative difference between a sum and the simulator."""

_GRID_BITS = 40
"""Costs are rounded to so many leading bits of the largest one, so that sums are exact in any order and equal costs are equal."""


def target_cost(metric: str, table: CostTable, widths: Widths) -> Cost:
    """Make the cost `metric[target]` for any of `CostTable.metrics` except peak memory.

    Raises:
        UserError: the target cannot run a width (names the layer), or the cost is no sum over the sites.
    """
    name = f"{metric}[{table.target.name}]"

    def charge(bits: IntArray) -> FloatArray:
        try:
            return evaluate(table, bits).column(metric)
        except TargetError as error:
            raise UserError(f"{name}: {error}") from None

    return separable_cost(name, charge, table.workload, widths)


def peak_activation_cost(table: CostTable, widths: Widths) -> Cost:
    """Make the cost of peak activation memory on a target, in bytes. Each sum is over the tensors of one memory cut.

    Cuts within other cuts are left out. The state of a streaming inference is alive in all cuts.

    Raises:
        UserError: the target cannot hold a width; names the site.
    """
    name = f"peak_activation_bytes[{table.target.name}]"
    workload = table.workload
    row_of = {site: row for row, (site, _) in enumerate(widths)}
    tensors = len(workload.activation_sites)
    cuts = {frozenset(alive[alive < tensors].tolist()) for alive in table.live}
    largest = sorted(sorted(cut) for cut in cuts if not any(cut < other for other in cuts))
    tables = np.zeros((len(largest), len(widths), max(len(options) for _, options in widths)))
    for tensor, tensor_site in enumerate(workload.activation_sites):
        row = row_of[tensor_site]
        site, options = widths[row]
        at = WIDTH_INDEX[list(options)]
        sizes = table.site_bytes[tensor, at]
        if not sizes.all():
            width = options[int(sizes.argmin())]
            raise UserError(f"{name}: the target cannot hold site '{site}' at {width} bits; wanted a width that it runs")
        for cut, tensors_alive in enumerate(largest):
            tables[cut, row, : len(options)] = table.state_bytes[tensor, at] + (sizes if tensor in tensors_alive else 0)
    return Cost(name, tables, np.zeros(len(largest)))


class NotSeparableError(UserError):
    """The cost is no sum over the sites."""


def separable_cost(name: str, charge: Callable[[IntArray], FloatArray], workload: Workload, widths: Widths) -> Cost:
    """Make a cost that is one sum, from the changes of single sites. The sum is checked on random allocations.

    Args:
        name: the column of the record.
        charge: computes the cost [allocations] of widths [allocations, workload sites].
        workload: the network whose sites `charge` takes.
        widths: every site of the workload and the widths it may take.

    Raises:
        NotSeparableError: the cost is no sum over the sites.
        UserError: a cost is not finite.
        ValueError: the sites are not those of the workload.
    """
    table, origin = site_changes(charge, workload, widths)
    if not np.isfinite(table).all() or not math.isfinite(origin):
        raise UserError(f"{name}: not finite at some widths of the space; wanted widths that the target runs")
    cost = Cost(name, table[None], np.array([origin]))
    _check_sum(cost, charge, np.array([workload.column[site] for site, _ in widths]), widths)
    return cost


def site_changes(charge: Callable[[IntArray], FloatArray], workload: Workload, widths: Widths) -> tuple[FloatArray, float]:
    """Compute how a cost changes from the narrowest allocation when one site takes another width.

    Returns:
        Changes [sites, widths], and the cost of the narrowest allocation, rounded so that their sums are exact.

    Raises:
        ValueError: the sites are not those of the workload.
    """
    if {site for site, _ in widths} != set(workload.sites):
        raise ValueError(f"the sites are not those of workload '{workload.name}'")
    columns = np.array([workload.column[site] for site, _ in widths])
    changes = [(row, index) for row, (_, options) in enumerate(widths) for index in range(len(options))]
    base = np.empty(len(widths), np.int64)
    base[columns] = [options[0] for _, options in widths]
    bits = np.repeat(base[None], len(changes), axis=0)
    for change, (row, index) in enumerate(changes):
        bits[change, columns[row]] = widths[row][1][index]
    values = charge(bits)
    origin = float(values[0])
    finite = values[np.isfinite(values)]
    grid = math.ldexp(1.0, math.frexp(float(np.abs(finite).max()) if finite.size else 1.0)[1] - _GRID_BITS)
    table = np.zeros((len(widths), max(len(options) for _, options in widths)))
    for (row, index), value in zip(changes, values.tolist(), strict=True):
        change = value - origin
        table[row, index] = round(change / grid) * grid if math.isfinite(change) else change
    return table, round(origin / grid) * grid if math.isfinite(origin) else origin


def _check_sum(cost: Cost, charge: Callable[[IntArray], FloatArray], columns: npt.NDArray[np.int64], widths: Widths) -> None:
    rng = np.random.default_rng(0)
    picks = np.stack([rng.integers(0, len(options), _CHECKS) for _, options in widths], axis=1)
    picks[0] = [len(options) - 1 for _, options in widths]
    bits = np.empty(picks.shape, np.int64)
    for row, (_, options) in enumerate(widths):
        bits[:, columns[row]] = np.array(options)[picks[:, row]]
    values = charge(bits)
    sums = cost.constants[0] + cost.tables[0][np.arange(len(widths)), picks].sum(axis=1)
    wrong = ~(np.abs(sums - values) <= _TOLERANCE * np.abs(values))
    if wrong.any():
        first = int(wrong.argmax())
        raise NotSeparableError(
            f"{cost.name} is no sum over the sites: an allocation takes {values[first]:.6g} where single sites add up to "
            f"{sums[first]:.6g}; wanted activations fixed to one width each (search.fixed), or a limit on another cost"
        )
