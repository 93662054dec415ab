"""Networks whose blocks or channels are entangled with others, so that little may be left out of them."""

import torch
from torch import Tensor, nn

from tests.network.modules import CHANNELS


class _Entangled(nn.Module):
    """Layers to join in odd ways."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(CHANNELS, 6, 1)
        self.side = nn.Conv1d(CHANNELS, 6, 1)
        self.branches = nn.ModuleList(nn.Conv1d(6, 6, 3, padding=1) for _ in range(3))
        self.skips = nn.ModuleList(nn.Conv1d(6, 6, 1) for _ in range(3))
        self.wide = nn.ModuleList(nn.Conv1d(12, 6, 1) for _ in range(2))
        self.further = nn.Conv1d(6, 6, 1)
        self.mix, self.tail = nn.Linear(6, 6), nn.Linear(6, 3)
        self.head = nn.Conv1d(6, 3, 1)


class BroadcastSkip(_Entangled):
    """Skip connections to which one frame is added."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        total: Tensor | None = None
        for branch, skip in zip(self.branches, self.skips, strict=True):
            v = torch.relu(branch(y))
            total = skip(v) if total is None else total + skip(v)
            y = y + v
        assert total is not None
        made: Tensor = self.head(total + self.further(y.mean(2, keepdim=True)))
        return made


class Modulated(_Entangled):
    """Blocks that share a gate."""

    def forward(self, x: Tensor) -> Tensor:
        gate, y = torch.sigmoid(self.side(x)), self.first(x)
        for branch in self.branches:
            y = y + torch.relu(branch(y)) * gate
        made: Tensor = self.head(y)
        return made


class Conditioned(_Entangled):
    """Blocks that read a further tensor, joined to the trunk."""

    def forward(self, x: Tensor) -> Tensor:
        side, y = self.side(x), self.first(x)
        for layer in self.wide:
            y = y + layer(torch.cat([y, side], 1))
        made: Tensor = self.head(y)
        return made


class GatedTrunk(_Entangled):
    """A block that reads what gates the trunk behind it."""

    def forward(self, x: Tensor) -> Tensor:
        trunk, gate = self.first(x), self.side(x)
        trunk = trunk + self.branches[0](trunk) * self.skips[0](gate)
        made: Tensor = self.head(trunk * torch.sigmoid(gate))
        return made


class JoinedHalves(_Entangled):
    """Channels of two layers in one tensor that a function takes, read apart."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(torch.cat([self.first(x), self.side(x)], 1))
        made: Tensor = self.head(self.skips[0](y[:, :6]) + self.skips[1](y[:, 6:]))
        return made


class Squeezed(_Entangled):
    """A linear layer over channels that scales its own input."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.first(x).mean(2)
        made: Tensor = self.tail(mean * torch.sigmoid(self.mix(mean)))
        return made


class Shifted(_Entangled):
    """A block without a layer."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        made: Tensor = self.head(y + nn.functional.pad(y[..., :-3], (3, 0)))
        return made


ENTANGLED = {kind.__name__: kind for kind in (BroadcastSkip, Modulated, Conditioned, GatedTrunk, JoinedHalves, Squeezed, Shifted)}
