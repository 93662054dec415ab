"""Rewritten graphs against the graphs that they came from, and their ranges against what the rewrites are for."""

import pytest
import torch

from hwsearch.network.conditioned import LARGEST_GAIN, centred, channel_ranges, equalised
from hwsearch.network.graph import Graph
from hwsearch.network.operations import Add, Convolution, Read
from hwsearch.network.run import run
from hwsearch.network.sites import with_reads
from hwsearch.network.trace import trace
from tests.export.other_networks import frames
from tests.network.random_modules import random_module
from tests.separator.small import KINDS, normalised_features, small_network


def both(graph: Graph, features: list[torch.Tensor]) -> Graph:
    graph = equalised(graph, channel_ranges(graph, features))
    return centred(graph, channel_ranges(graph, features))


def output(graph: Graph, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return run(graph, {graph.inputs[0]: x})[0]


@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(12, 200))])
def test_a_network_computes_the_same(seed: int) -> None:
    graph = trace(random_module(seed), [frames(30, 0)])
    if seed % 2:
        graph = with_reads(graph)
    for count in (31, 50):
        x = frames(count, seed)
        torch.testing.assert_close(output(both(graph, [frames(60, 1)]), x), output(graph, x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reads", [False, True])
def test_the_ranges_of_a_tcn(kind: str, reads: bool) -> None:
    separator, graph, _ = small_network(KINDS[kind])
    features = [normalised_features(separator)]
    plain = with_reads(graph) if reads else graph
    found = both(plain, features)
    torch.testing.assert_close(output(found, features[0]), output(plain, features[0]), rtol=1e-4, atol=1e-5)
    ranges, plain_ranges = channel_ranges(found, features), channel_ranges(plain, features)
    trunk = [operation.name for operation in plain.operations if isinstance(operation, Add | Read)]
    for name in ("input_proj", *trunk):
        low, high = ranges[name]
        assert float((low + high).abs().max()) < 1e-5 * float(high.max())
    depthwise = [operation for operation in found.operations if isinstance(operation, Convolution) and operation.groups > 1]
    assert len(depthwise) == KINDS[kind].X
    for operation in depthwise:
        low, high = ranges[operation.inputs[0]]
        reach = torch.maximum(high, -low)
        before = torch.maximum(plain_ranges[operation.inputs[0]][1], -plain_ranges[operation.inputs[0]][0])
        wanted = torch.minimum(LARGEST_GAIN * before, before.max())
        torch.testing.assert_close(reach, wanted, rtol=1e-4, atol=1e-6)
