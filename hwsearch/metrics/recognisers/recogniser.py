"""What a recogniser is, and audio brought to the rate it listens at."""

from typing import Protocol

import numpy as np
import soxr
from numpy.typing import NDArray


class Recogniser(Protocol):
    """Something that writes down the words of one voice.

    `name` goes beside every figure. `closed_vocabulary` says that it knows which words can occur, so that its
    word error rate compares separators and says nothing of open speech. `sample_rate` is in Hz.
    """

    @property
    def name(self) -> str: ...

    @property
    def closed_vocabulary(self) -> bool: ...

    @property
    def sample_rate(self) -> int: ...

    def transcribe(self, audio: NDArray[np.float32]) -> str:
        """Words of `audio` [samples] at `sample_rate`, lower case, separated by spaces; empty for silence."""
        ...


def resample(audio: NDArray[np.float32], from_rate: int, to_rate: int) -> NDArray[np.float32]:
    """`audio` [samples] at `from_rate` Hz brought to `to_rate` Hz (soxr, high quality)."""
    if from_rate == to_rate:
        return audio
    return np.asarray(soxr.resample(audio, from_rate, to_rate), dtype=np.float32)


def transcribe_at(recogniser: Recogniser, audio: NDArray[np.float32], sample_rate: int) -> str:
    """Words of `audio` [samples] at any `sample_rate` Hz."""
    return recogniser.transcribe(resample(audio, sample_rate, recogniser.sample_rate))


def listenable(audio: NDArray[np.float32]) -> bool:
    """True if `audio` [samples] holds sound. Raises `ValueError` unless it is one finite channel."""
    if audio.ndim != 1 or not np.isfinite(audio).all():
        raise ValueError(f"a recogniser takes one channel [samples] of finite values, not shape {audio.shape}")
    return bool(audio.size) and bool(np.ptp(audio) > 0)
