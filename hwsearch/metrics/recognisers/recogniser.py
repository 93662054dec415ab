"""The contract of recognisers, and the word errors they hear."""

from typing import Protocol

import numpy as np
import soxr
from numpy.typing import NDArray

from hwsearch.metrics.wer import WordErrors, word_errors


class Recogniser(Protocol):
    """Writes down the words of one voice; its vocabulary is closed, so its word error rates only compare separators."""

    @property
    def sample_rate(self) -> int:
        """The sampling rate that it takes, in Hz."""
        ...

    def can_write(self, transcript: str) -> bool:
        """Whether the transcript is in the recogniser's language."""
        ...

    def transcribe(self, audio: NDArray[np.float32]) -> str:
        """Words of `audio` [samples] at `sample_rate`, lower case, separated by spaces; empty for silence."""
        ...


def transcribe_at(recogniser: Recogniser, audio: NDArray[np.float32], sample_rate: int) -> str:
    """Words of `audio` [samples] at any `sample_rate` Hz."""
    if sample_rate != recogniser.sample_rate:
        audio = soxr.resample(audio, sample_rate, recogniser.sample_rate)
    return recogniser.transcribe(audio)


def heard_errors(
    recogniser: Recogniser | None, transcript: str | None, audio: NDArray[np.float32], sample_rate: int
) -> WordErrors | None:
    """Word errors of `audio` [samples] at `sample_rate` Hz.

    Returns:
        None without a recogniser or a transcript, or where the recogniser cannot write the transcript.
    """
    if recogniser is None or transcript is None or not recogniser.can_write(transcript):
        return None
    return word_errors(transcript, transcribe_at(recogniser, audio, sample_rate))


def listenable(audio: NDArray[np.float32]) -> bool:
    """Whether `audio` [samples] holds sound. Raises `ValueError` unless it is one finite channel."""
    if audio.ndim != 1 or not np.isfinite(audio).all():
        raise ValueError(f"a recogniser takes one channel [samples] of finite values, not shape {audio.shape}")
    return bool(audio.size) and bool(np.ptp(audio) > 0)
