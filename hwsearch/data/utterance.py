"""What one utterance of a corpus is, how a corpus is written down, and how its speech is loaded."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from hwsearch.data.audio import SILENCE_PEAK, decode
from hwsearch.data.seeding import generator
from hwsearch.errors import UserError
from hwsearch.files import atomic_write_text, canonical_json

SPEECH_RMS = 0.05
"""Root mean square that all loaded speech is scaled to (-26 dB of full scale, the customary speech level of
ITU-T P.56)."""

_FRAME_S = 0.01
_TRIM_DB = 40.0
"""Frames this far below the loudest frame, at either end, are silence."""
_TRIM_MARGIN_S = 0.05
"""Silence left at either end: weak onsets and decays lie below the threshold."""
_PAUSE_S = (0.06, 0.25)
"""Shortest and longest pause between two joined recordings."""
_FADE_S = 0.004
"""Joined recordings fade in and out this long; hard cuts would click."""


@dataclass(frozen=True)
class Utterance:
    """One utterance of one speaker.

    Attributes:
        id: unique among all corpora of an experiment; begins with the corpus kind, then a colon.
        speaker: unique among all corpora; begins with the corpus kind, then a colon.
        root: the corpus's folder.
        paths: sound files relative to `root`, joined in this order with short pauses.
        transcript: lower-case words, or None where nobody wrote them down.
    """

    id: str
    speaker: str
    root: Path
    paths: tuple[str, ...]
    transcript: str | None

    def to_dict(self) -> dict[str, Any]:
        """The utterance as JSON, without `root`, which is where the manifest lies."""
        return {
            "id": self.id,
            "speaker": self.speaker,
            "paths": list(self.paths),
            "transcript": self.transcript,
        }

    @staticmethod
    def from_dict(value: Any, root: Path) -> "Utterance":
        """The inverse of `to_dict`.

        Raises:
            ValueError: `value` is not what `to_dict` gives.
        """
        match value:
            case {
                "id": str(name),
                "speaker": str(speaker),
                "paths": [*paths],
                "transcript": str() | None as words,
            } if len(value) == 4 and paths and all(isinstance(path, str) for path in paths):
                return Utterance(name, speaker, root, tuple(paths), words)
        raise ValueError("wanted an object of id, speaker, paths and transcript")


def write_manifest(path: Path, utterances: tuple[Utterance, ...]) -> None:
    """Write utterances as JSON lines, atomically; `path` lies in their common root."""
    atomic_write_text(path, "".join(canonical_json(utterance.to_dict()) + "\n" for utterance in utterances))


def read_manifest(path: Path) -> tuple[Utterance, ...]:
    """Read what `write_manifest` wrote; the manifest's folder is the root.

    Raises:
        UserError: the file is missing or a line is broken; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; wanted a corpus manifest") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); wanted a corpus manifest") from None
    utterances = []
    for number, line in enumerate(lines, start=1):
        try:
            utterances.append(Utterance.from_dict(json.loads(line), path.parent))
        except ValueError as error:
            raise UserError(f"{path}:{number}: broken line in a corpus manifest ({error})") from None
    return tuple(utterances)


def load_speech(utterance: Utterance, sample_rate: int) -> NDArray[np.float32]:
    """Load an utterance as one channel, [samples], at `sample_rate` Hz.

    Channels are averaged, the rate is converted, silence of more than 50 ms at either end is cut, several
    files are joined with pauses of 60 to 250 ms that depend on the utterance's id alone, and the whole is
    scaled to an RMS of `SPEECH_RMS` (peaks may pass 1).

    Raises:
        UserError: a file is missing, broken or silent; names the file.
    """
    parts = [_load_one(utterance.root / path, sample_rate) for path in utterance.paths]
    speech = parts[0] if len(parts) == 1 else _join(parts, utterance.id, sample_rate)
    rms = math.sqrt(float(np.mean(np.square(speech, dtype=np.float64))))
    return speech * np.float32(SPEECH_RMS / rms)


def _load_one(path: Path, sample_rate: int) -> NDArray[np.float32]:
    samples, rate = decode(path)
    mono: NDArray[np.float32] = samples.mean(axis=0)
    if rate != sample_rate:
        mono = soxr.resample(mono, rate, sample_rate)
    if np.abs(mono).max() < SILENCE_PEAK:
        raise UserError(f"{path}: silent once its channels are averaged")
    return _trim(mono, sample_rate)


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
