"""Recorded mixtures for tests: babble of two speakers in six or one channels, with their list."""

from pathlib import Path

import numpy as np
import soundfile as sf

from .conftest import babble

HEADER = "mixture,target,doa_deg,transcript,speaker,split"


def recorded(folder: Path, splits: tuple[str, ...] = ("test",), count: int = 3, rate: int = 8000, channels: int = 6) -> Path:
    """Mixtures of 1.5 s and more, in WAV and FLAC, in a list of this project's columns."""
    lines = [HEADER]
    for split in splits:
        (folder / split).mkdir(parents=True)
        for number in range(count):
            seconds, seed = 1.5 + 0.1 * number, hash_of(split) + 10 * number
            target, other = babble(seconds, seed, rate), babble(seconds, seed + 1, rate)
            sound = np.stack([np.roll(target, 2 * mic) + np.roll(other, 3 * mic) for mic in range(channels)], axis=1)
            names = [f"{split}/{what} {number}.{'flac' if number else 'wav'}" for what in ("mix", "tär")]
            sf.write(folder / names[0], 0.5 * sound, rate)
            sf.write(folder / names[1], 0.5 * target, rate)
            lines.append(f"{names[0]},{names[1]},{30 * number + 10},Words {number},{split} speaker {number},{split}")
    (folder / "mixtures.csv").write_text("\n".join(lines) + "\n")
    return folder / "mixtures.csv"


def hash_of(split: str) -> int:
    return 1000 * ["train", "validation", "test"].index(split)
