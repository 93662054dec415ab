"""Folders of recorded speakers as people have them: odd names, rates and channels."""

import unicodedata
from pathlib import Path

import numpy as np
import soundfile as sf

from .conftest import babble

ODD = ("Ann Lee", "Jörg Müller", "søren", "d'Arcy", "4711", "Zoë", "李", "x.y-z", "Ken", "Eva")
RATES = (8000, 16000, 44100, 48000, 22050)


def odd_speakers(root: Path, speakers: int = 8, takes: int = 5, seconds: float = 0.8) -> Path:
    """Speakers with some takes each, of different rates; the second speaker's first take is stereo, and some are nested FLAC."""
    for number, name in enumerate(ODD[:speakers]):
        folder = root / unicodedata.normalize("NFD", name)
        (folder / "day 2" / "room").mkdir(parents=True)
        for take in range(takes):
            rate = RATES[(number + take) % len(RATES)]
            sound = babble(seconds, 100 * number + take, rate)
            if (number, take) == (1, 0):
                sound = np.stack([sound, -sound], axis=1)  # its average is silent
            file = "day 2/room/take 4.FLAC" if take == 4 else f"take ünö {take}.wav"
            sf.write(folder / file, sound, rate, format="FLAC" if take == 4 else "WAV")
        (folder / ".hidden.wav").write_bytes(b"no sound")
        (folder / "notes.md").write_text("not speech")
    (root / ".trash" / "someone").mkdir(parents=True)
    (root / "README.txt").write_text("not speech")
    return root
