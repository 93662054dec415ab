"""The separator: waveform and direction in, target waveform out, around any mask network."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from hwsearch.data.arrays import ARRAYS, MicrophoneArray
from hwsearch.experiment import DataConfig, SeparatorConfig
from hwsearch.separator.features import apply_mask, feature_count, features, starting_mask
from hwsearch.separator.stft import istft, stft
from hwsearch.separator.tcn import MaskNetwork

MaskFunction = Callable[[Tensor], Tensor]
"""Normalised features [batch, features, frames] to mask [batch, 2 * bins, frames]."""


@dataclass(frozen=True)
class Analysis:
    """What the front end makes of a mixture.

    Attributes:
        reference: complex spectrum of microphone 0 [batch, bins, frames].
        start: what the network's mask is added to (`features.starting_mask`).
        normalised: the network's input [batch, features, frames].
    """

    reference: Tensor
    start: Tensor
    normalised: Tensor


class Separator(nn.Module):
    """The full-precision separator.

    Shape:
        mixture [batch, mics, samples], doa_deg [batch] -> target at microphone 0 [batch, samples]
    """

    def __init__(self, config: SeparatorConfig, array: MicrophoneArray, sample_rate: int) -> None:
        super().__init__()
        self.config = config
        self.array = array
        self.sample_rate = sample_rate
        bins = config.n_fft // 2 + 1
        self.network = MaskNetwork(config, feature_count(array, bins, config.ipd, beam=config.beam))

    def analyse(self, mixture: Tensor, doa_deg: Tensor) -> Analysis:
        """The front end: mixture [batch, mics, samples] and directions [batch] to what the network and the mask need."""
        spectrum = stft(mixture, self.config.n_fft, self.config.hop_length)
        raw = features(spectrum, doa_deg, self.array, self.sample_rate, self.config.ipd, beam=self.config.beam)
        start = starting_mask(raw, spectrum.shape[-2], beam=self.config.beam)
        return Analysis(spectrum[:, 0], start, self.network.normalise(raw))

    def synthesise(self, analysis: Analysis, mask: Tensor, samples: int) -> Tensor:
        """Apply the network's mask [batch, 2 * bins, frames] and return to the time domain, [batch, samples]."""
        estimate = apply_mask(analysis.reference, mask, analysis.start)
        return istft(estimate, self.config.n_fft, self.config.hop_length, samples)

    def separate(self, mixture: Tensor, doa_deg: Tensor, mask_function: MaskFunction) -> Tensor:
        """Separate with any mask function: the float network, its quantized form, or an exported file."""
        analysis = self.analyse(mixture, doa_deg)
        return self.synthesise(analysis, mask_function(analysis.normalised), mixture.shape[-1])

    def forward(self, mixture: Tensor, doa_deg: Tensor) -> Tensor:
        return self.separate(mixture, doa_deg, self.network)


def build_separator(data: DataConfig, config: SeparatorConfig) -> Separator:
    """A separator with fresh weights for the experiment's array and sampling rate."""
    return Separator(config, ARRAYS[data.array], data.sample_rate)
