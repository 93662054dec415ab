"""The full-precision mask network: a temporal convolutional network over feature frames.

The separator of the reference system (arXiv 2111.14479, section 2; block after Conv-TasNet, arXiv 1809.07454, figure 1c) has R
repeats of X ConvBlocks with dilations 1, 2, ..., 2^(X-1). Two linear heads give the real and imaginary part of the mask.

The norm is between convolution and activation, where it folds into the convolution exactly, also at the zero-padded ends of an
utterance. In the reference it is behind the activation.
"""

from torch import Tensor, nn
from torch.nn import functional

from hwsearch.experiment import ConvTasNetConfig, SeparatorConfig


class ConvBlock(nn.Module):
    """A residual block on [batch, B, frames]: expand to H channels (1x1), depthwise (kernel P, dilated), project (1x1)."""

    def __init__(self, config: SeparatorConfig, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.kernel_size = config.P
        self.causal = config.causal
        self.expand = nn.Conv1d(config.B, config.H, 1, bias=False)
        self.expand_norm = nn.BatchNorm1d(config.H)
        self.expand_activation = activation(config)
        self.depthwise = nn.Conv1d(config.H, config.H, config.P, dilation=dilation, groups=config.H, bias=False)
        self.depthwise_norm = nn.BatchNorm1d(config.H)
        self.depthwise_activation = activation(config)
        self.project = nn.Conv1d(config.H, config.B, 1, bias=False)
        self.project_norm = nn.BatchNorm1d(config.B)

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand_activation(self.expand_norm(self.expand(x)))
        y = functional.pad(y, padding(self.kernel_size, self.dilation, causal=self.causal))
        y = self.depthwise_activation(self.depthwise_norm(self.depthwise(y)))
        projected: Tensor = self.project_norm(self.project(y))
        return x + projected


class MaskNetwork(nn.Module):
    """Features [batch, features, frames] to a complex mask [batch, 2 * bins, frames], real parts first.

    With a beam the mask is added to that of the beam, and the mask of an untrained network is zero.
    """

    def __init__(self, config: SeparatorConfig, features: int) -> None:
        super().__init__()
        bins = config.n_fft // 2 + 1
        self.config = config
        self.input_proj = nn.Conv1d(features, config.B, 1, bias=False)
        self.input_norm = nn.BatchNorm1d(config.B)
        self.blocks = nn.ModuleList(
            ConvBlock(config, dilation=2**exponent) for _ in range(config.R) for exponent in range(config.X)
        )
        self.mask_head = nn.Conv1d(config.B, 2 * bins, 1)
        if config.beam:
            for parameter in self.mask_head.parameters():
                nn.init.zeros_(parameter)

    def forward(self, features: Tensor) -> Tensor:
        x = self.input_norm(self.input_proj(features))
        for block in self.blocks:
            x = block(x)
        mask: Tensor = self.mask_head(x)
        return mask


def padding(kernel_size: int, dilation: int, *, causal: bool) -> tuple[int, int]:
    """Return the frames of zeros before and after with which a dilated convolution keeps the length."""
    reach = (kernel_size - 1) * dilation
    return (reach, 0) if causal else (reach // 2, reach - reach // 2)


def activation(config: SeparatorConfig | ConvTasNetConfig) -> nn.Module:
    """Make the configured non-linearity; PReLU has one slope per layer, as in Conv-TasNet."""
    return nn.PReLU() if config.activation == "prelu" else nn.ReLU()
