"""Checks that every signal metric shares."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwsearch.metrics.errors import MetricUnavailable

SILENCE = 1e-9
"""A signal that leaves its mean by less than this share of its peak is rounding on a constant: silence."""

SHOWN_INDICES = 5


def signal_pair(estimate: ArrayLike, target: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two equally long signals [..., samples] as float64, each with sound in it.

    Raises:
        ValueError: the shapes differ or there is no sample axis: the caller compared the wrong things.
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
        silent = _silent(signal)
        if silent.any():
            raise MetricUnavailable(f"{name} is silent{_where(silent)}")
    return pair


def _silent(signal: NDArray[np.float64]) -> NDArray[np.bool_]:
    deviation = np.abs(signal - signal.mean(axis=-1, keepdims=True)).max(axis=-1)
    return np.asarray(deviation <= SILENCE * np.abs(signal).max(axis=-1))


def _where(silent: NDArray[np.bool_]) -> str:
    if silent.ndim == 0:
        return ""
    indices = [tuple(int(i) for i in index) for index in np.argwhere(silent)]
    shown = ", ".join(str(index if len(index) > 1 else index[0]) for index in indices[:SHOWN_INDICES])
    return f" at index {shown}{', ...' if len(indices) > SHOWN_INDICES else ''}"
