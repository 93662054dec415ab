"""From sensitivities to candidates: the separable loss that a table stands for, its exact front as seeds, and what several tables
together say of the losses before anything is scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hwsearch.search.exact.front import front_at
from hwsearch.search.exact.problem import AllocationProblem, Cost, FloatArray, allocation_problem
from hwsearch.search.space import SearchSpace, Seed
from hwsearch.sensitivity.table import SensitivityTable

NOISE_RATIO = "noise power over full-precision noise power"
"""Unit of the tables whose values are what candidates are found to lose."""

_SHARE = 0.4
"""Standard deviation of an entry beyond its standard error, as a share of it."""

_FLOOR = 0.02
"""The same, as a share of the mean over the table: what is estimated as nothing may be something."""


def separable_loss(table: SensitivityTable, space: SearchSpace) -> dict[str, dict[int, float]]:
    """Loss by free site and width, 0 or more, and never higher at a wider width than at a narrower one.

    Estimates of wide widths are mostly noise: a site that seems to lose more at 6 bits than at 5 is taken to lose as much at 5.

    Raises:
        KeyError: the table lacks a site or a width of the space.
    """
    row = {site: index for index, site in enumerate(table.sites)}
    column = {bits: index for index, bits in enumerate(table.widths)}
    found = {}
    for site, widths in space.free_sites:
        values = np.maximum(table.value[row[site], [column[bits] for bits in widths]], 0.0)
        falling = np.maximum.accumulate(values[::-1])[::-1]
        found[site] = dict(zip(widths, falling.tolist(), strict=True))
    return found


def prior_problem(space: SearchSpace, loss: Mapping[str, Mapping[int, float]], costs: Sequence[Cost]) -> AllocationProblem:
    """The allocation problem of a prior, its sites grouped as the space groups them."""
    return allocation_problem(space, loss, costs, space.groups)


@dataclass(frozen=True, eq=False)
class LossPrior:
    """What is believed of the loss of each free choice at each of its options.

    Attributes:
        mean: [choices, options], 0 or more, and 0 beyond the options of a choice.
        deviation: [choices, options] standard deviations, above 0.
        valid: [choices, options] which options exist.
        noise_ratio: whether losses are in the unit of scored candidates; else their scale is a guess.
    """

    mean: FloatArray
    deviation: FloatArray
    valid: npt.NDArray[np.bool_]
    noise_ratio: bool


def loss_prior(tables: Sequence[SensitivityTable], space: SearchSpace) -> LossPrior:
    """What tables say together.

    Tables in noise ratios are fused, each entry weighted by its precision: its standard error, and a share of its size for what
    an error bar over a few mixtures leaves out. Where there is none, the first table is taken, scaled so that the narrowest
    allocation adds as much noise as full precision has.

    Raises:
        ValueError: no table.
    """
    if not tables:
        raise ValueError("wanted a table to start from")
    ratios = [table for table in tables if table.method.unit == NOISE_RATIO]
    losses = [separable_loss(table, space) for table in ratios or tables[:1]]
    errors = [_errors(table, space) for table in ratios or tables[:1]]
    shape = len(space.free), max((len(widths) for _, widths in space.free), default=0)
    mean, variance, valid = np.zeros(shape), np.ones(shape), np.zeros(shape, np.bool_)
    average = float(np.mean([value for loss in losses for by_width in loss.values() for value in by_width.values()]))
    # Tables that are zero throughout say nothing: then any loss is as likely as full precision's own noise.
    floor = _FLOOR * average or 1.0
    for row, (name, widths) in enumerate(space.free):
        for column, bits in enumerate(widths):
            fused = [
                _fused([(loss[site][bits], error[site][bits]) for loss, error in zip(losses, errors, strict=True)], floor)
                for site in space.members[name]
            ]
            mean[row, column], variance[row, column] = (sum(part) for part in zip(*fused, strict=True))
            valid[row, column] = True
    deviation = np.sqrt(variance)
    if not ratios:
        scale = mean.max(axis=1).sum() or 1.0
        mean, deviation = mean / scale, np.maximum(deviation / scale, np.finfo(float).tiny)
    return LossPrior(mean, deviation, valid, bool(ratios))


def _fused(entries: Sequence[tuple[float, float]], floor: float) -> tuple[float, float]:
    """Mean and variance of one site at one width by several tables' (value, standard error)."""
    largest = max(value for value, _ in entries)
    variances = [error**2 + (_SHARE * largest + floor) ** 2 for _, error in entries]
    precision = sum(1.0 / variance for variance in variances)
    mean = sum(value / variance for (value, _), variance in zip(entries, variances, strict=True)) / precision
    return mean, 1.0 / precision


def _errors(table: SensitivityTable, space: SearchSpace) -> dict[str, dict[int, float]]:
    """Standard errors by free site and width; 0 where they are not known."""
    row = {site: index for index, site in enumerate(table.sites)}
    column = {bits: index for index, bits in enumerate(table.widths)}
    return {
        site: {bits: float(np.nan_to_num(table.standard_error[row[site], column[bits]])) for bits in widths}
        for site, widths in space.free_sites
    }


def front_seeds(problem: AllocationProblem, metric: str, strategy: str, count: int) -> list[Seed]:
    """Allocations on a prior's exact front, at `count` costs between the least and the largest, evenly spread on a log scale.

    The least and the largest themselves are uniform allocations and not repeated.

    Raises:
        UserError: no such cost, or one that is not additive.
    """
    cost = problem.merged(problem.cost(metric).tables[0])
    constant = float(problem.cost(metric).constants[0])
    least, largest = constant + cost.min(axis=1).sum(), constant + np.where(np.isfinite(cost), cost, -np.inf).max(axis=1).sum()
    front = front_at(problem, metric, np.geomspace(least, largest, count + 2)[1:-1].tolist())
    return list({point: Seed(strategy, point) for point in (problem.point(indices) for indices in front.indices)}.values())
