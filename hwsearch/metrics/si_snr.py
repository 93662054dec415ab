"""Scale-invariant signal-to-noise ratio as a measurement, and the checks of signals that all metrics share.

The training loss is in `hwsearch.training.loss`.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwsearch.metrics.errors import MetricUnavailable

LIMIT_DB = 150.0
"""Results are limited to +-150 dB. float32 audio resolves 24 bits (144 dB), and a mean must not contain an infinity."""

SILENCE = 1e-9
"""A signal is silent if it deviates from its mean by less than this share of its peak: such deviations are rounding errors."""


def si_snr(estimate: ArrayLike, target: ArrayLike) -> float | NDArray[np.float64]:
    """SI-SNR in dB of `estimate` against `target`, both [..., samples]: one value per leading index, a float for 1-D input.

    Both are made zero-mean. With s_t = (<e, s> / <s, s>) s the value is 10 log10(|s_t|^2 / |e - s_t|^2) (Luo and Mesgarani,
    "TaSNet", ICASSP 2018, eqs. 13 to 15).

    Raises:
        ValueError: the shapes differ.
        MetricUnavailable: an estimate or a target is silent, empty or not finite.
    """
    e, s = (signal - signal.mean(axis=-1, keepdims=True) for signal in signal_pair(estimate, target))
    # Unit peaks avoid underflow and overflow of the squares. The ratio does not change.
    e = e / np.abs(e).max(axis=-1, keepdims=True)
    s = s / np.abs(s).max(axis=-1, keepdims=True)
    projection = (e * s).sum(axis=-1, keepdims=True) / (s * s).sum(axis=-1, keepdims=True) * s
    signal_energy = (projection**2).sum(axis=-1)
    noise_energy = ((e - projection) ** 2).sum(axis=-1)
    with np.errstate(divide="ignore"):
        decibels = 10 * (np.log10(signal_energy) - np.log10(noise_energy))
    limited = np.clip(decibels, -LIMIT_DB, LIMIT_DB)
    return float(limited) if limited.ndim == 0 else limited


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
