"""From sensitivities to candidates: the separable loss of a table, its exact front as seeds, and a prior from several tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hwsearch.errors import UserError
from hwsearch.search.exact import elastic
from hwsearch.search.exact.elastic import ElasticProblem
from hwsearch.search.exact.front import front_at
from hwsearch.search.exact.layout import Layout, PartTable
from hwsearch.search.exact.problem import AllocationProblem, FloatArray
from hwsearch.search.space import SearchSpace, Seed, distinct
from hwsearch.sensitivity.table import SensitivityTable

NOISE_RATIO = "noise power over full-precision noise power"
"""Unit of the tables whose values are comparable to the losses of scored candidates."""

_OFF = {"measured-noise-ratio": 0.15}
"""Error of an entry beyond its standard error, as a share of the entry, for methods that measure the loss itself."""

_PROXY_OFF = 1.0
"""The same share for other methods, which only approximate the loss."""

_JOINT = 0.4
"""How far a site's loss among other quantized sites may differ from its loss alone, as a share of the latter. The table's
standard error is added: if mixtures differ much on a site, the noise of other sites matters to it."""

_STRUCTURE_OFF = 0.3
"""Error of a loss of structure, as a share of it: it is measured without quantization, and alone."""

_FLOOR = 0.02
"""Added to both errors, as a share of the mean over the tables, because a loss that is estimated as zero may not be zero."""


def separable_loss(table: SensitivityTable, space: SearchSpace) -> dict[str, dict[int, float]]:
    """Return the loss by free site and width: 0 or more, and never higher at a wider width than at a narrower one.

    Estimates at wide widths are mostly noise. If a site seems to lose more at 6 bits than at 5, its loss at 5 is raised.

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


@dataclass(frozen=True, eq=False)
class LossPrior:
    """The prior distribution of the loss of each free choice at each of its options. Options of structure may follow.

    Attributes:
        mean: [choices, options], 0 or more, and 0 beyond the options of a choice.
        deviation: [choices, options] standard deviations, above 0.
        valid: [choices, options] which options exist.
        noise_ratio: whether losses are in the unit of scored candidates. If not, their scale is a guess.
    """

    mean: FloatArray
    deviation: FloatArray
    valid: npt.NDArray[np.bool_]
    noise_ratio: bool


def no_prior(space: SearchSpace) -> LossPrior:
    """Return the prior of a space without free choices."""
    empty = np.zeros((0, max(space.shape, default=0)))
    return LossPrior(empty, empty, empty.astype(np.bool_), noise_ratio=True)


def loss_prior(tables: Sequence[SensitivityTable], space: SearchSpace, scored_mixtures: int) -> LossPrior:
    """Combine tables into a prior of the losses on the mixtures that candidates are scored on.

    Tables in noise ratios are fused, each entry weighted by its precision. The error of an entry has two parts: its standard
    error, reduced as the table covers more of the scored mixtures (the finite population correction; Cochran, Sampling
    Techniques, section 2.6), and a share of its size for all other errors. The deviation of the fused loss uses the whole
    standard error, because it also stands for the effect of other quantized sites. If no table is in noise ratios, the first
    table is taken, scaled so that the narrowest allocation adds as much noise as full precision has.

    Raises:
        ValueError: there is no table.
    """
    if not tables:
        raise ValueError("wanted a table to start from")
    ratios = [table for table in tables if table.unit == NOISE_RATIO]
    taken = ratios or tables[:1]
    shape = len(space.free), max(space.shape, default=0)
    mean, variance, valid = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.bool_)
    losses = [separable_loss(table, space) for table in taken]
    entries = [value for loss in losses for by_width in loss.values() for value in by_width.values()]
    # Tables that are zero throughout say nothing: then any loss is as likely as full precision's own noise.
    floor = _FLOOR * float(np.mean(entries)) or 1.0
    for row, (name, widths) in enumerate(space.free):
        valid[row, : len(widths)] = True
        for site in space.members[name]:
            values = np.array([[loss[site][bits] for bits in widths] for loss in losses])
            errors = np.array([_errors(table, site, widths) for table in taken])
            fused = _fused(values, errors, taken, scored_mixtures, floor)
            mean[row, : len(widths)] += fused
            variance[row, : len(widths)] += errors.max(axis=0) ** 2 + (_JOINT * fused + floor) ** 2
    deviation = np.sqrt(np.where(valid, variance, 1.0))
    if not ratios:
        scale = mean.max(axis=1).sum() or 1.0
        mean, deviation = mean / scale, np.maximum(deviation / scale, np.finfo(float).tiny)
    return LossPrior(mean, deviation, valid, bool(ratios))


def with_structure(prior: LossPrior, space: SearchSpace, losses: Mapping[str, Mapping[int, float]]) -> LossPrior:
    """Append the options of structure to a prior of the choices.

    Args:
        prior: of the free choices.
        space: the space.
        losses: relative noise by option and what is kept, as for `structure_table`.

    Raises:
        UserError: an option has no loss.
    """
    if not space.options:
        return prior
    mean = structure_table(space, losses, prior.mean.shape[1])
    valid = np.arange(mean.shape[1]) < np.array([len(values) for _, values in space.options])[:, None]
    floor = _FLOOR * float(mean[valid].mean()) or 1.0
    deviation = _STRUCTURE_OFF * mean + floor
    return LossPrior(
        np.concatenate([prior.mean, mean]),
        np.concatenate([prior.deviation, deviation]),
        np.concatenate([prior.valid, valid]),
        prior.noise_ratio,
    )


def structure_table(space: SearchSpace, losses: Mapping[str, Mapping[int, float]], columns: int) -> FloatArray:
    """Return the losses of options of structure as a table [options, columns].

    Losses are 0 or more, and never higher if more is kept. That of the whole is 0, and need not be given.

    Raises:
        UserError: an option has no loss, or one that is not finite.
    """
    table = np.zeros((len(space.options), columns))
    for row, (name, values) in zip(table, space.options, strict=True):
        found = [losses.get(name, {}).get(kept, np.nan) for kept in values[:-1]]
        if not np.isfinite(found).all():
            raise UserError(f"structure: no loss of '{name}' at {values[int(np.argmin(np.isfinite(found)))]}; wanted one, finite")
        row[: len(found)] = np.maximum.accumulate(np.maximum(found, 0.0)[::-1])[::-1]
    return table


def _fused(
    values: FloatArray, errors: FloatArray, tables: Sequence[SensitivityTable], scored_mixtures: int, floor: float
) -> FloatArray:
    """Fuse the values [tables, widths] of a site, given their standard errors, into one mean, [widths]."""
    sampling = np.array([[max(0.0, 1.0 - table.mixtures / scored_mixtures) ** 0.5] for table in tables])
    off = np.array([[_OFF.get(table.method, _PROXY_OFF)] for table in tables])
    precision = 1.0 / ((sampling * errors) ** 2 + (off * values + floor) ** 2)
    mean: FloatArray = (precision * values).sum(axis=0) / precision.sum(axis=0)
    return mean


def _errors(table: SensitivityTable, site: str, widths: Sequence[int]) -> FloatArray:
    """Return the standard errors of a site, [widths]; 0 where they are not known."""
    row = table.sites.index(site)
    errors: FloatArray = np.nan_to_num(table.standard_error[row, [table.widths.index(bits) for bits in widths]])
    return errors


def front_seeds(problem: AllocationProblem, metric: str, strategy: str, count: int) -> list[Seed]:
    """Make seeds from a prior's exact front, at `count` costs between the least and the largest, evenly spaced on a log scale.

    The least and the largest cost themselves are left out, because they belong to uniform allocations.

    Raises:
        UserError: there is no such cost, or it is not additive.
    """
    cost = problem.merged(problem.cost(metric).tables[0])
    constant = float(problem.cost(metric).constants[0])
    least, largest = constant + cost.min(axis=1).sum(), constant + np.where(np.isfinite(cost), cost, -np.inf).max(axis=1).sum()
    front = front_at(problem, metric, np.geomspace(least, largest, count + 2)[1:-1].tolist())
    return distinct(Seed(strategy, problem.point(indices)) for indices in front.indices)


def elastic_loss(
    space: SearchSpace, sensitivity: Mapping[str, Mapping[int, float]], structure_losses: Mapping[str, Mapping[int, float]]
) -> PartTable:
    """Return the loss of a space with options of structure: the sum of the losses of widths and of what is left out.

    Args:
        space: the space.
        sensitivity: losses by free site and width, such as `separable_loss`.
        structure_losses: relative noise by option and what is kept, as for `structure_table`.

    Raises:
        UserError: an option has no loss.
    """
    layout = Layout.of(space)
    widths = np.zeros(layout.valid.shape)
    for row, (name, options) in zip(widths, space.free, strict=True):
        for site in space.members[name]:
            row[: len(options)] += [sensitivity[site][bits] for bits in options]
    lost = structure_table(space, structure_losses, max(layout.options, default=0))
    return PartTable(layout.spread(widths), layout.option_sums(lost))


def elastic_front_seeds(space: SearchSpace, loss: PartTable, cost: PartTable, strategy: str, count: int) -> list[Seed]:
    """Make seeds as `front_seeds` does, where options of structure are searched, with costs between the least and the largest.

    Args:
        space: the space.
        loss: such as `elastic_loss`.
        cost: what the sizes are of, such as bytes.
        strategy: name of the seeds.
        count: number of sizes.
    """
    problem = ElasticProblem(Layout.of(space), loss, {"cost": cost})
    least, largest = elastic.cost_range(problem, "cost")
    front = elastic.front_at(problem, "cost", np.geomspace(least, largest, count + 2)[1:-1].tolist())
    return distinct(Seed(strategy, space.canonical(tuple(point))) for point in front.indices.tolist())
