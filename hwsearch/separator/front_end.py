"""Front ends: from a recording to the input of a network, and from its output to waveforms.

    spectral    in: features of all microphones and of the target's direction, [batch, features, frames]
                out: the complex mask of the target, [batch, 2 * bins, frames], real parts first
    waveform    in: microphone 0 at a root mean square of 1, [batch, 1, samples]
                out: the waveforms of both speakers in any order, [batch, speakers, samples]

They are not quantized, and are not part of the exported file.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hwsearch.data.arrays import MicrophoneArray
from hwsearch.experiment import SpectralConfig
from hwsearch.separator.features import apply_mask, features, running_level, starting_mask
from hwsearch.separator.form import SMALLEST_LEVEL, Form, SpectralForm, WaveformForm
from hwsearch.separator.stft import istft, stft


@dataclass(frozen=True)
class Analysis:
    """Mixtures as the network and the synthesis need them.

    Attributes:
        normalised: the network's input [batch, channels, frames].
        context: further tensors for the synthesis, [batch, ...] or scalar.
    """

    normalised: Tensor
    context: tuple[Tensor, ...]


class FrontEnd(nn.Module, ABC):
    """The front end of a network.

    Attributes:
        form: what it takes and gives.
        array: the microphones of the recordings.
        sample_rate: of the recordings, Hz.
        inputs: channels of the network's input.
        outputs: channels of the network's output.
        speakers: number of waveforms that `synthesise` makes: 1, the speaker in the given direction, or 2, both in any order.
        frame_samples: samples from one frame of the network's input to the next.
        feature_mean, feature_scale: the network's input is (raw input - mean) * scale, [channels] each.
    """

    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.array, self.sample_rate = form.array, form.sample_rate
        self.inputs, self.outputs, self.speakers = form.inputs, form.outputs, form.speakers
        self.frame_samples = form.frame_samples
        # All features share the first quantizer of the network, so they are brought to one scale before it.
        self.register_buffer("feature_mean", torch.zeros(form.inputs))
        self.register_buffer("feature_scale", torch.ones(form.inputs))

    def normalise(self, raw: Tensor) -> Tensor:
        """Normalise [batch, channels, frames] with the mean and variance of each channel in the training data."""
        return (raw - self.feature_mean[:, None]) * self.feature_scale[:, None]

    @abstractmethod
    def raw(self, mixture: Tensor, doa_deg: Tensor) -> Tensor:
        """Compute the network's input [batch, channels, frames] before it is normalised: the input of an exported file."""

    def references(self, mixture: Tensor, target: Tensor) -> Tensor:
        """Return what `synthesise` should make of mixtures [batch, mics, samples] with targets [batch, samples].

        The second speaker is microphone 0 minus the target, which includes sensor noise and, with early targets, late echoes.

        Returns:
            [batch, samples], or [batch, speakers, samples] in any order.
        """
        return target if self.directed else torch.stack([target, mixture[:, 0] - target], dim=1)

    @property
    def device(self) -> torch.device:
        return self.feature_mean.device

    @property
    def spectral(self) -> SpectralConfig | None:
        """The configuration, if this is a spectral front end."""
        return None

    @property
    def microphones(self) -> int | None:
        """The number of channels that a recording must have; None for any number."""
        return self.form.microphones

    @property
    def directed(self) -> bool:
        """Whether the result depends on the direction of the target."""
        return self.form.directed

    def frames(self, samples: int) -> int:
        """Count the frames of the network's input for a number of samples."""
        return self.form.frames(samples)

    @abstractmethod
    def analyse(self, mixture: Tensor, doa_deg: Tensor) -> Analysis:
        """Analyse mixtures [batch, mics, samples] with targets in directions [batch], in degrees."""

    @abstractmethod
    def synthesise(self, analysis: Analysis, output: Tensor, samples: int) -> Tensor:
        """Make waveforms from the network's output: [batch, samples] for one speaker, else [batch, speakers, samples]."""

    def learn_statistics(self, mixture: Tensor, doa_deg: Tensor) -> None:
        """Compute the statistics of features from training mixtures."""


class SpectralFrontEnd(FrontEnd):
    """The front end of networks that compute a complex mask from features of a microphone array."""

    def __init__(self, config: SpectralConfig, array: MicrophoneArray, sample_rate: int) -> None:
        form = SpectralForm(config, array, sample_rate)
        super().__init__(form)
        self.config = config
        self._level_decay = form.level_decay

    @property
    def spectral(self) -> SpectralConfig:
        return self.config

    def analyse(self, mixture: Tensor, doa_deg: Tensor) -> Analysis:
        spectrum = stft(mixture, self.config.n_fft, self.config.hop_length)
        raw = self.features(spectrum, doa_deg)
        return Analysis(self.normalise(raw), (spectrum[:, 0], self.start(raw)))

    def raw(self, mixture: Tensor, doa_deg: Tensor) -> Tensor:
        return self.features(stft(mixture, self.config.n_fft, self.config.hop_length), doa_deg)

    def features(self, spectrum: Tensor, doa_deg: Tensor, level: Tensor | None = None) -> Tensor:
        """Compute features [batch, features, frames] from spectra [batch, mics, bins, frames]; see `features.features`."""
        config = self.config
        if level is None and self._level_decay is not None:
            level = running_level(spectrum[:, 0], self._level_decay)
        return features(spectrum, doa_deg, self.array, self.sample_rate, config.ipd, beam=config.beam, level=level)

    def start(self, raw: Tensor) -> Tensor:
        """Return the mask that the network's mask is added to; see `starting_mask`."""
        return starting_mask(raw, self.outputs // 2, beam=self.config.beam)

    def synthesise(self, analysis: Analysis, output: Tensor, samples: int) -> Tensor:
        reference, start = analysis.context
        estimate = apply_mask(reference, output, start)
        return istft(estimate, self.config.n_fft, self.config.hop_length, samples)

    def learn_statistics(self, mixture: Tensor, doa_deg: Tensor) -> None:
        self.feature_mean.zero_()
        self.feature_scale.fill_(1.0)
        with torch.no_grad():
            raw = self.analyse(mixture, doa_deg).normalised
        self.feature_mean.copy_(raw.mean(dim=(0, 2)))
        self.feature_scale.copy_(1.0 / raw.std(dim=(0, 2)).clamp_min(1e-3))


class WaveformFrontEnd(FrontEnd):
    """The front end of networks that separate the speakers in microphone 0, whatever the direction."""

    def __init__(self, array: MicrophoneArray, sample_rate: int) -> None:
        super().__init__(WaveformForm(array, sample_rate))

    def analyse(self, mixture: Tensor, doa_deg: Tensor) -> Analysis:
        del doa_deg
        first = mixture[:, :1]
        level = first.square().mean(dim=-1, keepdim=True).sqrt().clamp_min(SMALLEST_LEVEL)
        return Analysis(self.normalise(first / level), (level,))

    def raw(self, mixture: Tensor, doa_deg: Tensor) -> Tensor:
        return self.analyse(mixture, doa_deg).normalised

    def synthesise(self, analysis: Analysis, output: Tensor, samples: int) -> Tensor:
        (level,) = analysis.context
        return output[..., :samples] * level
