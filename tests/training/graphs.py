"""Bases whose network is no TCN."""

from functools import cache

import torch
from torch import nn
from torch.nn import functional

from hwsearch.experiment import QuantizationConfig
from hwsearch.network.trace import trace
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.calibration import calibrate
from hwsearch.separator.prepare import PreparedBase
from tests.training.pools import BASE_SHA256, small_base, small_pool

FEATURES = small_pool().batch((0, 1), small_base().separator).analysis.normalised


class Gated(nn.Module):
    """Half the frames and back, a skip beside them, norms and slopes per channel that are trained, and a gate of the mean."""

    def __init__(self, features, outputs):
        super().__init__()
        self.take = nn.Conv1d(features, 8, 1)
        self.slope = nn.PReLU(8)
        self.down = nn.Conv1d(8, 12, 5, stride=2, padding=2)
        self.norm = nn.GroupNorm(1, 12)
        self.up = nn.ConvTranspose1d(12, 6, 4, stride=2, padding=1, groups=2)
        self.layer_norm = nn.LayerNorm(6)
        self.depthwise = nn.Conv1d(14, 14, 3, padding=2, dilation=2, groups=14)
        self.squeeze = nn.Conv1d(14, 14, 1)
        self.head = nn.Conv1d(14, outputs, 1)

    def forward(self, x):
        x = self.slope(self.take(x))
        y = self.up(functional.relu(self.norm(self.down(x))))[..., : x.shape[-1]]
        y = self.layer_norm(y.transpose(1, 2)).transpose(1, 2)
        y = self.depthwise(torch.cat([x, y], 1))
        gate = torch.sigmoid(self.squeeze(y.mean(2, keepdim=True)))
        return self.head(torch.relu(y) * torch.softmax(y, 1) + y * gate)


class Pooled(nn.Module):
    """A linear layer behind a mean over frames."""

    def __init__(self, features, outputs):
        super().__init__()
        self.take = nn.Conv1d(features, 4, 3)
        self.linear = nn.Linear(4, outputs)

    def forward(self, x):
        return torch.tanh(self.linear(functional.leaky_relu(self.take(x), 0.2).mean(2)))


@cache
def graph_base(kind=Gated):
    """A base with the front end of the small one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = kind(FEATURES.shape[1], 2 * 65)
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, 0.0, 0.3)
    graph = trace(module, [FEATURES])
    small = small_base()
    config = QuantizationConfig(weight_scale_method="max")
    return PreparedBase(small.separator, graph, calibrate(graph, [FEATURES]), config, BASE_SHA256)


def cycled(base, weights, activations):
    """The allocation that goes round some widths."""
    sites = (base.sites.weights, weights), (base.sites.activations, activations)
    return BitAllocation.of({site: widths[place % len(widths)] for names, widths in sites for place, site in enumerate(names)})
