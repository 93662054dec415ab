"""Checks that every signal metric shares."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwsearch.metrics.errors import MetricUnavailable

SILENCE = 1e-9
"""A signal is silent if it deviates from its mean by less than this share of its peak: such deviations are rounding errors."""


def signal_pair(estimate: ArrayLike, target: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two signals of the same shape [..., samples] as float64, each with sound in it.

    Raises:
        ValueError: the shapes differ or there is no sample axis.
        MetricUnavailable: a sample is not finite, or one of the signals is empty or silent (constant).
    """
    pair = np.asarray(estimate, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if pair[0].shape != pair[1].shape or pair[0].ndim == 0:
        raise ValueError(f"estimate {pair[0].shape} and target {pair[1].shape} must have one shape [..., samples]")
    for name, signal in zip(("estimate", "target"), pair, strict=True):
        if signal.shape[-1] == 0:
            raise MetricUnavailable(f"{name} has no samples")
        if not np.isfinite(signal).all():
            raise MetricUnavailable(f"{name} has samples that are not finite")
        deviation = np.abs(signal - signal.mean(axis=-1, keepdims=True)).max(axis=-1)
        silent = np.argwhere(deviation <= SILENCE * np.abs(signal).max(axis=-1))
        if len(silent):
            index = ", ".join(str(number) for number in silent[0])
            raise MetricUnavailable(f"{name} is silent" + (f" at index {index}" if index else ""))
    return pair
