"""Conv-TasNet: both speakers from one microphone, between a learned encoder and decoder.

Luo and Mesgarani, arXiv 1809.07454 (figure 1, section II). An encoder of overlapping filters replaces the spectrum. A temporal
convolutional network computes a mask for each speaker. A transposed convolution decodes the masked frames. Each block passes a
residual to the next block and a skip connection to the sum that the masks are computed from.

Norms are right behind convolutions, where a batch norm folds into them. In the paper they are before the bottleneck and behind
the activations.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwsearch.experiment import ConvTasNetConfig
from hwsearch.separator.tcn import activation, padding


class Block(nn.Module):
    """A block (figure 1c): [batch, B, frames] -> residual [batch, B, frames] and skip connection [batch, Sc, frames]."""

    def __init__(self, config: ConvTasNetConfig, dilation: int) -> None:
        super().__init__()
        self.pads = padding(config.P, dilation, causal=config.causal)
        self.pointwise = nn.Conv1d(config.B, config.H, 1)
        self.pointwise_norm = _norm(config, config.H)
        self.pointwise_activation = activation(config)
        self.dilated = nn.Conv1d(config.H, config.H, config.P, dilation=dilation, groups=config.H)
        self.dilated_norm = _norm(config, config.H)
        self.dilated_activation = activation(config)
        self.residual = nn.Conv1d(config.H, config.B, 1)
        self.skip = nn.Conv1d(config.H, config.Sc, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.pointwise_activation(self.pointwise_norm(self.pointwise(x)))
        y = self.dilated_activation(self.dilated_norm(self.dilated(functional.pad(y, self.pads))))
        return x + self.residual(y), self.skip(y)


class ConvTasNet(nn.Module):
    """The network with encoder and decoder: [batch, 1, samples] -> [batch, speakers, samples]."""

    def __init__(self, config: ConvTasNetConfig, speakers: int) -> None:
        super().__init__()
        hop = config.L // 2
        self.speakers = speakers
        # Padded so that every sample is in two frames and the decoder makes at least as many samples as the input has.
        self.encoder = nn.Conv1d(1, config.N, config.L, stride=hop, padding=hop, bias=False)
        self.bottleneck = nn.Conv1d(config.N, config.B, 1)
        self.bottleneck_norm = _norm(config, config.B)
        self.blocks = nn.ModuleList(Block(config, 2**exponent) for _ in range(config.R) for exponent in range(config.X))
        self.mask_activation = activation(config)
        self.masks = nn.Conv1d(config.Sc, speakers * config.N, 1)
        self.decoder = nn.ConvTranspose1d(speakers * config.N, speakers, config.L, stride=hop, padding=hop, groups=speakers)

    def forward(self, waveform: Tensor) -> Tensor:
        encoded = torch.relu(self.encoder(functional.pad(waveform, (0, self.encoder.stride[0]))))
        x = self.bottleneck_norm(self.bottleneck(encoded))
        skips: Tensor | None = None
        for block in self.blocks:
            x, skip = block(x)
            skips = skip if skips is None else skips + skip
        masks = torch.sigmoid(self.masks(self.mask_activation(skips)))
        frames = [encoded * mask for mask in masks.chunk(self.speakers, 1)]
        decoded: Tensor = self.decoder(torch.cat(frames, 1))
        return decoded[..., : waveform.shape[-1]]


def _norm(config: ConvTasNetConfig, channels: int) -> nn.Module:
    """Make a batch norm, or the paper's global layer norm (section II-E)."""
    return nn.BatchNorm1d(channels) if config.norm == "batch" else nn.GroupNorm(1, channels, eps=1e-8)
