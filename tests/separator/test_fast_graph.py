"""The scorer's network on graphs that are no TCN, in floats and in integers."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hwsearch.experiment import QuantizationConfig
from hwsearch.network.operations import TransposedConvolution
from hwsearch.network.run import run
from hwsearch.network.sites import find_sites
from hwsearch.network.trace import trace
from hwsearch.separator.allocation import BitAllocation, weight_limit
from hwsearch.separator.calibration import calibrate
from hwsearch.separator.fast import FastNetwork, KeptInput
from tests.network.modules import CHANNELS, UNet, settle
from tests.separator.bfloat16 import next_bfloat16


class Braid(nn.Module):
    """All that the integer kernels take: two layers that read the input, sums of sums, and tensors that are read again later."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv1d(CHANNELS, CHANNELS, 1)
        self.right = nn.Conv1d(CHANNELS, CHANNELS, 3, dilation=2, groups=CHANNELS)
        self.mixed = nn.Conv1d(CHANNELS, CHANNELS, 1)
        self.head = nn.Conv1d(CHANNELS, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        left = functional.relu(self.left(x))
        right = self.right(functional.pad(x, (4, 0)))
        first = left + right
        second = first + functional.relu(self.mixed(first))
        made: Tensor = self.head(second + left)
        return made


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("module", [UNet, Braid])
def test_every_site_is_rounded_and_nothing_else(module: type[nn.Module], integers: bool) -> None:
    graph = trace(settle(module(), seed=0), [torch.randn(1, CHANNELS, 20)])
    sites = find_sites(graph)
    x = torch.randn(2, CHANNELS, 23, generator=torch.Generator().manual_seed(1))
    calibration = calibrate(graph, [x])
    network = FastNetwork(graph, calibration, QuantizationConfig(weight_scale_method="max"), integers=integers)
    found = network.mask_function(BitAllocation.of({**dict.fromkeys(sites.weights, 4), **dict.fromkeys(sites.activations, 6)}))
    parameters = dict(graph.parameters)
    for site in sites.weights:
        layer = graph.by_name[site.removesuffix(".weight")]
        axis = 1 if isinstance(layer, TransposedConvolution) else 0  # of the output channels
        weight, bias = graph.parameter(layer, "weight"), graph.parameter(layer, "bias")
        scale = next_bfloat16(weight.abs().amax([each for each in range(3) if each != axis], keepdim=True) / weight_limit(4))
        product_scale = scale.flatten() * calibration.grids[sites.read_by(layer)][6].scale
        product_scale = product_scale.repeat(len(bias) // len(product_scale))
        parameters[site] = (weight / scale).round() * scale
        parameters[f"{layer.name}.bias"] = (bias / product_scale).round() * product_scale
    grids = {tensor: calibration.grids[site][6] for site, tensor in sites.tensors.items()}

    def rounded(name: str, value: torch.Tensor) -> torch.Tensor:
        if name not in grids:
            return value
        grid = grids[name]
        integer = ((value / grid.scale).round() + grid.zero_point).clamp(0, 63)
        return (integer - grid.zero_point) * grid.scale

    (wanted,) = run(replace(graph, parameters=parameters), {graph.inputs[0]: x}, rounded)
    torch.testing.assert_close(found(x), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(found(KeptInput(x)), found(x))
