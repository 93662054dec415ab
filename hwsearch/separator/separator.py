"""The separator: recordings in, the waveforms of speakers out."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hwsearch.data.arrays import MicrophoneArray
from hwsearch.experiment import NetworkConfig, SpectralConfig
from hwsearch.separator.front_end import Analysis, FrontEnd, SpectralFrontEnd, WaveformFrontEnd
from hwsearch.separator.networks import build_network

MaskFunction = Callable[[Tensor], Tensor]
"""Computes the output [batch, channels, frames] of the network from its input [batch, channels, frames]."""


class Separator(nn.Module):
    """The full-precision separator.

    Shape:
        mixture [batch, mics, samples], doa_deg [batch] -> [batch, samples], or [batch, speakers, samples] of several
    """

    def __init__(self, front_end: FrontEnd, network: nn.Module) -> None:
        super().__init__()
        self.front_end = front_end
        self.network = network

    @property
    def device(self) -> torch.device:
        return self.front_end.device

    def analyse(self, mixture: Tensor, doa_deg: Tensor) -> Analysis:
        """Analyse mixtures [batch, mics, samples] with targets in directions [batch]; see `FrontEnd.analyse`."""
        return self.front_end.analyse(mixture, doa_deg)

    def synthesise(self, analysis: Analysis, output: Tensor, samples: int) -> Tensor:
        """Make waveforms from the output of the network; see `FrontEnd.synthesise`."""
        return self.front_end.synthesise(analysis, output, samples)

    def separate(self, mixture: Tensor, doa_deg: Tensor, mask_function: MaskFunction) -> Tensor:
        """Separate with any form of the network: full precision, quantized, or an exported file."""
        analysis = self.analyse(mixture, doa_deg)
        return self.synthesise(analysis, mask_function(analysis.normalised), mixture.shape[-1])

    def forward(self, mixture: Tensor, doa_deg: Tensor) -> Tensor:
        return self.separate(mixture, doa_deg, self.network)


def build_separator(config: NetworkConfig, array: MicrophoneArray, sample_rate: int) -> Separator:
    """Make an untrained separator; raises as `build_network`."""
    front_end = build_front_end(config.spectral, array, sample_rate)
    return Separator(front_end, build_network(config, front_end))


def build_front_end(spectral: SpectralConfig | None, array: MicrophoneArray, sample_rate: int) -> FrontEnd:
    """Make the spectral front end of a configuration, or the front end of waveforms without one."""
    return WaveformFrontEnd(array, sample_rate) if spectral is None else SpectralFrontEnd(spectral, array, sample_rate)
