"""What stands around a network: from a recording to its input, and from its output to waveforms.

Two front ends ship. Which one an experiment names decides what its network sees and gives:

    spectral    in: features of all microphones and of the target's direction, [batch, features, frames]
                out: the complex mask of the target, [batch, 2 * bins, frames], real parts first
    waveform    in: microphone 0 at a root mean square of 1, [batch, 1, samples]
                out: the waveforms of both speakers in any order, [batch, speakers, samples]

Front ends are not quantized. They run in floating point before and behind the exported file.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hwsearch.data.arrays import MicrophoneArray
from hwsearch.experiment import SpectralConfig
from hwsearch.separator.features import apply_mask, feature_count, features, starting_mask
from hwsearch.separator.stft import frame_count, istft, stft

SPEAKERS = 2
"""Speakers of a mixture."""

SMALLEST_LEVEL = 1e-8
"""Silence is divided by this."""


@dataclass(frozen=True)
class Analysis:
    """What a front end makes of mixtures.

    Attributes:
        normalised: the network's input [batch, channels, frames].
        context: what the synthesis needs besides the network's output. Each tensor has the batch first, or no axes.
    """

    normalised: Tensor
    context: tuple[Tensor, ...]


class FrontEnd(nn.Module, ABC):
    """What surrounds a network.

    Attributes:
        array: the microphones of the recordings.
        sample_rate: of the recordings, Hz.
        inputs: channels of the network's input.
        outputs: channels of the network's output.
        speakers: waveforms that the synthesis gives. With one, that of the speaker in the given direction; with two, both
            in any order, whatever the direction.
        frame_samples: samples from one frame of the network's input to the next.
        feature_mean, feature_scale: the network's input is (raw input - mean) * scale, [channels] each.
    """

    inputs: int
    outputs: int
    speakers: int
    frame_samples: int
    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(self, inputs: int, array: MicrophoneArray, sample_rate: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.array = array
        self.sample_rate = sample_rate
        # Inputs of different kinds share the network's first quantizer: they are brought to one scale outside of it.
        self.register_buffer("feature_mean", torch.zeros(inputs))
        self.register_buffer("feature_scale", torch.ones(inputs))

    def normalise(self, raw: Tensor) -> Tensor:
        """Zero mean and unit variance of each channel [batch, channels, frames], by the training data's statistics."""
        return (raw - self.feature_mean[:, None]) * self.feature_scale[:, None]

    @abstractmethod
    def raw(self, mixture: Tensor, doa_deg: Tensor) -> Tensor:
        """The network's input before it is normalised, which is what an exported file takes: [batch, channels, frames]."""

    def references(self, mixture: Tensor, target: Tensor) -> Tensor:
        """What the synthesis should give, from mixtures [batch, mics, samples] and their targets [batch, samples].

        The second speaker is what the target leaves of microphone 0: sensor noise, too, and with early targets its late echoes.

        Returns:
            [batch, samples], or [batch, speakers, samples] in no particular order.
        """
        return target if self.directed else torch.stack([target, mixture[:, 0] - target], dim=1)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.feature_mean.device

    @property
    def spectral(self) -> SpectralConfig | None:
        """The configuration of a spectral front end."""
        return None

    @property
    def microphones(self) -> int | None:
        """Channels that a recording must have; none where any number will do."""
        return self.array.microphones if self.directed else None

    @property
    def directed(self) -> bool:
        """Whether the direction of the target decides what comes out."""
        return self.speakers == 1

    @abstractmethod
    def frames(self, samples: int) -> int:
        """Frames of the network's input for so many samples."""

    @abstractmethod
    def analyse(self, mixture: Tensor, doa_deg: Tensor) -> Analysis:
        """Mixtures [batch, mics, samples] and directions [batch] to what the network and the synthesis need."""

    @abstractmethod
    def synthesise(self, analysis: Analysis, output: Tensor, samples: int) -> Tensor:
        """The network's output to waveforms: [batch, samples] for one speaker, else [batch, speakers, samples]."""

    @abstractmethod
    def stored(self, analysis: Analysis) -> Tensor:
        """The part of the context that is kept with training mixtures, because making it takes long: [batch, ...]."""

    @abstractmethod
    def restored(self, first: Tensor, normalised: Tensor, stored: Tensor) -> Analysis:
        """The analysis of mixtures from microphone 0 [batch, samples], the network's input and what `stored` gave."""

    def learn_statistics(self, mixture: Tensor, doa_deg: Tensor) -> None:
        """Set whatever depends on the training data from some of its mixtures."""


class SpectralFrontEnd(FrontEnd):
    """Features of a microphone array in, a complex mask for the reference microphone out."""

    def __init__(self, config: SpectralConfig, array: MicrophoneArray, sample_rate: int) -> None:
        bins = config.n_fft // 2 + 1
        super().__init__(feature_count(array, bins, config.ipd, beam=config.beam), array, sample_rate)
        self.config = config
        self.outputs = 2 * bins
        self.speakers = 1
        self.frame_samples = config.hop_length

    @property
    def spectral(self) -> SpectralConfig:
        """Its configuration."""
        return self.config

    def frames(self, samples: int) -> int:
        """Frames of the spectrum."""
        return frame_count(samples, self.config.hop_length)

    def analyse(self, mixture: Tensor, doa_deg: Tensor) -> Analysis:
        """Spectra, features, and what the mask is added to."""
        spectrum = stft(mixture, self.config.n_fft, self.config.hop_length)
        raw = self.features(spectrum, doa_deg)
        return Analysis(self.normalise(raw), (spectrum[:, 0], self.start(raw)))

    def raw(self, mixture: Tensor, doa_deg: Tensor) -> Tensor:
        """The features."""
        return self.features(stft(mixture, self.config.n_fft, self.config.hop_length), doa_deg)

    def features(self, spectrum: Tensor, doa_deg: Tensor, level: Tensor | None = None) -> Tensor:
        """Features [batch, features, frames] of spectra [batch, mics, bins, frames]; see `features.features`."""
        config = self.config
        return features(spectrum, doa_deg, self.array, self.sample_rate, config.ipd, beam=config.beam, level=level)

    def start(self, raw: Tensor) -> Tensor:
        """What the mask is added to."""
        return starting_mask(raw, self.outputs // 2, beam=self.config.beam)

    def synthesise(self, analysis: Analysis, output: Tensor, samples: int) -> Tensor:
        """Apply the mask [batch, 2 * bins, frames] and return to the time domain, [batch, samples]."""
        reference, start = analysis.context
        estimate = apply_mask(reference, output, start)
        return istft(estimate, self.config.n_fft, self.config.hop_length, samples)

    def stored(self, analysis: Analysis) -> Tensor:
        """What the mask is added to, [batch, bins, frames] or [batch, 1, 1]."""
        start = analysis.context[1]
        return start if start.ndim else start.expand(len(analysis.normalised), 1, 1)

    def restored(self, first: Tensor, normalised: Tensor, stored: Tensor) -> Analysis:
        """The reference microphone's spectrum is computed again."""
        return Analysis(normalised, (stft(first, self.config.n_fft, self.config.hop_length), stored))

    def learn_statistics(self, mixture: Tensor, doa_deg: Tensor) -> None:
        """Mean and scale of each feature."""
        self.feature_mean.zero_()
        self.feature_scale.fill_(1.0)
        with torch.no_grad():
            raw = self.analyse(mixture, doa_deg).normalised
        self.feature_mean.copy_(raw.mean(dim=(0, 2)))
        self.feature_scale.copy_(1.0 / raw.std(dim=(0, 2)).clamp_min(1e-3))


class WaveformFrontEnd(FrontEnd):
    """Microphone 0 in, the waveforms of both speakers out; the direction is not looked at."""

    def __init__(self, array: MicrophoneArray, sample_rate: int) -> None:
        super().__init__(1, array, sample_rate)
        self.outputs = self.speakers = SPEAKERS
        self.frame_samples = 1

    def frames(self, samples: int) -> int:
        """A frame is a sample."""
        return samples

    def analyse(self, mixture: Tensor, doa_deg: Tensor) -> Analysis:
        """Bring microphone 0 to a root mean square of 1."""
        del doa_deg
        first = mixture[:, :1]
        level = first.square().mean(dim=-1, keepdim=True).sqrt().clamp_min(SMALLEST_LEVEL)
        return Analysis(self.normalise(first / level), (level,))

    def raw(self, mixture: Tensor, doa_deg: Tensor) -> Tensor:
        """Microphone 0 at that level; there are no statistics to normalise by."""
        return self.analyse(mixture, doa_deg).normalised

    def synthesise(self, analysis: Analysis, output: Tensor, samples: int) -> Tensor:
        """Bring the outputs back to the mixture's level, [batch, speakers, samples]."""
        (level,) = analysis.context
        return output[..., :samples] * level

    def stored(self, analysis: Analysis) -> Tensor:
        """The level, [batch, 1, 1]."""
        return analysis.context[0]

    def restored(self, first: Tensor, normalised: Tensor, stored: Tensor) -> Analysis:
        """Nothing is computed again."""
        del first
        return Analysis(normalised, (stored,))
