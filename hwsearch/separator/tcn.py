"""The full-precision mask network: a temporal convolutional network over feature frames.

The reference system's separator (arXiv 2111.14479, section 2; block after Conv-TasNet, arXiv 1809.07454, figure 1c): R repeats
of X ConvBlocks with dilations 1, 2, ..., 2^(X-1), each a 1x1 convolution B -> H, a depthwise convolution of kernel P, and a 1x1
convolution H -> B with a residual add; two linear heads give the real and imaginary part of the mask.

The norm stands between convolution and activation, where it folds into the convolution exactly, also at the zero-padded ends
of an utterance; the reference has it behind the activation.
"""

from torch import Tensor, nn
from torch.nn import functional

from hwsearch.experiment import ConvTasNetConfig, SeparatorConfig


class ConvBlock(nn.Module):
    """One residual block: expand (1x1), depthwise (dilated), project (1x1).

    Shape:
        [batch, B, frames] -> [batch, B, frames]
    """

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
    """Features in, complex mask out.

    With a beam the mask is added to the beam's, and a fresh network begins with a mask of zero.

    Args:
        config: its shape.
        features: channels of its input.

    Shape:
        features [batch, features, frames] -> mask [batch, 2 * bins, frames], real parts first.
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
    """Frames of zeros before and after, so that a dilated convolution keeps its length."""
    reach = (kernel_size - 1) * dilation
    return (reach, 0) if causal else (reach // 2, reach - reach // 2)


def activation(config: SeparatorConfig | ConvTasNetConfig) -> nn.Module:
    """The configured non-linearity; PReLU has one slope per layer, as in Conv-TasNet."""
    return nn.PReLU() if config.activation == "prelu" else nn.ReLU()
