"""Pareto dominance, and how much of the objective space a search's candidates dominate.

One point dominates another if it is at least as good in every objective and better in one. Equal points do not dominate each
other, so both are on the front. Values are [N, K]: one row per candidate, one column per objective. A row with a NaN is never on
the front and adds no hypervolume.
"""

from collections.abc import Sequence

import moocore
import numpy as np
import numpy.typing as npt

from hwsearch.search.objectives import Direction

Values = npt.NDArray[np.float64]


def non_dominated(values: Values, directions: Sequence[Direction]) -> npt.NDArray[np.bool_]:
    """Find the rows that no other row dominates; returns a mask [N]."""
    losses = _as_losses(values, directions)
    whole = np.flatnonzero(~np.isnan(losses).any(axis=1))
    mask = np.zeros(len(losses), dtype=np.bool_)
    # Dominance depends on order alone. Infinite values crash the library (0.3.2), so it gets ranks.
    ranks = np.stack([np.unique(column, return_inverse=True)[1] for column in losses[whole].T], axis=1)
    mask[whole] = moocore.is_nondominated(ranks.astype(np.float64), keep_weakly=True)
    return mask


def best_rows(values: Values, directions: Sequence[Direction], keep: int) -> list[int]:
    """Choose at most `keep` rows: whole fronts, the best first, and of the last front the rows that lie farthest apart."""
    left = np.arange(len(values))
    chosen: list[int] = []
    while len(left) and len(chosen) < keep:
        on_front = non_dominated(values[left], directions)
        front = left[on_front]
        room = keep - len(chosen)
        if len(front) > room:
            front = front[np.argsort(-_crowding(values[front]), kind="stable")[:room]]
        chosen += front.tolist()
        left = left[~on_front]
    return chosen


def hypervolume(values: Values, directions: Sequence[Direction], reference: Sequence[float]) -> float:
    """Compute the exact volume that the rows dominate up to a reference point, in the product of the objectives' units.

    Rows that are not finite, or do not beat the reference in every objective, add nothing.
    """
    corner = _as_losses(np.asarray([reference], dtype=np.float64), directions)[0]
    losses = _as_losses(values, directions)
    inside = (np.isfinite(losses) & (losses < corner)).all(axis=1)
    return float(moocore.hypervolume(losses[inside], ref=corner))


def volumes_at(values: Values, directions: Sequence[Direction], counts: Sequence[int]) -> list[float]:
    """Compute, for each count, the hypervolume of that many first rows. It never falls.

    The reference point is the worst value of each objective among all rows, so only volumes of one search can be compared.
    """
    losses = _as_losses(values, directions)
    whole = losses[~np.isnan(losses).any(axis=1)]
    if not len(whole):
        return [0.0] * len(counts)
    worst = _as_losses(whole.max(axis=0)[None], directions)[0].tolist()
    return [hypervolume(values[:count], directions, worst) for count in counts]


def has_stalled(values: Values, directions: Sequence[Direction], window: int, growth: float) -> bool:
    """Whether the last `window` rows raised the hypervolume by less than the share `growth` of itself.

    If no row before them dominates anything, nothing has stalled.
    """
    before, after = volumes_at(values, directions, (max(len(values) - window, 0), len(values)))
    return before > 0.0 and after - before < growth * before


def _as_losses(values: Values, directions: Sequence[Direction]) -> Values:
    """Change the signs of values so that less is better; a second call changes them back."""
    if values.ndim != 2 or values.shape[1] != len(directions):
        raise ValueError(f"values of shape {values.shape}; wanted one column for each of {len(directions)} directions")
    losses: Values = values * np.array([-1.0 if direction is Direction.MAXIMIZE else 1.0 for direction in directions])
    return losses


def _crowding(values: Values) -> Values:
    """Compute the crowding distance (Deb et al. 2002, NSGA-II, section III.B): how far apart a row's neighbours are; infinite at
    the ends.
    """
    distance = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]]
        distance[order[[0, -1]]] = np.inf
        if span > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return distance
