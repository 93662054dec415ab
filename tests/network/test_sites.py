"""Which tensors of a network have a bit-width."""

from functools import cache

import torch

from hwsearch.network.graph import Graph
from hwsearch.network.operations import Read
from hwsearch.network.run import run
from hwsearch.network.sites import find_sites, with_reads
from hwsearch.network.trace import trace
from tests.network.modules import CHANNELS, Normed, Stack, UNet, settle


@cache
def _traced(module: type[torch.nn.Module]) -> Graph:
    return trace(settle(module(), seed=0), [torch.randn(1, CHANNELS, 20)])


def test_the_sites_of_residual_blocks() -> None:
    sites = find_sites(_traced(Stack))
    blocks = [(f"blocks.{index}.expand", f"blocks.{index}.depthwise", f"blocks.{index}.project") for index in range(2)]
    assert sites.weights == (*(f"{layer}.weight" for block in blocks for layer in block), "head.weight")
    assert sites.activations == (
        "features",
        *(f"blocks.0.{tensor}.output" for tensor in ("expand", "depthwise", "project", "add")),
        *(f"blocks.1.{tensor}.output" for tensor in ("expand", "depthwise", "project", "add")),
        "head.output",
    )
    assert sites.tensors["blocks.0.expand.output"] == "blocks.0.expand_activation"  # behind the function


def test_a_layer_reads_the_grid_that_its_input_is_on() -> None:
    graph = _traced(Stack)
    sites = find_sites(graph)
    assert sites.read_by(graph.by_name["blocks.1.expand"]) == "blocks.0.add.output"
    assert sites.read_by(graph.by_name["blocks.1.depthwise"]) == "blocks.1.expand.output"


def test_parts_are_on_the_grid_of_the_whole_and_a_concatenation_is_rounded_once() -> None:
    graph = _traced(UNet)
    sites = find_sites(graph)
    # `up` is cropped before it is concatenated: the crop is of a tensor on a grid.
    assert sites.activations == (
        "x",
        "down.output",
        "up.output",
        "concatenate.output",
        "gate.output",
        "tanh.output",
        "sigmoid.output",
        "multiply.output",
        "add.output",
    )
    assert sites.grids["split_0"] == sites.grids["split_1"] == "gate.output"


def test_a_norm_that_does_not_fold_stands_between_two_sites() -> None:
    sites = find_sites(_traced(Normed))
    assert "bottleneck.output" in sites.activations
    assert "global_norm.output" in sites.activations
    assert sites.tensors["channel_norm.output"] == "relu"


def test_reads_are_put_before_layers_of_carried_tensors_only() -> None:
    graph = with_reads(_traced(Stack))
    sites = find_sites(graph)
    reads = [each.name for each in graph.operations if isinstance(each, Read)]
    assert reads == ["blocks.0.expand.input", "blocks.1.expand.input"]
    assert sites.carried == ("features", "blocks.0.add.output")
    assert sites.read_by(graph.by_name["blocks.1.expand"]) == "blocks.1.expand.input"
    assert sites.read_by(graph.by_name["head"]) == "blocks.1.add.output"  # nothing else reads it
    x = torch.randn(2, CHANNELS, 9)
    assert torch.equal(*run(graph, {"features": x}), *run(_traced(Stack), {"features": x}))


def test_every_sum_that_a_layer_reads_may_be_wide() -> None:
    """Where blocks may be left out, any sum may be the last."""
    graph = with_reads(_traced(Stack), sums=True)
    sites = find_sites(graph)
    assert sites.carried == ("features", "blocks.0.add.output", "blocks.1.add.output")
    assert [each.name for each in graph.operations if isinstance(each, Read)][-1] == "head.input"
    assert sites.read_by(graph.by_name["head"]) == "head.input"
