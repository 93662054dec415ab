"""Tiny corpora made of shaped noise, so that the tests need no recordings."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

RATE = 8000


def babble(seconds: float, seed: int, rate: int = RATE) -> np.ndarray:
    """Noise with a syllable-like envelope and no silence at either end."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    return (0.2 * random.standard_normal(len(time)) * (1.2 + np.sin(2 * np.pi * 4 * time))).astype(np.float32)


@pytest.fixture(scope="session")
def csv_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine speakers of three utterances each, 0.5 to 0.8 s, with transcripts."""
    root = tmp_path_factory.mktemp("csv")
    lines = ["path,speaker,transcript"]
    for speaker in range(9):
        for take in range(3):
            number = 3 * speaker + take
            sf.write(root / f"{number}.wav", babble(0.5 + 0.03 * (number % 11), number), RATE, subtype="PCM_16")
            lines.append(f"{number}.wav,s{speaker},Words number {number}")
    (root / "all.csv").write_text("\n".join(lines) + "\n")
    return root / "all.csv"


@pytest.fixture(scope="session")
def fsdd_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six speakers, ten digits, takes 0, 1, 5, 6, 10 and 11: noise of 0.1 s each."""
    root = tmp_path_factory.mktemp("fsdd")
    for speaker in range(6):
        for digit in range(10):
            for take in (0, 1, 5, 6, 10, 11):
                sound = babble(0.1, 1000 * speaker + 100 * digit + take)
                sf.write(root / f"{digit}_speaker{speaker}_{take}.wav", sound, RATE, subtype="PCM_16")
    return root


@pytest.fixture
def write_csv(tmp_path: Path) -> Callable[..., Path]:
    """Write a CSV manifest beside one second of sound called `a.wav`."""

    def write(*lines: str) -> Path:
        sf.write(tmp_path / "a.wav", babble(1.0, 1), RATE)
        path = tmp_path / "manifest.csv"
        path.write_text("\n".join(lines) + "\n")
        return path

    return write
