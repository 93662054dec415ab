"""Two dry utterances and a room become one overlapped multi-channel mixture."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from hwsearch.experiment import MixtureConfig

Audio = NDArray[np.float32]

PEAK = 0.5
"""Mixtures are scaled to this peak over all microphones: no clipping, and 6 dB of head-room for whoever adds noise."""


@dataclass(frozen=True)
class Placement:
    """Where two utterances lie in their mixture, in samples."""

    target_start: int
    interferer_start: int
    samples: int

    def overlap(self, target_samples: int, interferer_samples: int) -> float:
        """Share of the mixture in which both speak."""
        first = max(self.target_start, self.interferer_start)
        last = min(self.target_start + target_samples, self.interferer_start + interferer_samples)
        return max(0, last - first) / self.samples


@dataclass(frozen=True)
class Rendered:
    """A mixture and what is wanted from it.

    Attributes:
        mixture: [mics, samples].
        target: [samples], the target speaker alone at microphone 0.
        interferer: [samples], the other speaker alone at microphone 0.
    """

    mixture: Audio
    target: Audio
    interferer: Audio


def draw_overlap(rng: np.random.Generator, config: MixtureConfig) -> float:
    """Overlap ratio with the configured mean: uniform around it, as wide as `overlap_min` and 1 allow."""
    half = min(config.overlap_mean - min(config.overlap_min, config.overlap_mean), 1.0 - config.overlap_mean)
    return float(rng.uniform(config.overlap_mean - half, config.overlap_mean + half))


def place(rng: np.random.Generator, target_samples: int, interferer_samples: int, overlap: float) -> Placement:
    """Shift two utterances against each other so that both speak in `overlap` of the mixture.

    With lengths a and b the mixture of length T has a + b - T samples of overlap, so T = (a + b) / (1 + overlap). Where the
    lengths differ too much for that, the shorter one lies somewhere within the longer.
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
    """At most `longest` samples, from a random start where speech is longer."""
    if len(speech) <= longest:
        return speech
    start = int(rng.integers(len(speech) - longest + 1))
    return speech[start : start + longest]


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
) -> Rendered:
    """Reverberate, scale and add.

    Args:
        rng: for sensor noise.
        target: who is to be heard.
        interferer: who is not.
        placement: where both lie; reverberation beyond the mixture's end is cut.
        sir_db: power of the target over that of the interferer, each over the samples where it speaks, both reverberant
            images at microphone 0.
        config: noise level and the kind of target.
        sample_rate: Hz.
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
    if config.noise_snr_db is not None:
        noise_power = float(np.mean(mixture[0] ** 2)) / 10 ** (config.noise_snr_db / 10)
        mixture = mixture + math.sqrt(noise_power) * rng.standard_normal(mixture.shape, dtype=np.float32)
    gain = np.float32(PEAK / max(float(np.abs(mixture).max()), 1e-9))
    return Rendered(
        (gain * mixture).astype(np.float32),
        (gain * wanted).astype(np.float32),
        (gain * interferer_image[0]).astype(np.float32),
    )


def early_part(response: Audio, early_ms: float, sample_rate: int) -> Audio:
    """The response up to `early_ms` behind the direct sound, zeros after it."""
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
