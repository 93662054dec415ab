"""Folding changes nothing but rounding, and a folded network can be watched at every site."""

import pytest
import torch
from torch import nn

from hwsearch.network.sites import find_sites
from hwsearch.network.trace import trace
from hwsearch.separator.folding import as_graph, fold, has_activation, input_site, run_folded
from hwsearch.separator.tcn import padding
from tests.separator.small import KINDS, activation_sites, all_sites, normalised_features, small_separator, weight_sites


@pytest.mark.parametrize("kind", KINDS)
def test_the_folded_network_computes_the_network(kind):
    separator = small_separator(KINDS[kind])
    features = normalised_features(separator)
    with torch.no_grad():
        wanted = separator.network.double()(features.double())
        folded = run_folded(fold(separator.network.float()), features, lambda _, x: x)
    assert float((folded - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())


def test_folding_is_exact_at_the_zero_padded_ends():
    """The norm's shift belongs behind the padding: were it folded into what is padded, the ends would differ."""
    separator = small_separator()
    features = normalised_features(separator, samples=190)
    block = separator.network.blocks[1]
    folded = fold(separator.network).layers["blocks.1.depthwise"]
    x = torch.randn(1, 16, 3)  # shorter than the kernel's reach: every frame touches padding
    with torch.no_grad():
        padded = nn.functional.pad(x, padding(3, 2, causal=False))
        wanted = block.depthwise_norm(block.depthwise(padded))
        found = nn.functional.conv1d(padded, folded.weight, folded.bias, dilation=2, groups=16)
    torch.testing.assert_close(found, wanted)
    assert features.shape[-1] < 5


def test_layers_are_the_weight_sites_in_order():
    separator = small_separator()
    assert tuple(f"{name}.weight" for name in fold(separator.network).layers) == weight_sites(separator.config)


@pytest.mark.parametrize("kind", KINDS)
def test_every_activation_site_is_visited_once_in_order(kind):
    separator = small_separator(KINDS[kind])
    visited: list[str] = []

    def watch(site: str, x: torch.Tensor) -> torch.Tensor:
        visited.append(site)
        return x

    run_folded(fold(separator.network), normalised_features(separator), watch)
    assert tuple(visited) == activation_sites(separator.config)


def test_a_layer_reads_the_site_that_input_site_names():
    """Zeroing a site leaves a layer's bias alone at its output, for the layer that reads it."""
    separator = small_separator()
    folded = fold(separator.network)
    features = normalised_features(separator)
    for name, layer in folded.layers.items():
        zeroed = input_site(folded.config, name)
        seen: list[torch.Tensor] = []

        def convolve(x, found, layer=layer, seen=seen):
            if found is layer:
                seen.append(x)
            return nn.functional.conv1d(
                nn.functional.pad(x, found.padding), found.weight, found.bias, dilation=found.dilation, groups=found.groups
            )

        run_folded(folded, features, lambda site, x, z=zeroed: torch.zeros_like(x) if site == z else x, convolve)
        assert len(seen) == 1, name
        assert not seen[0].any(), name


def test_an_unknown_layer_has_no_input_site():
    with pytest.raises(ValueError, match=r"no layer 'blocks\.0\.middle'"):
        input_site(KINDS["relu"], "blocks.0.middle")


def test_slopes_are_kept_for_prelu_only():
    assert not fold(small_separator().network).slopes
    slopes = fold(small_separator(KINDS["prelu"]).network).slopes
    assert set(slopes) == {site for site in activation_sites(KINDS["prelu"]) if has_activation(site)}
    assert all(slope == pytest.approx(0.2) for slope in slopes.values())


def test_a_norm_without_statistics_is_refused():
    separator = small_separator()
    separator.network.input_norm = nn.BatchNorm1d(8, track_running_stats=False)
    with pytest.raises(TypeError, match="without running statistics"):
        fold(separator.network)


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_is_the_traced_one(kind):
    separator = small_separator(KINDS[kind])
    features = normalised_features(separator)
    traced, built = trace(separator.network, [features]), as_graph(fold(separator.network))
    assert (built.inputs, built.operations, built.outputs) == (traced.inputs, traced.operations, traced.outputs)
    assert built.parameters.keys() == traced.parameters.keys()
    for name, tensor in traced.parameters.items():
        assert torch.equal(built.parameters[name], tensor), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_has_the_sites_of_the_network(kind):
    sites = find_sites(as_graph(fold(small_separator(KINDS[kind]).network)))
    assert sites.weights + sites.activations == all_sites(KINDS[kind])
