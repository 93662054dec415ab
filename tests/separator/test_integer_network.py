"""Graphs of which some layers run in integers are the Brevitas network, whatever the other operations are."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from hwsearch.experiment import ConvTasNetConfig, QuantizationConfig
from hwsearch.network.graph import Graph
from hwsearch.network.operations import Convolution, Linear
from hwsearch.network.sites import find_sites, with_reads
from hwsearch.network.trace import trace
from hwsearch.separator import fast, integer_network
from hwsearch.separator.allocation import ACTIVATION_WIDTHS, WEIGHT_WIDTHS, BitAllocation, is_weight, uniform
from hwsearch.separator.calibration import Calibration, calibrate
from hwsearch.separator.conv_tasnet import ConvTasNet
from hwsearch.separator.fast import FastNetwork, KeptInput
from hwsearch.separator.integer import integers_are_fast
from hwsearch.separator.quantized import build_quantized
from tests.export.other_networks import Excited, Shared
from tests.network.modules import CHANNELS, Stack, settle
from tests.own.unet import UNet

CONFIG = QuantizationConfig(weight_scale_method="max")
TASNET = ConvTasNetConfig(network="conv-tasnet", N=8, L=8, B=6, H=8, Sc=6, X=2, R=1)


class Parts(nn.Module):
    """Parts of tensors, some a few frames earlier, that layers and others read, and a layer on the input that is summed."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv1d(CHANNELS, 8, 1)
        self.first = nn.Conv1d(8, 8, 3, padding=1, groups=4)
        self.part = nn.Conv1d(4, 8, 1)
        self.second = nn.Conv1d(8, 8, 3, padding=2, dilation=2)
        self.head = nn.Conv1d(8, 3, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        first = functional.leaky_relu(self.first(x), 0.2)
        part = functional.pad(first[:, 2:6], (0, 4))[..., 4:]
        trunk = x + first
        trunk = trunk + self.part(part)
        trunk = trunk + self.second(trunk)
        gated = torch.sigmoid(part) * trunk[:, 4:]
        made: Tensor = self.head(functional.pad(trunk + torch.cat([gated, part], 1), (0, 3)))
        return made


class Classifier(nn.Module):
    """Layers over frames, then over channels alone."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv1d(CHANNELS, 8, 3, stride=2)
        self.hidden = nn.Linear(8, 6)
        self.slope = nn.PReLU()
        self.classify = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.classify(self.slope(self.hidden(functional.relu(self.enter(x)).mean(2))))
        return made


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "tcn": (lambda: Stack(3), CHANNELS),
    "prelu": (lambda: Stack(2, causal=True, prelu=True), CHANNELS),
    "conv-tasnet": (lambda: ConvTasNet(TASNET, 2), 1),
    "global norms": (lambda: ConvTasNet(TASNET.model_copy(update={"norm": "global"}), 2), 1),
    "unet": (lambda: UNet(CHANNELS, 6, 8), CHANNELS),
    "excited": (Excited, CHANNELS),
    "shared": (Shared, CHANNELS),
    "parts": (Parts, CHANNELS),
    "classifier": (Classifier, CHANNELS),
}
"""Each with the channels of its input."""


def example(name: str, frames: int, seed: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, NETWORKS[name][1], frames, generator=torch.Generator().manual_seed(seed))


@cache
def network(name: str) -> tuple[Graph, Calibration]:
    """A graph whose carried tensors are read at widths of their own."""
    graph = with_reads(trace(settle(NETWORKS[name][0](), seed=0), [example(name, 40, 0)]))
    return graph, calibrate(graph, [example(name, 60, seed) for seed in (1, 2)])


def assert_close(found: Tensor, wanted: Tensor, differing: float) -> None:
    """But for ties that float rounding breaks differently, and what lies behind them: that share of the values may differ."""
    difference, peak = (found - wanted).abs(), float(wanted.abs().max())
    assert found.shape == wanted.shape
    assert float((difference > 1e-4 * peak).float().mean()) <= differing
    assert float(difference.max()) <= 0.3 * peak


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What kernels have run."""
    ran: list[str] = []
    run_layer = integer_network.run_layer

    def counted(x: Tensor, *arguments: object) -> Tensor:
        ran.append(str(x.dtype))
        return run_layer(x, *arguments)

    monkeypatch.setattr(integer_network, "run_layer", counted)
    return ran


@pytest.mark.parametrize("trunk", [8, 16, 32])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_of_bytes_runs_in_integers(name: str, trunk: int, kernels: list[str]) -> None:
    graph, calibration = network(name)
    sites = find_sites(graph)
    allocation = uniform(sites, 4, 7, trunk)
    narrow = [
        operation
        for operation in graph.operations
        if isinstance(operation, Convolution | Linear) and allocation.by_site[sites.read_by(operation)] <= 8
    ]
    assert narrow
    x = example(name, 51, 5, batch=2)
    found = FastNetwork(graph, calibration, CONFIG, integers=True).mask_function(allocation)(x)
    assert len(kernels) == (len(narrow) if integers_are_fast() else 0)
    with torch.no_grad():
        assert_close(found, build_quantized(graph, allocation, calibration, CONFIG)(x), 0.02)


@pytest.mark.parametrize("name", NETWORKS)
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_any_allocation_is_the_brevitas_network(name: str, data: st.DataObject) -> None:
    graph, calibration = network(name)
    sites = find_sites(graph).all
    widths = st.tuples(*(st.sampled_from(WEIGHT_WIDTHS if is_weight(site) else ACTIVATION_WIDTHS) for site in sites))
    allocation = BitAllocation(tuple(zip(sites, data.draw(widths), strict=True)))
    x = example(name, data.draw(st.integers(40, 70)), data.draw(st.integers(3, 50)), batch=2)
    before = x.clone()
    mask = FastNetwork(graph, calibration, CONFIG, integers=True).mask_function(allocation)
    found = mask(x)
    with torch.no_grad():
        assert_close(found, build_quantized(graph, allocation, calibration, CONFIG)(x), 0.2)
    kept = KeptInput(x)
    assert all(torch.equal(mask(kept), found) for _ in range(2))
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", NETWORKS)
def test_floats_and_integers_share_a_kept_input(name: str) -> None:
    """As the scorer's two networks do; what one makes of it is none of the other's."""
    graph, calibration = network(name)
    x = example(name, 51, 7)
    kept = KeptInput(x)
    networks = [FastNetwork(graph, calibration, CONFIG, integers=integers) for integers in (False, True)]
    for weights, activations in ((8, 8), (16, 8), (8, 16), (32, 32), (4, 8)):
        allocation = uniform(find_sites(graph), weights, activations)
        for one in (*networks, networks[0]):
            mask = one.mask_function(allocation)
            assert torch.equal(mask(kept), mask(x)), (weights, activations)


@pytest.mark.parametrize("name", NETWORKS)
def test_without_fast_integers_all_is_computed_in_floats(name: str, kernels: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "integers_are_fast", lambda: False)
    graph, calibration = network(name)
    x, allocation = example(name, 51, 7), uniform(find_sites(graph), 4, 8, 16)
    found, wanted = (
        FastNetwork(graph, calibration, CONFIG, integers=integers).mask_function(allocation)(x) for integers in (True, False)
    )
    assert torch.equal(found, wanted)
    assert not kernels
