"""The hypervolume of a search: how much its candidates dominate, and whether that still grows.

The reference point is the worst value of each objective among the candidates themselves. So only volumes of one search can be
compared.
"""

from collections.abc import Sequence

import moocore
import numpy as np

from hwsearch.search.objectives import Direction
from hwsearch.search.pareto import Values, as_losses


def hypervolume(values: Values, directions: Sequence[Direction], reference: Sequence[float]) -> float:
    """Compute the exact volume that the points dominate up to a reference point, in the product of the objectives' units.

    Args:
        values: [N, K]; points that are not finite, or do not beat the reference in every objective, add nothing.
        directions: K directions.
        reference: the worst corner.
    """
    corner = as_losses(np.asarray([reference], dtype=np.float64), directions)[0]
    losses = as_losses(values, directions)
    inside = (np.isfinite(losses) & (losses < corner)).all(axis=1)
    return float(moocore.hypervolume(losses[inside], ref=corner))


def worst(values: Values, directions: Sequence[Direction]) -> list[float] | None:
    """Return the worst value of each objective; None if every row has a NaN."""
    whole = values[~np.isnan(values).any(axis=1)]
    if not len(whole):
        return None
    return [
        float(column.min() if direction is Direction.MAXIMIZE else column.max())
        for column, direction in zip(whole.T, directions, strict=True)
    ]


def volumes_at(values: Values, directions: Sequence[Direction], counts: Sequence[int]) -> list[float]:
    """Compute, for each count, the hypervolume of that many first rows against the worst corner of all rows. It never falls.

    Args:
        values: [N, K], in the order of scoring; rows with a NaN add nothing.
        directions: K directions.
        counts: at most N each.
    """
    reference = worst(values, directions)
    if reference is None:
        return [0.0] * len(counts)
    return [hypervolume(values[:count], directions, reference) for count in counts]


def has_stalled(values: Values, directions: Sequence[Direction], window: int, growth: float) -> bool:
    """Whether the last rows raised the hypervolume by less than a given share of itself.

    Args:
        values: [N, K], in the order of scoring; rows with a NaN add nothing.
        directions: K directions.
        window: number of last rows. If no row before them dominates anything, nothing has stalled.
        growth: that share.
    """
    before, after = volumes_at(values, directions, (max(len(values) - window, 0), len(values)))
    return before > 0.0 and after - before < growth * before
