"""What can be left out of a graph, and that the rest computes what the whole does without it."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from hwsearch.data.arrays import ARRAYS
from hwsearch.experiment import ConvTasNetConfig, SeparatorConfig
from hwsearch.network.blocks import Block
from hwsearch.network.graph import Graph
from hwsearch.network.operations import Add, Convolution, GroupNorm, LayerNorm, Slice
from hwsearch.network.options import Options, find_options
from hwsearch.network.run import run
from hwsearch.network.sites import find_sites, with_reads
from hwsearch.network.trace import trace
from hwsearch.separator.separator import build_separator
from hwsearch.separator.traced import traced
from tests.network.entangled import ENTANGLED
from tests.network.modules import CHANNELS, Stack, UNet, settle
from tests.network.random_modules import random_module

FRAMES = 48
CONV_TASNET = ConvTasNetConfig(network="conv-tasnet", N=12, L=8, B=8, H=12, Sc=6, X=2, R=2)


def traced_module(module: nn.Module) -> Graph:
    return trace(module.eval(), [torch.randn(1, CHANNELS, FRAMES)])


def separator_graph(config: SeparatorConfig | ConvTasNetConfig, seed: int = 0) -> Graph:
    torch.manual_seed(seed)
    separator = build_separator(config, ARRAYS["linear4"], 8000)
    return traced(settle(separator, seed).eval())


def options_of(graph: Graph) -> Options:
    return find_options(graph, {graph.inputs[0]: (inputs_of(graph), FRAMES)})


def inputs_of(graph: Graph) -> int:
    """The channels that a graph reads."""
    first = next(each for each in graph.operations if isinstance(each, Convolution))
    return int(graph.parameter(first, "weight").shape[1]) * first.groups if first.inputs == graph.inputs else CHANNELS


def drawn(options: Options, random: np.random.Generator) -> dict[str, int]:
    """A random structure."""
    structure = {}
    for name in options.by_name:
        least = 0 if isinstance(options.by_name[name], Block) else 1
        structure[name] = int(random.integers(least, options.whole(name) + 1))
    return structure


def drawn_orders(options: Options, random: np.random.Generator) -> dict[str, list[int]]:
    return {group.name: random.permutation(group.classes).tolist() for group in options.groups}


def masked(
    graph: Graph, options: Options, structure: Mapping[str, int], orders: Mapping[str, list[int]], x: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """What the whole graph computes if all that is left out is zero."""
    out = {name for block in options.blocks if structure[block.name] == 0 for name in block.operations}
    left = {each for group in options.groups for each in orders[group.name][structure[group.name] :]}

    def silence(name: str, tensor: torch.Tensor) -> torch.Tensor:
        silent = torch.from_numpy(np.isin(options.classes.of_tensor[name], list(left)))
        tensor = tensor.clone()
        tensor[:, silent] = 0
        return torch.zeros_like(tensor) if name in out else tensor

    return run(graph, {graph.inputs[0]: x}, silence)


def check(graph: Graph, seed: int) -> Graph:
    """Compare a random structure of a graph with the whole graph, and return it."""
    options, random = options_of(graph), np.random.default_rng(seed)
    structure, orders = drawn(options, random), drawn_orders(options, random)
    narrow = options.narrowed(graph, structure, orders)
    x = torch.randn(2, inputs_of(graph), FRAMES, generator=torch.Generator().manual_seed(seed))
    wanted = masked(graph, options, structure, orders, x)
    found = run(narrow, {narrow.inputs[0]: x})
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5), structure
    assert set(find_sites(narrow).all) <= set(find_sites(graph).all)
    return narrow


NETWORKS = {
    "relu": SeparatorConfig(n_fft=128, hop_length=64, B=6, H=10, X=3, R=2),
    "causal": SeparatorConfig(n_fft=128, hop_length=64, B=6, H=10, X=3, R=2, causal=True, activation="prelu"),
    "conv-tasnet": CONV_TASNET,
    "causal-conv-tasnet": CONV_TASNET.model_copy(update={"causal": True}),
}


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_narrowed_separator_computes_what_the_whole_does_without_the_rest(kind: str, reads: bool) -> None:
    graph = separator_graph(NETWORKS[kind])
    for seed in range(6):
        check(with_reads(graph) if reads else graph, seed)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6))
def test_any_narrowed_network_computes_what_the_whole_does_without_the_rest(seed: int) -> None:
    try:
        graph = traced_module(random_module(seed))
        options = options_of(graph)
    except ValueError:  # some have a tensor without channels
        assume(False)
    assume(options.by_name)
    norms = {each.name for each in graph.operations if isinstance(each, GroupNorm | LayerNorm)}
    touched = {each for group in options.groups for each in group.classes}
    # A norm over fewer channels is another function; see the test of norms.
    assume(not any(touched & set(options.classes.of_tensor[name].tolist()) for name in norms))
    check(graph, seed)


@pytest.mark.parametrize("kind", ENTANGLED)
def test_what_is_entangled_is_left_out_whole_or_not_at_all(kind: str) -> None:
    graph = traced_module(settle(ENTANGLED[kind](), 4))
    for seed in range(5):
        check(graph, seed)


def test_the_options_of_a_tcn_are_its_blocks_and_their_hidden_channels() -> None:
    options = options_of(separator_graph(NETWORKS["relu"]))
    assert [block.name for block in options.blocks] == [f"blocks.{number}.kept" for number in range(6)]
    assert [group.name for group in options.groups] == [f"blocks.{number}.expand.channels" for number in range(6)]
    assert {len(group.classes) for group in options.groups} == {10}
    assert {options.block_around(group.name) for group in options.groups} == {block.name for block in options.blocks}


def test_a_block_with_a_skip_connection_goes_as_a_whole() -> None:
    graph = separator_graph(CONV_TASNET)
    options = options_of(graph)
    # The last block has no residual sum, since nothing reads it.
    assert [block.name for block in options.blocks] == [f"blocks.{number}.kept" for number in (0, 1, 2)]
    narrow = options.narrowed(graph, {block.name: 0 for block in options.blocks})
    names = {each.name.split(".")[1] for each in narrow.operations if each.name.startswith("blocks.")}
    assert names == {"3"}
    assert not any(isinstance(each, Add) for each in narrow.operations)


class Skipping(nn.Module):
    """Blocks whose sums all go on, so that one block has to stay."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(CHANNELS, CHANNELS, 1) for _ in range(3))
        self.skips = nn.ModuleList(nn.Conv1d(CHANNELS, 5, 1) for _ in range(3))
        self.head = nn.Conv1d(5, 3, 1)
        self.tail = nn.Conv1d(CHANNELS, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = None
        for layer, skip in zip(self.layers, self.skips, strict=True):
            y = torch.relu(layer(x))
            x = x + y
            total = skip(y) if total is None else total + skip(y)
        made: torch.Tensor = self.head(total) + self.tail(x)
        return made


def test_the_first_of_a_chain_stays_if_all_could_go() -> None:
    graph = traced_module(settle(Skipping(), 2))
    options = options_of(graph)
    assert [block.name for block in options.blocks] == ["add_1.kept", "add_3.kept"]
    for seed in range(8):
        check(graph, seed)


class Gated(nn.Module):
    """One layer whose halves are value and gate: their channels go in pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Conv1d(CHANNELS, 12, 3, padding=1)
        self.head = nn.Conv1d(6, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.both(x).chunk(2, 1)
        made: torch.Tensor = self.head(torch.tanh(value) * torch.sigmoid(gate))
        return made


def test_halves_of_a_layer_that_are_multiplied_go_in_pairs() -> None:
    graph = traced_module(Gated())
    (group,) = options_of(graph).groups
    assert (group.name, len(group.classes)) == ("both.channels", 6)
    narrow = options_of(graph).narrowed(graph, {"both.channels": 4})
    assert narrow.parameters["both.weight"].shape == (8, CHANNELS, 3)
    assert sorted((each.start, each.stop) for each in narrow.operations if isinstance(each, Slice)) == [(0, 4), (4, 8)]
    check(graph, 5)


class Normalised(nn.Module):
    """A norm over the channels that a layer makes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.head = nn.Conv1d(CHANNELS, 6, 1), nn.GroupNorm(1, 6), nn.Conv1d(6, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.head(self.norm(self.layer(x)))
        return made


def test_a_norm_is_over_the_channels_that_are_kept() -> None:
    module = settle(Normalised(), seed=1)
    graph = traced_module(module)
    (group,) = options_of(graph).groups
    narrow = options_of(graph).narrowed(
        graph, {group.name: 2}, {group.name: [group.classes[each] for each in (4, 1, 0, 2, 3, 5)]}
    )
    x, kept = torch.randn(1, CHANNELS, FRAMES), [1, 4]
    hidden = functional.conv1d(x, module.layer.weight[kept], module.layer.bias[kept])
    normed = functional.group_norm(hidden, 1, module.norm.weight[kept], module.norm.bias[kept])
    wanted = functional.conv1d(normed, module.head.weight[:, kept], module.head.bias)
    assert torch.allclose(run(narrow, {narrow.inputs[0]: x})[0], wanted, atol=1e-5)


def test_what_is_whole_shares_its_parameters() -> None:
    graph = separator_graph(NETWORKS["relu"])
    options = options_of(graph)
    narrow = options.narrowed(graph, {"blocks.2.expand.channels": 5, "blocks.4.kept": 0})
    assert narrow.parameters["blocks.0.expand.weight"] is graph.parameters["blocks.0.expand.weight"]
    assert options.narrowed(graph, {}).parameters.keys() == graph.parameters.keys()


def test_channels_of_a_block_that_is_left_out_do_not_matter() -> None:
    options = options_of(separator_graph(NETWORKS["relu"]))
    structure = {"blocks.2.expand.channels": 5, "blocks.2.kept": 0, "blocks.3.expand.channels": 10, "blocks.1.expand.channels": 1}
    assert options.relevant(structure) == {"blocks.2.kept": 0, "blocks.1.expand.channels": 1}


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ({"blocks.9.kept": 0}, "unknown option 'blocks.9.kept'"),
        ({"blocks.0.kept": 2}, "option 'blocks.0.kept' is 2; wanted 0 to 1"),
        ({"blocks.0.expand.channels": 0}, "option 'blocks.0.expand.channels' is 0; wanted 1 to 10"),
        ({"blocks.0.expand.channels": 11}, "wanted 1 to 10"),
    ],
)
def test_a_wrong_structure_is_refused(structure: dict[str, int], message: str) -> None:
    graph = separator_graph(NETWORKS["relu"])
    with pytest.raises(ValueError, match=message):
        options_of(graph).narrowed(graph, structure)


def test_a_network_that_is_one_residual_is_no_block() -> None:
    assert options_of(traced_module(settle(UNet(), 1))).blocks == ()


def test_a_stack_on_the_features_themselves_may_lose_all_its_blocks() -> None:
    graph = traced_module(settle(Stack(3), 1))
    options = options_of(graph)
    narrow = options.narrowed(graph, {block.name: 0 for block in options.blocks})
    assert [each.name for each in narrow.operations] == ["head"]
