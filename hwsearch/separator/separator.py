"""The separator: recordings in, the waveforms of speakers out, around any network."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hwsearch.data.arrays import MicrophoneArray
from hwsearch.experiment import NetworkConfig, SpectralConfig
from hwsearch.separator.front_end import Analysis, FrontEnd, SpectralFrontEnd, WaveformFrontEnd
from hwsearch.separator.networks import build_network

MaskFunction = Callable[[Tensor], Tensor]
"""The network's input [batch, channels, frames] to its output [batch, channels, frames]."""


class Separator(nn.Module):
    """The full-precision separator.

    Args:
        front_end: from recordings to the network, and from the network to waveforms.
        network: what is quantized.

    Shape:
        mixture [batch, mics, samples], doa_deg [batch] -> [batch, samples], or [batch, speakers, samples] of several
    """

    def __init__(self, front_end: FrontEnd, network: nn.Module) -> None:
        super().__init__()
        self.front_end = front_end
        self.network = network

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.front_end.device

    def analyse(self, mixture: Tensor, doa_deg: Tensor) -> Analysis:
        """The front end: mixture [batch, mics, samples] and directions [batch] to what the network and the synthesis need."""
        return self.front_end.analyse(mixture, doa_deg)

    def synthesise(self, analysis: Analysis, output: Tensor, samples: int) -> Tensor:
        """The network's output to waveforms, [batch, samples] or [batch, speakers, samples]."""
        return self.front_end.synthesise(analysis, output, samples)

    def separate(self, mixture: Tensor, doa_deg: Tensor, mask_function: MaskFunction) -> Tensor:
        """Separate with any form of the network: full precision, quantized, or an exported file."""
        analysis = self.analyse(mixture, doa_deg)
        return self.synthesise(analysis, mask_function(analysis.normalised), mixture.shape[-1])

    def forward(self, mixture: Tensor, doa_deg: Tensor) -> Tensor:
        return self.separate(mixture, doa_deg, self.network)


def build_separator(config: NetworkConfig, array: MicrophoneArray, sample_rate: int) -> Separator:
    """A separator with fresh weights.

    Raises:
        UserError: a module of the user's that cannot be imported or built.
    """
    front_end = build_front_end(config.spectral, array, sample_rate)
    return Separator(front_end, build_network(config, front_end))


def build_front_end(spectral: SpectralConfig | None, array: MicrophoneArray, sample_rate: int) -> FrontEnd:
    """The spectral front end of a configuration; that of waveforms without one."""
    return WaveformFrontEnd(array, sample_rate) if spectral is None else SpectralFrontEnd(spectral, array, sample_rate)
