"""A pass that starts at a site is the whole pass, and computes nothing before the site."""

from dataclasses import replace

import pytest
import torch

from hwsearch.network.graph import Graph
from hwsearch.network.operations import Elementwise
from hwsearch.network.run import compute
from hwsearch.network.sites import LAYERS, find_sites
from hwsearch.network.trace import trace
from hwsearch.sensitivity.prefix import Continuation, run_keeping
from tests.network.modules import CHANNELS, Normed, settle
from tests.sensitivity.other_network import other_base
from tests.sensitivity.small import run_sites, small_base, small_mixture, with_parameter
from tests.separator.small import KINDS, RELU, activation_sites

SITES = activation_sites(RELU)
GRAPHS = [*KINDS, "other"]


def case(kind: str) -> tuple[Graph, torch.Tensor]:
    """A network and its input."""
    base = other_base() if kind == "other" else small_base(KINDS[kind])
    return base.graph, small_mixture(base, samples=3000).analysis.normalised


def noise_like(x: torch.Tensor) -> torch.Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("kind", GRAPHS)
def test_continuing_from_a_site_is_the_full_run(kind: str) -> None:
    """Bit for bit, with the full-precision tensor there and with any other."""
    graph, features = case(kind)
    sites = find_sites(graph)
    network = Continuation(graph, sites, compute)
    output, tensors = run_keeping(graph, sites, features, compute)
    assert torch.equal(output, run_sites(graph, features))
    for site in sites.activations:
        for x in (tensors[site], tensors[site] + noise_like(tensors[site])):
            full = run_sites(graph, features, lambda at, y, site=site, x=x: x if at == site else y)
            assert torch.equal(network.continue_from(site, x, tensors), full), site


@pytest.mark.parametrize("kind", GRAPHS)
def test_other_weights_in_one_layer_are_the_full_run_with_that_layer(kind: str) -> None:
    graph, features = case(kind)
    sites = find_sites(graph)
    network = Continuation(graph, sites, compute)
    _, tensors = run_keeping(graph, sites, features, compute)
    for site in sites.weights:
        layer = site.removesuffix(".weight")
        weight = graph.parameters[site] + 0.1 * noise_like(graph.parameters[site])
        name = f"{layer}.bias"
        bias = graph.parameters[name] + 0.1 * noise_like(graph.parameters[name])
        full = run_sites(with_parameter(with_parameter(graph, site, weight), name, bias), features)
        y = network.layer_output(layer, weight, bias, tensors)
        assert torch.equal(network.continue_from(network.site_behind(layer), y, tensors), full), layer


@pytest.mark.parametrize("kind", ["relu", "other"])
def test_a_batch_continues_as_each_alone(kind: str) -> None:
    graph, features = case(kind)
    sites = find_sites(graph)
    network = Continuation(graph, sites)
    _, tensors = run_keeping(graph, sites, features)
    for site in sites.activations:
        batch = torch.cat([tensors[site], tensors[site] + noise_like(tensors[site])])
        together = network.continue_from(site, batch, tensors)
        for index in range(2):
            alone = network.continue_from(site, batch[index : index + 1], tensors)
            torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-5, atol=1e-5)


def test_no_layer_before_the_site_is_computed_again() -> None:
    graph, features = case("relu")
    sites = find_sites(graph)
    _, tensors = run_keeping(graph, sites, features)
    computed = 0

    def counting(operation, graph, inputs):
        nonlocal computed
        computed += isinstance(operation, LAYERS)
        return compute(operation, graph, inputs)

    network = Continuation(graph, sites, counting)
    for site in SITES:
        computed = 0
        network.continue_from(site, tensors[site], tensors)
        behind = [each for each in sites.weights if SITES.index(each.replace(".weight", ".output")) > SITES.index(site)]
        assert computed == len(behind), site


def test_an_unknown_site_is_refused() -> None:
    graph, features = case("relu")
    sites = find_sites(graph)
    with pytest.raises(ValueError, match=r"no activation site 'blocks\.6\.add\.output'"):
        Continuation(graph, sites).continue_from("blocks.6.add.output", features, {})


def test_a_network_of_two_outputs_is_refused() -> None:
    graph = trace(settle(Normed(), seed=0), [torch.randn(1, CHANNELS, 20)])
    sites = find_sites(graph)
    for refused in (lambda: Continuation(graph, sites), lambda: run_keeping(graph, sites, torch.randn(1, CHANNELS, 20))):
        with pytest.raises(ValueError, match="1 inputs and 2 outputs; wanted one of each"):
            refused()


def test_a_tensor_that_is_handed_on_is_a_variable_of_each_site() -> None:
    """One block reads a sum by way of an operation that returns what it is given."""
    graph, features = case("relu")
    copy = Elementwise("copy", ("blocks.0.add",))
    reader = replace(graph.by_name["blocks.1.expand"], inputs=("copy",))
    at = graph.operations.index(graph.by_name["blocks.1.expand"])
    graph = replace(graph, operations=(*graph.operations[:at], copy, reader, *graph.operations[at + 1 :]))
    handing = lambda operation, graph, inputs: inputs[0] if operation is copy else compute(operation, graph, inputs)  # noqa: E731
    output, tensors = run_keeping(graph, find_sites(graph), features.requires_grad_(), handing)
    wanted = [tensors[site] for site in ("blocks.0.add.output", "copy.output", "blocks.1.add.output")]
    whole, copied, beside = torch.autograd.grad(output.square().sum(), wanted)
    assert bool(copied.any())
    torch.testing.assert_close(whole, copied + beside)
