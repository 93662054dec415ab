"""Mixing of two dry utterances in a room into one multi-channel mixture."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from hwsearch.data.noise import Noise
from hwsearch.experiment import MixtureConfig

Audio = NDArray[np.float32]

PEAK = 0.5
"""Peak of mixtures over all microphones: no clipping, and 6 dB of head-room for added noise."""


@dataclass(frozen=True)
class Placement:
    """Positions of two utterances in their mixture, in samples."""

    target_start: int
    interferer_start: int
    samples: int

    def overlap(self, target_samples: int, interferer_samples: int) -> float:
        """Share of the mixture in which both speak."""
        first = max(self.target_start, self.interferer_start)
        last = min(self.target_start + target_samples, self.interferer_start + interferer_samples)
        return max(0, last - first) / self.samples


def draw_overlap(rng: np.random.Generator, config: MixtureConfig) -> float:
    """Draw an overlap ratio, uniformly around the configured mean, as wide as `overlap_min` and 1 allow."""
    half = min(config.overlap_mean - min(config.overlap_min, config.overlap_mean), 1.0 - config.overlap_mean)
    return float(rng.uniform(config.overlap_mean - half, config.overlap_mean + half))


def place(rng: np.random.Generator, target_samples: int, interferer_samples: int, overlap: float) -> Placement:
    """Place two utterances so that both speak in the share `overlap` of the mixture.

    With lengths a and b, a mixture of length T has a + b - T samples of overlap, so T = (a + b) / (1 + overlap). If the lengths
    differ too much for that, the shorter utterance is placed at random within the longer one.
    """
    longer = max(target_samples, interferer_samples)
    samples = max(longer, round((target_samples + interferer_samples) / (1.0 + overlap)))
    target_latest = samples - target_samples
    interferer_latest = samples - interferer_samples
    if samples > longer:
        # One of the two comes first and the other ends last.
        target_first = bool(rng.integers(2))
        return Placement(0 if target_first else target_latest, interferer_latest if target_first else 0, samples)
    return Placement(int(rng.integers(target_latest + 1)), int(rng.integers(interferer_latest + 1)), samples)


def cut(rng: np.random.Generator, speech: Audio, longest: int) -> Audio:
    """Cut speech to `longest` samples from a random start; shorter speech stays as it is."""
    if len(speech) <= longest:
        return speech
    start = int(rng.integers(len(speech) - longest + 1))
    return speech[start : start + longest]


def to_length(samples: Audio, length: int) -> Audio:
    """Cut sound [..., samples] at the end, or pad it with silence, so that it has `length` samples."""
    missing = length - samples.shape[-1]
    if missing <= 0:
        return samples[..., :length]
    return np.pad(samples, [(0, 0)] * (samples.ndim - 1) + [(0, missing)])


@dataclass(frozen=True)
class Voice:
    """A speaker in a room.

    Attributes:
        speech: dry, [samples].
        response: impulse responses from the speaker to the microphones, [mics, taps].
    """

    speech: Audio
    response: Audio


def render(
    rng: np.random.Generator,
    target: Voice,
    interferer: Voice,
    placement: Placement,
    sir_db: float,
    config: MixtureConfig,
    sample_rate: int,
    noise: Noise | None = None,
) -> tuple[Audio, Audio]:
    """Reverberate, scale and add two voices.

    Args:
        rng: generator of the sensor noise.
        target: the wanted speaker.
        interferer: the other speaker.
        placement: positions of both; reverberation after the end of the mixture is cut.
        sir_db: ratio of the powers of target and interferer, as reverberant images at microphone 0, each averaged over the
            samples of its dry speech.
        config: level of the sensor noise, and kind of target.
        sample_rate: in Hz.
        noise: recorded noise, as long as the mixture. Its level is that below the speech at microphone 0.

    Returns:
        The mixture [mics, samples], and the target alone at microphone 0, [samples].
    """
    samples = placement.samples
    size = fft.next_fast_len(samples + max(target.response.shape[-1], interferer.response.shape[-1]) - 1, real=True)
    target_spectrum = fft.rfft(_at(target.speech, placement.target_start, samples), size)
    target_image = fft.irfft(target_spectrum * fft.rfft(target.response, size), size)[:, :samples]
    interferer_spectrum = fft.rfft(_at(interferer.speech, placement.interferer_start, samples), size)
    interferer_image = fft.irfft(interferer_spectrum * fft.rfft(interferer.response, size), size)[:, :samples]
    target_power = _power(target_image[0], len(target.speech))
    interferer_image *= math.sqrt(target_power / _power(interferer_image[0], len(interferer.speech)) / 10 ** (sir_db / 10))
    wanted = target_image[0]
    if config.target == "early":
        early = early_part(target.response[0], config.early_ms, sample_rate)
        wanted = fft.irfft(target_spectrum * fft.rfft(early, size), size)[:samples]
    mixture = target_image + interferer_image
    speech_power = float(np.mean(mixture[0] ** 2))
    if noise is not None:
        gain = speech_power / _power(noise.sound[0], samples) / 10 ** (noise.snr_db / 10)
        mixture = mixture + math.sqrt(gain) * noise.sound
    if config.noise_snr_db is not None:
        noise_power = speech_power / 10 ** (config.noise_snr_db / 10)
        mixture = mixture + math.sqrt(noise_power) * rng.standard_normal(mixture.shape, dtype=np.float32)
    scale = np.float32(PEAK / max(float(np.abs(mixture).max()), 1e-9))
    return (scale * mixture).astype(np.float32), (scale * wanted).astype(np.float32)


def early_part(response: Audio, early_ms: float, sample_rate: int) -> Audio:
    """A response with zeros from `early_ms` after the direct sound."""
    direct = int(np.argmax(np.abs(response)))
    early = response.copy()
    early[direct + round(early_ms * sample_rate / 1000) :] = 0.0
    return early


def _at(speech: Audio, start: int, samples: int) -> Audio:
    placed = np.zeros(samples, dtype=np.float32)
    placed[start : start + len(speech)] = speech[: samples - start]
    return placed


def _power(image: Audio, active_samples: int) -> float:
    return max(float(np.sum(image.astype(np.float64) ** 2)) / active_samples, 1e-20)
