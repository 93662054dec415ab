"""Utterances of a corpus, and the loading of their speech."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from hwsearch.data.audio import SILENCE_PEAK, Recording, decode, open_recording
from hwsearch.data.seeding import generator
from hwsearch.errors import UserError

SPEECH_RMS = 0.05
"""Root mean square of all loaded speech: -26 dB of full scale, the customary speech level of ITU-T P.56."""

SHORTEST_SPEECH_S = 0.1
"""Shortest duration of an utterance in seconds, without the silence at its ends."""

_FRAME_S = 0.01
_TRIM_DB = 40.0
"""Frames at either end that are this far below the loudest frame are silence."""
_TRIM_MARGIN_S = 0.05
"""Silence kept at either end, because weak onsets and decays are below the threshold."""
_PAUSE_S = (0.06, 0.25)
"""Shortest and longest pause between two joined recordings."""
_FADE_S = 0.004
"""Duration of the fade at both ends of joined recordings, which avoids clicks."""


@dataclass(frozen=True)
class Utterance:
    """One utterance of one speaker.

    Attributes:
        id: unique in an experiment; begins with the corpus kind and a colon.
        speaker: unique in an experiment; begins with the corpus kind and a colon.
        root: the corpus's folder.
        paths: sound files relative to `root`, joined in this order with short pauses.
        transcript: lower-case words, or None if unknown.
        channel: channel taken from files with several, counted from 0; None for their average.
        span: first and last second of the utterance in its only file; None for whole files.
        by_content: whether the content of its files identifies it, not their names alone. Such files may be changed in place.
    """

    id: str
    speaker: str
    root: Path
    paths: tuple[str, ...]
    transcript: str | None
    channel: int | None = None
    span: tuple[float, float] | None = None
    by_content: bool = False


def load_speech(utterance: Utterance, sample_rate: int) -> NDArray[np.float32]:
    """Load an utterance as one channel, [samples], at `sample_rate` Hz.

    One channel is taken, or channels are averaged. The sample rate is converted, and silence at both ends is cut to 50 ms.
    Several files are joined, with pauses of 60 to 250 ms that depend only on the utterance's id. The result has an RMS of
    `SPEECH_RMS`; peaks may exceed 1.

    Raises:
        UserError: a file is missing, broken or silent, or there is too little speech.
    """
    parts = [_load_one(utterance, utterance.root / path, sample_rate) for path in utterance.paths]
    speech = parts[0] if len(parts) == 1 else _join(parts, utterance.id, sample_rate)
    if len(speech) < SHORTEST_SPEECH_S * sample_rate:
        raise UserError(
            f"{utterance.root / utterance.paths[0]}: lasts {len(speech) / sample_rate:g} s without silence; wanted speech of at "
            f"least {SHORTEST_SPEECH_S:g} s"
        )
    rms = math.sqrt(float(np.mean(np.square(speech, dtype=np.float64))))
    return speech * np.float32(SPEECH_RMS / rms)


def check_channel(channel: int | None, recording: Recording) -> None:
    """Raise `UserError` if a recording of several channels lacks the one to be taken."""
    if channel is not None and channel >= recording.channels > 1:
        last = recording.channels - 1
        raise UserError(
            f"{recording.path}: no channel {channel}, as data.corpora.channel wants; its channels are 0 to {last}: wanted one"
        )


def _load_one(utterance: Utterance, path: Path, sample_rate: int) -> NDArray[np.float32]:
    mono, rate = _one_channel(utterance, path)
    if rate != sample_rate:
        mono = soxr.resample(mono, rate, sample_rate)
    if len(mono) == 0 or np.abs(mono).max() < SILENCE_PEAK:
        taken = "its channels are averaged" if utterance.channel is None else f"channel {utterance.channel} is taken"
        raise UserError(f"{path}: silent once {taken}")
    return _trim(mono, sample_rate)


def _one_channel(utterance: Utterance, path: Path) -> tuple[NDArray[np.float32], int]:
    """One channel [samples] of a file or of the utterance's part of it, and the sample rate in Hz."""
    if utterance.span is None:
        samples, rate = decode(path)
    else:
        recording = open_recording(path)
        rate = recording.sample_rate
        first, last = (min(round(second * rate), recording.samples) for second in utterance.span)
        samples = recording.part(first, last - first)
    if utterance.channel is None or len(samples) == 1:
        mono: NDArray[np.float32] = samples.mean(axis=0)
        return mono, rate
    if utterance.channel >= len(samples):
        check_channel(utterance.channel, open_recording(path))
    return samples[utterance.channel], rate


def _trim(speech: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
    frame = round(_FRAME_S * sample_rate)
    padded = np.pad(speech, (0, -len(speech) % frame)).reshape(-1, frame)
    power = np.square(padded, dtype=np.float64).mean(axis=1)
    loud = np.flatnonzero(power > power.max() * 10 ** (-_TRIM_DB / 10))
    margin = round(_TRIM_MARGIN_S * sample_rate)
    return speech[max(0, loud[0] * frame - margin) : (loud[-1] + 1) * frame + margin]


def _join(parts: list[NDArray[np.float32]], name: str, sample_rate: int) -> NDArray[np.float32]:
    pauses = [round(sample_rate * seconds) for seconds in generator("pauses", name).uniform(*_PAUSE_S, size=len(parts) - 1)]
    pieces = [_fade(parts[0], sample_rate)]
    for pause, part in zip(pauses, parts[1:], strict=True):
        pieces += [np.zeros(pause, np.float32), _fade(part, sample_rate)]
    return np.concatenate(pieces)


def _fade(speech: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
    length = min(round(_FADE_S * sample_rate), len(speech) // 2)
    ramp = np.ones(len(speech), np.float32)
    ramp[:length] = np.linspace(0, 1, length, endpoint=False)
    ramp[len(ramp) - length :] = ramp[:length][::-1]
    return speech * ramp
