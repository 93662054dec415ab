"""Augmentation of the digit recogniser's training data: speed, rooms, noise, and another voice."""

import numpy as np
import scipy.signal
import soxr
from numpy.typing import NDArray

FASTEST = 1.2
LONGEST_DECAY_SECONDS = 0.5
DECAY_60_DB = 6.907755
"""ln(1000): in one T60 the amplitude decays by 60 dB."""

Audio = NDArray[np.float32]


def change_speed(audio: Audio, rng: np.random.Generator) -> Audio:
    """`audio` [samples] up to 1.2 times faster or slower: tempo, pitch and vocal tract together."""
    factor = float(np.exp(rng.uniform(-np.log(FASTEST), np.log(FASTEST))))
    return np.asarray(soxr.resample(audio, 10_000 * factor, 10_000, quality="MQ"), dtype=np.float32)


def reverberate(audio: Audio, sample_rate: int, rng: np.random.Generator) -> Audio:
    """`audio` [samples] in a random room, at the same length.

    Polack's model: a direct path and, from 2 ms on, white noise under an exponential decay. T60 is 0.05 to 0.5 s, the
    direct-to-reverberant ratio -3 to 15 dB.
    """
    decay = rng.uniform(0.05, LONGEST_DECAY_SECONDS)
    seconds = np.arange(int(decay * sample_rate)) / sample_rate
    tail = rng.standard_normal(seconds.size) * np.exp(-DECAY_60_DB * seconds / decay) * (seconds >= 0.002)
    tail *= 10 ** (-rng.uniform(-3, 15) / 20) / np.sqrt((tail**2).sum())
    tail[0] = 1.0
    return np.asarray(scipy.signal.oaconvolve(audio, tail)[: audio.size], dtype=np.float32)


def coloured_noise(samples: int, rng: np.random.Generator) -> Audio:
    """Noise [samples] with a spectral power slope between white and 1/f^2."""
    spectrum = rng.standard_normal(samples // 2 + 1) + 1j * rng.standard_normal(samples // 2 + 1)
    spectrum *= np.arange(1, spectrum.size + 1) ** -rng.uniform(0, 1)
    return np.fft.irfft(spectrum, samples).astype(np.float32)


def add_at(audio: Audio, disturbance: Audio, ratio_db: float) -> Audio:
    """`audio` [samples] plus `disturbance` at a power `ratio_db` lower. The disturbance is repeated or cut to the same length."""
    fitted = np.resize(disturbance, audio.size)
    power, unwanted = (float(np.square(x, dtype=np.float64).mean()) for x in (audio, fitted))
    if unwanted == 0:
        return audio
    return audio + fitted * np.float32(np.sqrt(power / unwanted * 10 ** (-ratio_db / 10)))


def augment(audio: Audio, interferer: Audio, sample_rate: int, rng: np.random.Generator) -> Audio:
    """Random training version of a clean utterance [samples]: another speed, and possibly a room, a weak `interferer` and noise.

    The interferer, another voice, is 10 to 30 dB lower, as after separation.
    """
    out = change_speed(audio, rng)
    if rng.random() < 0.6:
        out = reverberate(out, sample_rate, rng)
    if rng.random() < 0.3:
        out = add_at(out, interferer, rng.uniform(10, 30))
    if rng.random() < 0.6:
        out = add_at(out, coloured_noise(out.size, rng), rng.uniform(5, 40))
    return out
