"""The expected improvement of the front of quality against one cost by a candidate."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

FloatArray = npt.NDArray[np.float64]

_SMALLEST_DEVIATION = 1e-9
"""Deviation of a certain quality."""

_NEGLIGIBLE = 45.0
"""Lifts below exp(-45) = 3e-20 of a candidate's largest are left out: all together, they are less than rounding."""

_BLOCK = 16_000
"""Number of pairs of a candidate and a step of the front that are computed together, so that they stay in the cache."""


def expected_improvement(
    cost: FloatArray, mean: FloatArray, deviation: FloatArray, front: tuple[FloatArray, FloatArray], ends: tuple[float, float]
) -> FloatArray:
    """Compute the expected growth of the hypervolume when candidates of known cost and uncertain quality are scored.

    The front is a staircase: the best known quality at a cost or below. A candidate lifts it from its own cost upwards, wherever
    its quality is higher. For a normal quality, the expected lift has the closed form of expected improvement, integrated over
    the cost (Jones, Schonlau and Welch 1998, equation 15).

    Args:
        cost: [N] costs of the candidates.
        mean: [N] expected qualities.
        deviation: [N] standard deviations of the qualities.
        front: costs [F], rising, and qualities [F] of known candidates, which may be dominated.
        ends: the lowest quality and the largest cost that count.

    Returns:
        [N], in units of quality times cost.
    """
    lowest, largest = ends
    levels = np.maximum.accumulate(np.append(lowest, front[1]))
    edges = np.concatenate([[-np.inf], front[0], [largest]])
    starts, stops = edges[:-1], np.minimum(edges[1:], largest)
    sigma = np.maximum(deviation, _SMALLEST_DEVIATION)
    # Levels rise, so a candidate lifts the first of the steps that end above its cost most.
    first = np.minimum(np.searchsorted(stops, cost, side="right"), len(levels) - 1)
    z = np.minimum((mean - levels[first]) / sigma, 0.0)
    last = np.searchsorted(levels, mean + sigma * np.sqrt(z * z + 2.0 * _NEGLIGIBLE))
    counts = np.maximum(last - first, 1)
    total = np.empty(len(cost))
    for block in _blocks(counts):
        count = counts[block]
        begins = np.cumsum(count) - count
        step = np.arange(count.sum()) + np.repeat(first[block] - begins, count)
        lift = _lift(np.repeat(mean[block], count) - levels[step], np.repeat(sigma[block], count))
        lift *= np.maximum(stops[step] - np.maximum(starts[step], np.repeat(cost[block], count)), 0.0)
        total[block] = np.add.reduceat(lift, begins)
    return total


def _lift(above: FloatArray, sigma: FloatArray) -> FloatArray:
    """Return the expected lift of levels by qualities with means `above` them."""
    z = above / sigma
    density = np.exp(-0.5 * z * z) / np.sqrt(2.0 * np.pi)
    lift: FloatArray = (z * ndtr(z) + density) * sigma
    return lift


def _blocks(counts: npt.NDArray[np.int64]) -> Iterator[slice]:
    """Yield consecutive candidates with at most `_BLOCK` pairs, or one candidate with more."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        done = ends[start] - counts[start]
        stop = max(start + 1, int(np.searchsorted(ends, done + _BLOCK, side="right")))
        yield slice(start, stop)
        start = stop
