"""Pareto dominance.

One point dominates another if it is at least as good in every objective and better in one. Equal points do
not dominate each other, so both are on the front.
"""

from collections.abc import Sequence

import moocore
import numpy as np
import numpy.typing as npt

from hwsearch.search.objectives import Direction

Values = npt.NDArray[np.float64]


def non_dominated(values: Values, directions: Sequence[Direction]) -> npt.NDArray[np.bool_]:
    """Find the rows that no other row dominates.

    Args:
        values: [N, K], one row per candidate, one column per objective; a row with a NaN is never on the
            front.
        directions: K directions.

    Returns:
        [N] mask.
    """
    losses = as_losses(values, directions)
    whole = np.flatnonzero(~np.isnan(losses).any(axis=1))
    mask = np.zeros(len(losses), dtype=np.bool_)
    # Dominance depends on order alone. Infinite values crash the library (0.3.2), so it gets ranks.
    ranks = np.stack([np.unique(column, return_inverse=True)[1] for column in losses[whole].T], axis=1)
    mask[whole] = moocore.is_nondominated(ranks.astype(np.float64), keep_weakly=True)
    return mask


def as_losses(values: Values, directions: Sequence[Direction]) -> Values:
    """Change the signs of values so that less is better."""
    if values.ndim != 2 or values.shape[1] != len(directions):
        raise ValueError(f"values of shape {values.shape}; wanted one column for each of {len(directions)} directions")
    signs = np.array([-1.0 if direction is Direction.MAXIMIZE else 1.0 for direction in directions])
    losses: Values = values * signs
    return losses
