"""Scale-invariant signal-to-noise ratio as a measurement, in float64 (the training loss lives elsewhere)."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwsearch.metrics.signals import signal_pair

LIMIT_DB = 150.0
"""Results are held within +-150 dB. float32 audio resolves 24 bits, 144 dB: beyond it a figure is rounding,
and a perfect copy or an orthogonal estimate would put an infinity into a mean."""


def si_snr(estimate: ArrayLike, target: ArrayLike) -> float | NDArray[np.float64]:
    """SI-SNR in dB of `estimate` against `target`, both [..., samples]: one value per leading index.

    A float for 1-D input. Both are made zero-mean; with s_t = (<e, s> / <s, s>) s the value is 10
    log10(|s_t|^2 / |e - s_t|^2) (Luo and Mesgarani, "TaSNet", ICASSP 2018, eqs. 13 to 15), computed in
    float64.

    Raises:
        ValueError: the shapes differ.
        MetricUnavailable: a target or an estimate is silent, empty or not finite. In a batch the message
            gives the index: score utterances one by one to keep the others.
    """
    e, s = (signal - signal.mean(axis=-1, keepdims=True) for signal in signal_pair(estimate, target))
    # Unit peaks keep the squares away from underflow and overflow; the ratio does not see them.
    e = e / np.abs(e).max(axis=-1, keepdims=True)
    s = s / np.abs(s).max(axis=-1, keepdims=True)
    projection = (e * s).sum(axis=-1, keepdims=True) / (s * s).sum(axis=-1, keepdims=True) * s
    signal_energy = (projection**2).sum(axis=-1)
    noise_energy = ((e - projection) ** 2).sum(axis=-1)
    with np.errstate(divide="ignore"):
        decibels = 10 * (np.log10(signal_energy) - np.log10(noise_energy))
    limited = np.clip(decibels, -LIMIT_DB, LIMIT_DB)
    return float(limited) if limited.ndim == 0 else limited
