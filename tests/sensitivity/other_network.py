"""A base whose network is no stack of residual blocks."""

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwsearch.experiment import QuantizationConfig
from hwsearch.network.trace import trace
from hwsearch.separator.calibration import calibrate
from hwsearch.separator.prepare import PreparedBase
from tests.network.modules import settle
from tests.sensitivity.small import small_base, small_mixture


class Gated(nn.Module):
    """Down by a stride and up again, three branches that are rounded as one, a gate, a norm that does not fold, a cropped end."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.head = nn.Conv1d(features, 6, 1)
        self.down = nn.Conv1d(6, 6, 5, stride=2, padding=2)
        self.up = nn.ConvTranspose1d(6, 4, 4, stride=2, padding=1, groups=2)
        self.left = nn.Conv1d(6, 2, 1)
        self.slope = nn.PReLU(2)
        self.right = nn.Conv1d(6, 6, 3, padding=1, groups=6)
        self.norm = nn.GroupNorm(1, 6)
        self.mask = nn.Conv1d(6, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.head(x))
        up = self.up(torch.relu(self.down(x)))[..., : x.shape[-1]]
        joined = torch.cat([up, self.slope(self.left(x)), self.right(x)], 1)
        value, gate = joined.chunk(2, 1)
        y = self.norm(torch.tanh(value) * torch.sigmoid(gate))
        made: Tensor = self.mask(functional.pad(x + y, (1, 2)))[..., 1:-2]
        return made


@cache
def other_base() -> PreparedBase:
    """The small base's front end around a `Gated` network, with quantizers that are easy to compute by hand."""
    base = small_base()
    features = [small_mixture(base, seed).analysis.normalised for seed in (1, 2)]
    outputs = 2 * (base.separator.network.config.n_fft // 2 + 1)
    graph = trace(settle(Gated(features[0].shape[1], outputs), seed=0), features[:1])
    quantization = QuantizationConfig(weight_scale="per_tensor", weight_scale_method="max")
    return replace(base, graph=graph, calibration=calibrate(graph, features), quantization=quantization)
