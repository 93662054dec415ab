"""Pareto dominance and the hypervolume.

One point dominates another if it is at least as good in every objective and better in one. Equal points do
not dominate each other, so both are on the front.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hwsearch.search.objectives import Direction

Values = npt.NDArray[np.float64]

BLOCK_ROWS = 256
"""Rows compared at once: bounds the memory, and keeps the comparisons in the cache."""


def non_dominated(values: Values, directions: Sequence[Direction]) -> npt.NDArray[np.bool_]:
    """Which rows no other row dominates.

    Args:
        values: [N, K], one row per candidate, one column per objective; a row with a NaN is never on the
            front.
        directions: K directions.

    Returns:
        [N] mask.
    """
    losses = as_losses(values, directions)
    order = np.flatnonzero(~np.isnan(losses).any(axis=1))
    # In lexicographic order a row can only be dominated by an earlier one.
    order = order[np.lexsort(losses[order].T[::-1])]
    front = order[:0]
    for start in range(0, len(order), BLOCK_ROWS):
        block = order[start : start + BLOCK_ROWS]
        block = block[~_dominated(losses[block], losses[front])]
        front = np.concatenate([front, block[~_dominated(losses[block], losses[block])]])
    mask = np.zeros(len(losses), dtype=np.bool_)
    mask[front] = True
    return mask


def _dominated(losses: Values, by: Values) -> npt.NDArray[np.bool_]:
    """Which of the N rows are dominated by one of the M rows: [N] mask."""
    no_worse = np.ones((len(losses), len(by)), dtype=np.bool_)
    better = np.zeros_like(no_worse)
    for mine, theirs in zip(losses.T, by.T, strict=True):
        no_worse &= theirs <= mine[:, None]
        better |= theirs < mine[:, None]
    return np.asarray((no_worse & better).any(axis=1))


def hypervolume_2d(values: Values, directions: Sequence[Direction], reference: Sequence[float]) -> float:
    """Area that the points dominate within a reference point, exactly.

    Args:
        values: [N, 2]; points that do not beat the reference in both objectives add nothing, nor do NaN.
        directions: 2 directions.
        reference: the worst corner, in the units of the objectives.

    Returns:
        The area, in the product of the objectives' units.
    """
    corner = as_losses(np.asarray([reference], dtype=np.float64), directions)[0]
    losses = as_losses(values, directions)
    losses = losses[(losses < corner).all(axis=1)]
    losses = losses[np.lexsort(losses.T[::-1])]
    if not len(losses):
        return 0.0
    # Going right, each point adds the rectangle from it to the corner, below the lowest point so far.
    floor = np.minimum.accumulate(np.concatenate([corner[1:], losses[:, 1]]))
    return float(((corner[0] - losses[:, 0]) * (floor[:-1] - floor[1:])).sum())


def as_losses(values: Values, directions: Sequence[Direction]) -> Values:
    """The values with signs such that less is better."""
    if values.ndim != 2 or values.shape[1] != len(directions):
        raise ValueError(f"values of shape {values.shape}; wanted one column for each of {len(directions)} directions")
    signs = np.array([-1.0 if direction is Direction.MAXIMIZE else 1.0 for direction in directions])
    losses: Values = values * signs
    return losses
