"""What front ends take and give, and the numbers of their features, without torch: running an exported file needs no more."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hwsearch.data.arrays import SPEED_OF_SOUND, MicrophoneArray
from hwsearch.experiment import SpectralConfig

Ipd = Literal["none", "angle", "cos_sin", "steered"]

SPEAKERS = 2
"""Number of speakers in a mixture."""

SMALLEST_LEVEL = 1e-8
"""Least level of a recording: digital silence is not divided by zero."""

LPS_FLOOR = 1e-3
"""Added to magnitudes before the logarithm: 60 dB below the level of the recording."""

SMALLEST_MAGNITUDE, SMALLEST_POWER = 1e-12, 1e-20
"""Added to divisors: magnitudes and powers of a spectrum."""

WIENER_RANGE = (-1.0, 2.0)
"""Limits of the gain of the beam at the reference microphone, which is unbounded where microphones cancel."""

DIAGONAL_LOADING = 1e-2
"""White noise relative to diffuse noise in the design of the beam. It limits the gain for sensor noise and for mismatch of the
microphones."""


@dataclass(frozen=True, eq=False)
class SpectralForm:
    """The form of a front end that makes features of a microphone array, and applies a mask.

    Attributes:
        config: the front end.
        array: the microphones.
        sample_rate: in Hz.
    """

    config: SpectralConfig
    array: MicrophoneArray
    sample_rate: int

    speakers = 1
    directed = True

    @property
    def bins(self) -> int:
        """Frequencies of a spectrum."""
        return self.config.n_fft // 2 + 1

    @property
    def inputs(self) -> int:
        """Channels of the network's input."""
        return feature_count(self.array, self.bins, self.config.ipd, beam=self.config.beam)

    @property
    def outputs(self) -> int:
        """Channels of the network's output."""
        return 2 * self.bins

    @property
    def microphones(self) -> int | None:
        """The number of channels that a recording must have."""
        return self.array.microphones

    @property
    def frame_samples(self) -> int:
        """Samples from one frame of the network's input to the next."""
        return self.config.hop_length

    @property
    def level_decay(self) -> float | None:
        """Decay of a followed level from frame to frame; None for the level of the whole recording."""
        seconds = self.config.level_seconds
        return None if seconds is None else math.exp(-self.config.hop_length / (self.sample_rate * seconds))

    def frames(self, samples: int) -> int:
        """Count the frames of the network's input for a number of samples."""
        return frame_count(samples, self.config.hop_length)


@dataclass(frozen=True, eq=False)
class WaveformForm:
    """The form of a front end that passes the sound of microphone 0 on at one level, with the attributes of `SpectralForm`."""

    array: MicrophoneArray
    sample_rate: int

    inputs = 1
    outputs = speakers = SPEAKERS
    directed = False
    frame_samples = 1

    @property
    def microphones(self) -> int | None:
        """None: a recording may have any number of channels."""
        return None

    def frames(self, samples: int) -> int:
        """Count the frames of the network's input for a number of samples."""
        return samples


Form = SpectralForm | WaveformForm


def make_form(spectral: SpectralConfig | None, array: MicrophoneArray, sample_rate: int) -> Form:
    """Return the form of a spectral front end, or that of a front end of waveforms without a configuration."""
    return WaveformForm(array, sample_rate) if spectral is None else SpectralForm(spectral, array, sample_rate)


def hann(length: int) -> NDArray[np.float64]:
    """Return the periodic Hann window of the Fourier transforms, [length]."""
    window: NDArray[np.float64] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    return window


def frame_count(samples: int, hop_length: int) -> int:
    """Count the frames of `stft`: one at each multiple of the hop, up to the first that is not before the last sample."""
    return -(-samples // hop_length) + 1


def feature_count(array: MicrophoneArray, bins: int, ipd: Ipd, *, beam: bool) -> int:
    """Count the features per frame."""
    per_pair = {"none": 0, "angle": 1, "cos_sin": 2, "steered": 2}[ipd]
    return bins * (2 + (2 if beam else 0) + len(array.pairs) * per_pair)


def inverse_coherence(array: MicrophoneArray, bins: int, sample_rate: int) -> NDArray[np.float64]:
    """Compute G^-1 of `features.superdirective_weights`, [bins, mics, mics]."""
    frequency = np.linspace(0.0, sample_rate / 2, bins)
    distance = np.linalg.norm(array.places[:, None] - array.places, axis=-1)
    coherence = np.sinc(2 * frequency[:, None, None] * distance / SPEED_OF_SOUND)
    loading = DIAGONAL_LOADING * np.eye(array.microphones)
    inverse: NDArray[np.float64] = np.linalg.inv((coherence + loading) / (1 + DIAGONAL_LOADING))
    return inverse
