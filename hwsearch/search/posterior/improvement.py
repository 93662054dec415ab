"""How much a candidate may be expected to lift the front of quality against one cost."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

FloatArray = npt.NDArray[np.float64]

_SMALLEST_DEVIATION = 1e-9
"""Stands for certainty."""

_NEGLIGIBLE = 45.0
"""Lifts below exp(-45) = 3e-20 of a candidate's largest are left out: all of them together are less than rounding."""

_BLOCK = 16_000
"""Pairs of a candidate and a step of the front that are looked at together: they stay in the cache."""


def expected_improvement(
    cost: FloatArray, mean: FloatArray, deviation: FloatArray, front: tuple[FloatArray, FloatArray], ends: tuple[float, float]
) -> FloatArray:
    """Expected growth of the hypervolume when a candidate of known cost and uncertain quality is scored.

    The front is a staircase: the best quality known at a cost or below. A candidate lifts it from its own cost upwards, wherever
    its quality is above; the expectation of that lift under a normal quality has the closed form of expected improvement (Jones,
    Schonlau and Welch 1998, equation 15), integrated over the cost.

    Args:
        cost: [N] costs of the candidates.
        mean: [N] their expected qualities.
        deviation: [N] standard deviations of these.
        front: costs [F], rising, and qualities [F] of what is known; need not be non-dominated.
        ends: the quality below which nothing counts, and the cost above which nothing does.

    Returns:
        [N], in units of quality times cost.
    """
    lowest, largest = ends
    levels = np.maximum.accumulate(np.append(lowest, front[1]))
    edges = np.concatenate([[-np.inf], front[0], [largest]])
    starts, stops = edges[:-1], np.minimum(edges[1:], largest)
    sigma = np.maximum(deviation, _SMALLEST_DEVIATION)
    # Of the steps that end above a candidate's cost, it lifts the first one most: levels rise.
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
    """Expected lift of levels by qualities whose means are `above` them."""
    z = above / sigma
    density = np.exp(-0.5 * z * z) / np.sqrt(2.0 * np.pi)
    lift: FloatArray = (z * ndtr(z) + density) * sigma
    return lift


def _blocks(counts: npt.NDArray[np.int64]) -> Iterator[slice]:
    """Consecutive candidates with `_BLOCK` pairs at most, or one with more."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        done = ends[start] - counts[start]
        stop = max(start + 1, int(np.searchsorted(ends, done + _BLOCK, side="right")))
        yield slice(start, stop)
        start = stop
