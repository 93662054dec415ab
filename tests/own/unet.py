"""A U-Net of 1-D convolutions on spectral features: strides on the way down, transposed convolutions up, skip connections.

It knows nothing of the project: its function gets channels in and out and what the experiment's `arguments` say.
"""

import torch
from torch import Tensor, nn


class Down(nn.Module):
    """Half as many frames."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(channels, out, 4, stride=2, padding=1)
        self.norm = nn.BatchNorm1d(out)
        self.activation = nn.PReLU(out)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.norm(self.convolution(x)))
        return y


class Up(nn.Module):
    """Twice as many frames, gated, beside what came down."""

    def __init__(self, channels: int, skip: int, out: int) -> None:
        super().__init__()
        self.transposed = nn.ConvTranspose1d(channels, out, 4, stride=2, padding=1, output_padding=1)
        self.merge = nn.Conv1d(out + skip, 2 * out, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        y = torch.relu(self.transposed(x))[..., : skip.shape[-1]]
        value, gate = self.merge(torch.cat([y, skip], 1)).chunk(2, 1)
        return value * torch.sigmoid(gate)


class UNet(nn.Module):
    def __init__(self, inputs: int, outputs: int, channels: int) -> None:
        super().__init__()
        self.enter = nn.Conv1d(inputs, channels, 1)
        self.down = nn.ModuleList([Down(channels, 2 * channels), Down(2 * channels, 2 * channels)])
        self.middle = nn.ModuleList([nn.Conv1d(2 * channels, 2 * channels, 3, padding=1) for _ in range(3)])
        self.up = nn.ModuleList([Up(2 * channels, 2 * channels, channels), Up(channels, channels, channels)])
        self.head = nn.Conv1d(channels, outputs, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        # Whole strides: frames that are missing are zeros, and are cut off again.
        x = torch.relu(self.enter(nn.functional.pad(features, (0, 4))))
        first = self.down[0](x)
        second = self.down[1](first)
        for block in self.middle:
            second = second + torch.relu(block(second))
        y = self.up[1](self.up[0](second, first), x)
        mask: Tensor = self.head(y)
        return mask[..., : features.shape[-1]]


def build(inputs: int, outputs: int, channels: int) -> nn.Module:
    return UNet(inputs, outputs, channels)
