"""Small modules of many kinds to trace."""

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANNELS = 4


class Residual(nn.Module):
    """Expand, dilated depthwise, project, and a residual add."""

    def __init__(self, channels: int, hidden: int, dilation: int, *, causal: bool, prelu: bool) -> None:
        super().__init__()
        reach = 2 * dilation
        self.pads = (reach, 0) if causal else (dilation, dilation)
        self.expand = nn.Conv1d(channels, hidden, 1, bias=False)
        self.expand_norm = nn.BatchNorm1d(hidden)
        self.expand_activation = nn.PReLU() if prelu else nn.ReLU()
        self.depthwise = nn.Conv1d(hidden, hidden, 3, dilation=dilation, groups=hidden, bias=False)
        self.depthwise_norm = nn.BatchNorm1d(hidden)
        self.depthwise_activation = nn.LeakyReLU(0.2)
        self.project = nn.Conv1d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand_activation(self.expand_norm(self.expand(x)))
        y = self.depthwise_activation(self.depthwise_norm(self.depthwise(functional.pad(y, self.pads))))
        projected: Tensor = self.project(y)
        return x + projected


class Stack(nn.Module):
    """Residual blocks and a head."""

    def __init__(self, blocks: int = 2, *, causal: bool = False, prelu: bool = False) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Residual(CHANNELS, 6, 2**index, causal=causal, prelu=prelu) for index in range(blocks)))
        self.head = nn.Conv1d(CHANNELS, 3, 1)

    def forward(self, features: Tensor) -> Tensor:
        mask: Tensor = self.head(self.blocks(features))
        return mask


class UNet(nn.Module):
    """Down by a stride, up by a transposed convolution, cropped to the input's length, concatenated and gated."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv1d(CHANNELS, 8, 5, stride=2, padding=2)
        self.down_norm = nn.BatchNorm1d(8)
        self.up = nn.ConvTranspose1d(8, 6, 4, stride=2, padding=1, groups=2)
        self.up_norm = nn.BatchNorm1d(6)
        self.gate = nn.Conv1d(CHANNELS + 6, 2 * CHANNELS, 3, padding="same", dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.down_norm(self.down(x)))
        y = self.up_norm(self.up(y))[..., : x.shape[-1]]
        value, gate = self.gate(torch.cat([x, y], 1)).chunk(2, 1)
        return x + torch.tanh(value) * torch.sigmoid(gate)


class Normed(nn.Module):
    """Norms that do not fold, linear layers over channels, a mean over frames, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(CHANNELS)
        self.bottleneck = nn.Conv1d(CHANNELS, 6, 1)
        self.global_norm = nn.GroupNorm(1, 6)
        self.channel_norm = nn.LayerNorm(6)
        self.mix = nn.Linear(6, CHANNELS)
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.classify = nn.Linear(CHANNELS, 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.dropout(self.global_norm(self.bottleneck(0.5 * self.norm(x) - 0.1)))
        z = self.mix(self.channel_norm(y.transpose(1, 2)).relu()).transpose(1, 2)
        squeezed: Tensor = self.pool(z).squeeze(-1)
        return functional.softmax(z, dim=1), self.classify(squeezed)


class Joined(nn.Module):
    """A concatenation of a layer that only it reads, of a gate, and of half of a tensor, then a sum that broadcasts."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv1d(CHANNELS, 6, 1)
        self.right = nn.Conv1d(CHANNELS, 2, 3, padding=1)
        self.head = nn.Conv1d(6 + 2 + CHANNELS // 2, 6, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.left(x), torch.sigmoid(self.right(x)), x[:, : CHANNELS // 2]], 1)
        y = self.head(joined)
        return y * y.mean(2, keepdim=True)


class Sloped(nn.Module):
    """PReLUs behind a layer, behind a norm and on their own, with one slope and with one for each channel."""

    def __init__(self, slopes: int) -> None:
        super().__init__()
        self.layer = nn.Conv1d(CHANNELS, CHANNELS, 1)
        self.first, self.second, self.third = (nn.PReLU(slopes) for _ in range(3))
        self.norm = nn.GroupNorm(2, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(x) + self.second(self.norm(self.first(self.layer(x))))


def settle(module: nn.Module, seed: int) -> nn.Module:
    """Give batch norms statistics as training would, and gains and offsets of their own."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if not tensor.is_floating_point():
                continue
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0, generator=random)
            else:
                tensor.uniform_(-0.6, 0.6, generator=random)
    return module.eval()
