"""Two talkers made of noise, in memory: mixtures for timing, so that anyone can run what is timed without a corpus.

Each talker is noise with speech's fall towards high frequencies and its loud and soft syllables; each arrives as a plane wave.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from hwsearch.data.arrays import MicrophoneArray
from hwsearch.data.example import Example
from hwsearch.separator.features import steering_phase

SYLLABLES_HZ = 4.0
CORNER_HZ = 500.0
LEVEL = 0.05


def talker(samples: int, sample_rate: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Noise [samples] at `LEVEL` whose power falls by 6 dB per octave above `CORNER_HZ`, in syllables."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    sound = np.fft.irfft(spectrum / (1 + np.fft.rfftfreq(samples, 1 / sample_rate) / CORNER_HZ), samples)
    knots = rng.uniform(0, 1, math.ceil(samples / sample_rate * SYLLABLES_HZ) + 2) ** 2
    sound *= np.interp(np.arange(samples) / sample_rate * SYLLABLES_HZ, np.arange(len(knots)), knots)
    scaled: NDArray[np.float64] = sound * LEVEL / sound.std()
    return scaled


def image(sound: NDArray[np.float64], doa_deg: float, array: MicrophoneArray, sample_rate: int) -> NDArray[np.float64]:
    """A plane wave from a direction at every microphone, [mics, samples]."""
    spectrum = np.fft.rfft(sound)
    phase = steering_phase(array, torch.tensor([doa_deg], dtype=torch.float64), len(spectrum), sample_rate)[0].numpy()
    return np.fft.irfft(spectrum * np.exp(1j * phase), len(sound))


def plane_wave_mixture(seconds: float, array: MicrophoneArray, sample_rate: int, seed: int) -> Example:
    """Two talkers at least 40 degrees apart and a little sensor noise."""
    rng = np.random.default_rng(seed)
    samples = round(seconds * sample_rate)
    doa = float(rng.uniform(10, 70))
    other = doa + float(rng.uniform(40, 100))
    target, interferer = (image(talker(samples, sample_rate, rng), angle, array, sample_rate) for angle in (doa, other))
    sound = target + interferer + 1e-4 * rng.standard_normal(target.shape)
    return Example(sound.astype(np.float32), target[0].astype(np.float32), doa)
