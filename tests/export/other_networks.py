"""Networks that are no TCN, as they are exported."""

from dataclasses import dataclass, replace
from functools import cache
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwsearch.experiment import QuantizationConfig
from hwsearch.export.description import ExportDescription
from hwsearch.export.network import ExportedNetwork
from hwsearch.network.graph import Graph
from hwsearch.network.operations import TransposedConvolution
from hwsearch.network.run import run
from hwsearch.network.sites import Sites, find_sites
from hwsearch.network.trace import trace
from hwsearch.separator.allocation import BitAllocation, weight_limit
from hwsearch.separator.calibration import Calibration, calibrate
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.quantizers import ActivationGrid
from tests.export.small import description
from tests.network.modules import CHANNELS, UNet, settle
from tests.separator.bfloat16 import next_bfloat16

CONFIG = QuantizationConfig(weight_scale_method="max")
WEIGHT_BITS = (2, 3, 4, 5, 6, 7, 8, 8, 16, 32)
ACTIVATION_BITS = (4, 5, 6, 7, 8, 8, 8, 32)


class Excited(nn.Module):
    """A grouped layer, slopes per channel, a stride, norms, channels weighed by their means, and a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Conv1d(CHANNELS, 8, 3, padding=1, groups=2)
        self.bend = nn.PReLU(8)
        self.down = nn.Conv1d(8, 6, 4, stride=3)
        self.norm = nn.LayerNorm(6)
        self.weigh = nn.Conv1d(6, 6, 1)
        self.up = nn.ConvTranspose1d(6, 8, 3, stride=3)
        self.up_norm = nn.GroupNorm(2, 8)
        self.head = nn.Conv1d(16, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bend(self.values(x))
        z = functional.leaky_relu(self.down(functional.pad(y, (3, 3))), 0.1)
        z = self.norm(z.transpose(1, 2)).transpose(1, 2)
        z = z * torch.sigmoid(self.weigh(z.mean(2, keepdim=True)))
        up = self.up_norm(self.up(z))[..., 1:][..., : x.shape[-1]]
        return functional.softmax(self.head(torch.cat([up, y], 1)), 1)


class Shared(nn.Module):
    """Padding that a layer, a depthwise one and a product read, at the end, too; halves joined the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.full = nn.Conv1d(CHANNELS, CHANNELS, 3)
        self.depthwise = nn.Conv1d(CHANNELS, CHANNELS, 3, groups=CHANNELS)
        self.up = nn.ConvTranspose1d(CHANNELS, 4, 3, stride=2, output_padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        padded = functional.pad(x, (2, 1))
        y = torch.tanh(self.full(padded)) + functional.relu(self.depthwise(padded))
        gated = padded * torch.sigmoid(padded)
        first, second = self.up(y).chunk(2, 1)
        parts = [gated[..., 1:], y, torch.cat([second, first], 1)]
        return functional.pad(torch.cat([part[..., : x.shape[-1]] for part in parts], 1)[..., :-1], (0, 1))


class Doubled(nn.Module):
    """Tensors joined, added and multiplied with themselves; one of them is read by nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(CHANNELS, 6, 3, padding=1)
        self.head = nn.Conv1d(12, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        z = self.head(torch.cat([y, y], 1))
        return z * z + (x + x)


MODULES: dict[str, type[nn.Module]] = {"unet": UNet, "excited": Excited, "shared": Shared, "doubled": Doubled}


class NoStatistics:
    """Features that are normalised already."""

    feature_mean = torch.zeros(CHANNELS)
    feature_scale = torch.ones(CHANNELS)


@dataclass(frozen=True, eq=False)
class Subject:
    """A network at an allocation.

    Attributes:
        exported: as it is exported.
        description: of its file.
        truth: the same, with its weights and biases rounded by itself.
        grids: of the graph's tensors.
    """

    exported: ExportedNetwork
    description: ExportDescription
    truth: Graph
    grids: dict[str, ActivationGrid]


@cache
def traced(kind: str) -> tuple[Graph, Sites, Calibration]:
    """A network's graph, calibrated."""
    graph = trace(settle(MODULES[kind](), seed=0), [torch.randn(1, CHANNELS, 20)])
    return graph, find_sites(graph), calibrate(graph, [frames(60, seed=7)])


def frames(count: int, seed: int) -> Tensor:
    """Features [1, channels, frames]."""
    return torch.randn(1, CHANNELS, count, generator=torch.Generator().manual_seed(seed))


def mixed(kind: str, seed: int) -> BitAllocation:
    """An allocation of many widths."""
    sites, random = traced(kind)[1], Random(seed)  # noqa: S311
    widths = {site: random.choice(WEIGHT_BITS) for site in sites.weights}
    return BitAllocation.of(widths | {site: random.choice(ACTIVATION_BITS) for site in sites.activations})


def subject(kind: str, allocation: BitAllocation) -> Subject:
    """A network at an allocation."""
    graph, sites, calibration = traced(kind)
    network = build_quantized(graph, allocation, calibration, CONFIG)
    grids = {
        tensor: grid
        for site, tensor in sites.tensors.items()
        if (grid := calibration.grid(site, allocation.by_site[site])) is not None
    }
    truth = replace(graph, parameters=_rounded_parameters(graph, sites, allocation, grids))
    return Subject(ExportedNetwork(network, NoStatistics()).eval(), description(graph, allocation), truth, grids)


def _rounded_parameters(
    graph: Graph, sites: Sites, allocation: BitAllocation, grids: dict[str, ActivationGrid]
) -> dict[str, Tensor]:
    """Weights on the grid whose last integer is the largest weight of a channel or just above, biases on that of the products."""
    parameters = dict(graph.parameters)
    for site in sites.weights:
        bits = allocation.by_site[site]
        if bits == 32:
            continue
        layer = graph.by_name[site.removesuffix(".weight")]
        axis = 1 if isinstance(layer, TransposedConvolution) else 0  # of the output channels
        weight, bias = graph.parameter(layer, "weight"), graph.parameter(layer, "bias")
        others = [each for each in range(weight.ndim) if each != axis]
        scale = next_bfloat16(weight.abs().amax(others, keepdim=True) / weight_limit(bits))
        parameters[site] = (weight / scale).round() * scale
        read = grids.get(sites.tensors[sites.read_by(layer)])
        if read is not None:
            product_scale = scale.flatten() * read.scale
            product_scale = product_scale.repeat(len(bias) // len(product_scale))
            parameters[f"{layer.name}.bias"] = (bias / product_scale).round() * product_scale
    return parameters


def rounded_run(graph: Graph, grids: dict[str, ActivationGrid], x: Tensor) -> Tensor:
    """A graph run in double precision with its tensors rounded, plainly."""

    def rounded(name: str, value: Tensor) -> Tensor:
        if name not in grids:
            return value
        grid = grids[name]
        integer = ((value / grid.scale).round() + grid.zero_point).clamp(0, 2**grid.bits - 1)
        return (integer - grid.zero_point) * grid.scale

    exact = replace(graph, parameters={name: tensor.double() for name, tensor in graph.parameters.items()})
    (output,) = run(exact, {graph.inputs[0]: x.double()}, rounded)
    return output.float()
