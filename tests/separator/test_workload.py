"""The workload has the shapes of the network's own modules, and the sites of its allocations; other networks are charged, too."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hw_models.compile import compile_target
from hw_models.cost import evaluate
from hw_models.errors import TargetError
from hw_models.target import built_in_targets, load_target
from hw_models.workload import LayerKind, Workload, bits_matrix
from hwsearch.experiment import SeparatorConfig
from hwsearch.network.graph import Graph
from hwsearch.network.run import run
from hwsearch.network.sites import Sites, find_sites
from hwsearch.network.trace import trace
from hwsearch.separator.allocation import uniform
from hwsearch.separator.traced import traced
from hwsearch.separator.workload import build_workload
from tests.network.modules import CHANNELS, Joined, Normed, Sloped, UNet, settle
from tests.separator.small import KINDS, RELU, sites_of, small_separator, small_shapes

DEEP = SeparatorConfig(B=6, H=10, P=5, X=3, R=2, n_fft=128, hop_length=64)
FEATURES, FRAMES = 260, 40


def workload_of(config: SeparatorConfig, *, per_channel: bool = True) -> Workload:
    return small_shapes(config, FEATURES).workload(FRAMES, 0.008, per_channel=per_channel)


@pytest.mark.parametrize("config", [RELU, DEEP])
def test_shapes_are_those_of_the_modules(config):
    network = small_separator(config).network
    workload = workload_of(config)
    convolutions = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv1d)}
    layers = {layer.name: layer for layer in workload.weight_layers}
    assert list(layers) == list(convolutions)
    for name, module in convolutions.items():
        layer = layers[name]
        assert (layer.in_channels, layer.out_channels) == (module.in_channels, module.out_channels)
        assert (layer.kernel_size, layer.dilation) == (module.kernel_size[0], module.dilation[0])
        assert layer.weight_count == module.weight.numel()
        assert (layer.kind is LayerKind.DEPTHWISE) == (module.groups > 1)
        assert layer.weight_site == f"{name}.weight"


@pytest.mark.parametrize("config", [RELU, DEEP])
def test_sites_are_those_of_an_allocation_in_its_order(config):
    workload, sites = workload_of(config, per_channel=False), sites_of(config)
    assert workload.sites == sites.all
    assert bits_matrix(workload, [uniform(sites, 4, 8).by_site]).shape == (1, len(sites.all))


def test_the_residual_chain_runs_from_block_to_block_and_ends_behind_the_last():
    workload = workload_of(DEEP)
    adds = [layer for layer in workload.layers if layer.kind is LayerKind.ADD]
    trunk = ["input_proj.output", *(f"blocks.{k}.add.output" for k in range(6))]
    assert [layer.input_sites for layer in adds] == [(trunk[k], f"blocks.{k}.project.output") for k in range(6)]
    assert [layer.output_site for layer in adds] == trunk[1:]
    assert workload.layers[-1].input_sites == (trunk[-1],)


def test_frames_and_multiply_accumulates():
    workload = workload_of(RELU)
    features = workload.site_channels["features"]
    assert workload.frames == FRAMES
    assert workload.seconds == pytest.approx(FRAMES * 0.008)
    assert workload.macs == FRAMES * sum([features * 8, 2 * (8 * 16 + 3 * 16 + 16 * 8), 8 * 130])


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_without_numbers_has_the_shapes_of_one_with_them(kind):
    graph, state = traced(small_separator(KINDS[kind])), torch.get_rng_state()
    untrained = small_shapes(KINDS[kind], FEATURES)
    assert untrained.graph.operations == graph.operations
    assert shapes_of(untrained.graph) == shapes_of(graph)
    assert untrained.inputs == FEATURES
    assert torch.equal(torch.get_rng_state(), state)  # whose random numbers others draw


def shapes_of(graph: Graph) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in graph.parameters.items()}


@pytest.mark.parametrize("config", [RELU, KINDS["causal"], DEEP])
def test_kernels_look_ahead_as_far_as_later_frames_change_the_output(config):
    graph, delays = traced(small_separator(config)), workload_of(config).streamed().delay_frames
    assert delays["mask_head.output"] == lookahead(graph, FEATURES)


class Lookahead(nn.Module):
    """Kernels that are neither causal nor centred, and a sum of what is late with what is early."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Conv1d(CHANNELS, CHANNELS, 4, dilation=2)
        self.late = nn.Conv1d(CHANNELS, CHANNELS, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.early(nn.functional.pad(x, (5, 1))).relu()
        return torch.sigmoid(x + self.late(nn.functional.pad(y, (0, 2))))


def lookahead(graph: Graph, channels: int, frames: int = 121) -> int:
    """Frames from the first whose output changes to the one whose input does."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, frames, generator=random)
    other = x.clone()
    other[..., frames // 2] += 1e4 * torch.randn(channels, generator=random)
    (before,), (after,) = (run(graph, dict.fromkeys(graph.inputs, each)) for each in (x, other))
    return frames // 2 - int((before != after).any(1)[0].nonzero()[0])


def test_a_kernel_that_is_not_centred_says_how_far_it_looks_ahead():
    graph, workload = charged(Lookahead(), FRAMES)
    delays = workload.streamed().delay_frames
    assert delays == {"x": 0, "early.output": 1, "late.output": 3, "add.output": 3}
    assert max(delays.values()) == lookahead(graph, CHANNELS)
    assert workload.streamed().state_frames == {"x": 6, "early.output": 2, "late.output": 0, "add.output": 0}


def charged(module: nn.Module, frames: int) -> tuple[Graph, Workload]:
    graph = trace(settle(module, 1), [torch.randn(1, CHANNELS, 31)])
    channels = dict.fromkeys(graph.inputs, CHANNELS)
    return graph, build_workload(graph, find_sites(graph), channels, frames, 0.01, "other", per_channel=True)


MODULES = (UNet, Normed, Joined)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("frames", [30, 31])
def test_the_workload_of_any_network_has_the_tensors_and_products_of_a_run(module, frames):
    graph, workload = charged(module(), frames)
    sites, shapes = find_sites(graph), {}

    def note(name, x):
        shapes[name] = tuple(x.shape[1:])
        return x

    with FlopCounterMode(display=False) as counted:
        run(graph, dict.fromkeys(graph.inputs, torch.randn(1, CHANNELS, frames)), note)
    assert workload.macs == counted.get_total_flops() // 2
    assert workload.sites == sites.all
    for site, tensor in sites.tensors.items():
        assert (workload.site_channels[site], workload.site_positions[site]) == (*shapes[tensor], 1)[:2]
    assert {layer.name for layer in workload.layers} == charged_operations(graph, sites)


def charged_operations(graph: Graph, sites: Sites) -> set[str]:
    """All but parts, padding, and the functions and concatenations that are nothing of their own."""
    free = {"split", "slice", "pad", "relu"}
    names = {operation.name for operation in graph.operations}
    return {name for name in names if name.rstrip("_0123456789") not in free}


@pytest.mark.parametrize("slopes", [1, CHANNELS])
def test_trained_numbers_are_counted_wherever_they_are(slopes):
    graph, workload = charged(Sloped(slopes), FRAMES)
    assert {layer.name for layer in workload.layers} == {"third", "layer", "norm", "add"}
    recorded = 3 if slopes == 1 else 0  # in the records of their sites
    assert workload.parameters == sum(tensor.numel() for tensor in graph.parameters.values()) - recorded


def test_what_only_a_concatenation_reads_is_written_there_and_the_rest_is_copied():
    _, workload = charged(Joined(), FRAMES)
    layers = {layer.name: layer for layer in workload.layers}
    assert list(layers) == ["left", "right", "sigmoid", "cat" if "cat" in layers else "concatenate", "head", "mean", "multiply"]
    joined = layers["head"].input_sites[0]
    assert layers["left"].output_site == layers["right"].output_site == joined
    assert layers["sigmoid"].in_place
    copied = next(layer for layer in workload.layers if layer.kind is LayerKind.CONCATENATE)
    assert (copied.input_sites, copied.in_channels) == (("x",), CHANNELS // 2)
    assert not copied.whole
    assert not layers["multiply"].whole


@pytest.mark.parametrize("module", MODULES)
def test_every_target_charges_a_network_or_refuses_a_layer_by_name(module):
    graph, workload = charged(module(), FRAMES)
    bits = bits_matrix(workload, [uniform(find_sites(graph), 8, 8).by_site])
    refused = set()
    for name in built_in_targets():
        try:
            table = compile_target(load_target(name), workload)
        except TargetError as error:
            assert any(f"layer '{layer.name}'" in str(error) for layer in workload.layers)  # noqa: PT017
            refused.add(name)
            continue
        assert np.isfinite(evaluate(table, bits).latency_ms).all()
        live = table.live[table.live < len(workload.activation_sites)]
        assert set(live.tolist()) == set(range(len(workload.activation_sites)))
    assert {name for name in refused if name.startswith("finn")} == {"finn-pynq-z2", "finn-zcu104"}
    assert "cortex-m7-cmsis-nn" not in refused


@pytest.mark.parametrize("module", [UNet, Normed])
def test_what_wants_all_frames_first_is_not_streamed(module):
    _, workload = charged(module(), FRAMES)
    with pytest.raises(TargetError, match="streaming layer"):
        workload.streamed()
