"""How much a candidate may be expected to lift the front of quality against one cost."""

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

FloatArray = npt.NDArray[np.float64]

_SMALLEST_DEVIATION = 1e-9
"""Stands for certainty."""

_REACH = 13.0
"""Deviations from the lowest level a candidate may lift to one whose lift is less than exp(-13^2 / 2) = 2e-37 of that."""


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
    spans = np.clip(np.minimum(edges[1:], largest) - np.maximum(edges[:-1], cost[:, None]), 0.0, None)
    sigma = np.maximum(deviation, _SMALLEST_DEVIATION)[:, None]
    z = (mean[:, None] - levels) / sigma
    # The normal distribution is what takes time, and most steps lie below a candidate's own cost, or so far above the first one
    # that lifting them adds less than rounding.
    counted = spans > 0.0
    first = z[np.arange(len(z)), counted.argmax(axis=1)]
    counted &= z > np.minimum(first, 0.0)[:, None] - _REACH
    lift, z = np.zeros(spans.shape), z[counted]
    lift[counted] = z * ndtr(z) + np.exp(-0.5 * z * z) / np.sqrt(2.0 * np.pi)
    total: FloatArray = (spans * (sigma * lift)).sum(axis=1)
    return total
