"""PESQ and STOI of one utterance, with one typed error where they have no value."""

import warnings
from enum import Enum

import numpy as np
import pesq
import pystoi
from numpy.typing import ArrayLike, NDArray

from hwsearch.metrics.errors import MetricUnavailable
from hwsearch.metrics.signals import signal_pair

SHORTEST_PESQ_SECONDS = 0.25
"""The reference implementation of P.862 refuses shorter signals."""

LONGEST_PESQ_SECONDS = 20.0
"""The reference implementation writes past its arrays, and takes the process down, at more than 50 utterances
of the target. An utterance counts from 0.2 s and ends with a pause of 0.2 s, so that 20 s cannot hold
more."""

STOI_TOO_SHORT = 1e-5
"""What pystoi returns, with only a warning, for under 30 frames (0.4 s) of speech."""


class Band(Enum):
    """The listening band of PESQ: narrow (ITU-T P.862 with the P.862.1 mapping) or wide (P.862.2)."""

    NARROW = "nb"
    WIDE = "wb"


def pesq_score(estimate: ArrayLike, target: ArrayLike, sample_rate: int, band: Band | None = None) -> float:
    """PESQ (MOS-LQO, about 1 to 4.6, higher is better) of `estimate` against `target`, both [samples].

    `sample_rate` is 8000 (narrow band only) or 16000 (wide band unless `band` says narrow). Wide band sits on
    its floor for overlapped speech; narrow band still tells mixtures apart.

    Raises:
        ValueError: unequal shapes, more than one channel, or a rate and band that P.862 does not define.
        MetricUnavailable: silent, shorter than 0.25 s, longer than 20 s, or refused by the algorithm (for
            one, no utterance found).
    """
    chosen = band or (Band.NARROW if sample_rate == 8000 else Band.WIDE)
    if sample_rate not in (8000, 16000) or (sample_rate == 8000 and chosen is Band.WIDE):
        found = f"{sample_rate} Hz, {chosen.name.lower()} band"
        raise ValueError(f"PESQ at {found}: defined are 8000 Hz narrow and 16000 Hz narrow or wide")
    e, s = _mono_pair(estimate, target)
    seconds = s.size / sample_rate
    if not SHORTEST_PESQ_SECONDS <= seconds <= LONGEST_PESQ_SECONDS:
        bounds = f"{SHORTEST_PESQ_SECONDS:g} to {LONGEST_PESQ_SECONDS:g} s"
        raise MetricUnavailable(f"{seconds:.2f} s long; PESQ takes {bounds}")
    try:
        return float(pesq.pesq(sample_rate, s, e, chosen.value))
    except pesq.PesqError as error:
        raise MetricUnavailable(f"PESQ refused: {_text(error)}") from error


def stoi_score(estimate: ArrayLike, target: ArrayLike, sample_rate: int) -> float:
    """STOI (about 0 to 1, higher is better) of `estimate` against `target`, both [samples] at `sample_rate`
    Hz.

    Taal et al., IEEE TASLP 19(7), 2011. It works at 10 kHz inside.

    Raises:
        ValueError: unequal shapes or more than one channel.
        MetricUnavailable: silent, or under 30 frames (about 0.4 s) remain once the target's pauses are
            removed.
    """
    e, s = _mono_pair(estimate, target)
    with warnings.catch_warnings():
        # Its warning repeats what the returned marker says; the marker becomes the exception below.
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
    """Its C layer carries messages as bytes."""
    message = error.args[0] if error.args else type(error).__name__
    return message.decode("ascii", "replace") if isinstance(message, bytes) else str(message)
