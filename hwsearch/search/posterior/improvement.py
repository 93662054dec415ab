"""How much a candidate may be expected to lift the front of quality against one cost."""

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

FloatArray = npt.NDArray[np.float64]

_SMALLEST_DEVIATION = 1e-9
"""Stands for certainty."""

_REACH = 13.0
"""Deviations from the lowest level a candidate may lift to one whose lift is less than exp(-13^2 / 2) = 2e-37 of that."""


_BLOCK = 40_000
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
    total = np.empty(len(cost))
    rows = max(1, _BLOCK // len(levels))
    for start in range(0, len(cost), rows):
        block = slice(start, start + rows)
        spans = np.maximum(stops - np.maximum(starts, cost[block, None]), 0.0)
        total[block] = (spans * _lift(mean[block, None], sigma[block, None], levels, spans > 0.0)).sum(axis=1)
    return total


def _lift(mean: FloatArray, sigma: FloatArray, levels: FloatArray, counted: npt.NDArray[np.bool_]) -> FloatArray:
    """Expected lift [N, levels] of the levels, rising, by candidates [N, 1], where it counts.

    The normal distribution is what takes time, and most steps lie below a candidate's own cost, or so far above the first one
    that lifting them adds less than rounding: those are 0.
    """
    z = (mean - levels) / sigma
    first = z[np.arange(len(z)), counted.argmax(axis=1)]
    counted &= z > np.minimum(first, 0.0)[:, None] - _REACH
    lift, z = np.zeros(z.shape), z[counted]
    lift[counted] = z * ndtr(z) + np.exp(-0.5 * z * z) / np.sqrt(2.0 * np.pi)
    lift *= sigma
    return lift
