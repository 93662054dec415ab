"""Modules of random operations, the same for the same seed."""

from collections.abc import Callable
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.network.modules import CHANNELS, settle

Step = Callable[[list[Tensor]], Tensor]
"""Makes a tensor from those made so far."""

_WIDTHS = (4, 6, 8)
_MOST_CHANNELS = 24


class RandomModule(nn.Module):
    """A few operations on the input and on each other's results, as many frames throughout, and a layer at the end."""

    def __init__(self, seed: int, operations: int = 6) -> None:
        super().__init__()
        self._random = Random(seed)  # noqa: S311
        self.parts = nn.ModuleList()
        self._channels = [CHANNELS]
        self._steps: list[Step] = []
        single = (self._convolve, self._bend, self._cut, self._norm, self._excite, self._dive, self._shift)
        kinds = (*single, self._carry, self._join)
        for _ in range(operations):
            self._random.choice(kinds)(self._pick())
        self._keep(3, self._layer(nn.Conv1d(self._channels[-1], 3, 1)), len(self._channels) - 1)

    def forward(self, x: Tensor) -> Tensor:
        made = [x]
        for step in self._steps:
            made.append(step(made))
        return made[-1]

    def _pick(self, channels: int | None = None) -> int:
        """A tensor, of so many channels if it matters; more often a late one."""
        found = [place for place, each in enumerate(self._channels) if channels in (None, each)]
        return self._random.choice(found[-3:] if self._random.random() < 0.7 else found)

    def _layer(self, layer: nn.Module) -> Callable[[Tensor], Tensor]:
        self.parts.append(layer)
        return layer

    def _keep(self, channels: int, made: Callable[..., Tensor], *read: int) -> None:
        self._channels.append(channels)
        self._steps.append(lambda tensors: made(*(tensors[place] for place in read)))

    def _convolve(self, x: int) -> None:
        channels, out = self._channels[x], self._random.choice(_WIDTHS)
        groups = self._random.choice([each for each in (1, 2, channels) if channels % each == out % each == 0])
        kernel, dilation = self._random.choice((1, 2, 3, 5)), self._random.choice((1, 2))
        reach = dilation * (kernel - 1)
        before = self._random.choice((0, reach // 2, reach))
        layer = self._layer(nn.Conv1d(channels, out, kernel, dilation=dilation, groups=groups))
        self._keep(out, lambda y: layer(functional.pad(y, (before, reach - before))), x)

    def _bend(self, x: int) -> None:
        channels = self._channels[x]
        kinds = (nn.ReLU, nn.PReLU, lambda: nn.PReLU(channels), nn.LeakyReLU, nn.Sigmoid, nn.Tanh, lambda: nn.Softmax(1))
        self._keep(channels, self._layer(self._random.choice(kinds)()), x)

    def _carry(self, x: int) -> None:
        self._keep(self._channels[x], self._random.choice((torch.add, torch.mul)), x, self._pick(self._channels[x]))

    def _join(self, x: int) -> None:
        read = [x, self._pick()]
        channels = sum(self._channels[each] for each in read)
        if channels <= _MOST_CHANNELS:
            self._keep(channels, lambda *parts: torch.cat(parts, 1), *read)

    def _cut(self, x: int) -> None:
        channels = self._channels[x]
        half = channels // 2
        self._keep(channels - half, lambda y: y.split([half, channels - half], 1)[1], x)
        self._keep(half, lambda y: y[:, :half], x)

    def _norm(self, x: int) -> None:
        channels = self._channels[x]
        layer_norm = nn.LayerNorm(channels)
        kind = self._random.choice((nn.BatchNorm1d(channels), nn.GroupNorm(1, channels), layer_norm))
        norm = self._layer(kind)
        self._keep(channels, lambda y: norm(y.transpose(1, 2)).transpose(1, 2) if kind is layer_norm else norm(y), x)

    def _excite(self, x: int) -> None:
        channels = self._channels[x]
        layer = self._layer(nn.Conv1d(channels, channels, 1))
        self._keep(channels, lambda y: y * torch.sigmoid(layer(y.mean(2, keepdim=True))), x)

    def _dive(self, x: int) -> None:
        """Down by a stride, and up again."""
        channels, stride, groups = self._channels[x], self._random.choice((2, 3)), self._random.choice((1, 2))
        down = self._layer(nn.Conv1d(channels, 6, 2 * stride, stride=stride, padding=1))
        up = self._layer(nn.ConvTranspose1d(6, 4, stride + 1, stride=stride, groups=groups))
        self._keep(4, lambda y: up(torch.relu(down(functional.pad(y, (stride, 2 * stride)))))[..., 1:][..., : y.shape[-1]], x)

    def _shift(self, x: int) -> None:
        frames = self._random.randint(1, 3)
        self._keep(self._channels[x], lambda y: functional.pad(0.7 * y[..., :-frames] + 0.1, (frames, 0)), x)


def random_module(seed: int) -> nn.Module:
    """One of them, with numbers of its own."""
    return settle(RandomModule(seed), seed)
