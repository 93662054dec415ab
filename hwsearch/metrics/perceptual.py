"""PESQ and STOI of one utterance."""

import warnings

import numpy as np
import pesq
import pystoi
from numpy.typing import ArrayLike, NDArray

from hwsearch.metrics.errors import MetricUnavailable
from hwsearch.metrics.si_snr import signal_pair

PESQ_BANDS = {8000: "nb", 16000: "wb"}
"""Listening band by sample rate in Hz: narrow (ITU-T P.862 with the P.862.1 mapping) or wide (P.862.2)."""

SHORTEST_PESQ_SECONDS = 0.25
"""The reference implementation of P.862 refuses shorter signals."""

LONGEST_PESQ_SECONDS = 20.0
"""The reference implementation crashes at more than 50 utterances in the target. It counts utterances from 0.2 s with pauses of
0.2 s between them, so 20 s cannot hold more."""

STOI_TOO_SHORT = 1e-5
"""Returned by pystoi for less than 30 frames (0.4 s) of speech, with a warning."""


def pesq_score(estimate: ArrayLike, target: ArrayLike, sample_rate: int) -> float:
    """PESQ of `estimate` against `target`, both [samples], as MOS-LQO: about 1 to 4.6, higher is better.

    Raises:
        ValueError: unequal shapes, more than one channel, or a sample rate not in `PESQ_BANDS`.
        MetricUnavailable: silent, shorter than 0.25 s, longer than 20 s, or refused by the algorithm.
    """
    if sample_rate not in PESQ_BANDS:
        raise ValueError(f"PESQ at {sample_rate} Hz; it is defined at 8000 and 16000 Hz")
    e, s = _mono_pair(estimate, target)
    seconds = s.size / sample_rate
    if not SHORTEST_PESQ_SECONDS <= seconds <= LONGEST_PESQ_SECONDS:
        bounds = f"{SHORTEST_PESQ_SECONDS:g} to {LONGEST_PESQ_SECONDS:g} s"
        raise MetricUnavailable(f"{seconds:.2f} s long; PESQ takes {bounds}")
    try:
        return float(pesq.pesq(sample_rate, s, e, PESQ_BANDS[sample_rate]))
    except pesq.PesqError as error:
        raise MetricUnavailable(f"PESQ refused: {_text(error)}") from error


def stoi_score(estimate: ArrayLike, target: ArrayLike, sample_rate: int) -> float:
    """STOI of `estimate` against `target`, both [samples] at `sample_rate` Hz: about 0 to 1, higher is better.

    Taal et al., IEEE TASLP 19(7), 2011.

    Raises:
        ValueError: unequal shapes or more than one channel.
        MetricUnavailable: silent, or less than 30 frames (about 0.4 s) of the target are left without its pauses.
    """
    e, s = _mono_pair(estimate, target)
    with warnings.catch_warnings():
        # The warning comes with STOI_TOO_SHORT, which becomes an exception below.
        warnings.simplefilter("ignore", RuntimeWarning)
        score = float(pystoi.stoi(s, e, sample_rate))
    if score == STOI_TOO_SHORT:
        raise MetricUnavailable("STOI needs 30 frames (about 0.4 s) of speech in the target")
    return score


def _mono_pair(estimate: ArrayLike, target: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    e, s = signal_pair(estimate, target)
    if s.ndim != 1:
        raise ValueError(f"one channel [samples] at a time, not {s.shape}")
    return e, s


def _text(error: Exception) -> str:
    """The message of a PESQ error, which may be bytes."""
    message = error.args[0] if error.args else type(error).__name__
    return message.decode("ascii", "replace") if isinstance(message, bytes) else str(message)
