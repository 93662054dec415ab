"""A pass that starts at a site is the whole pass, and computes nothing before the site."""

import pytest
import torch

from hwsearch.sensitivity.prefix import continue_from, layer_output, output_site, site_tensors
from hwsearch.separator.allocation import activation_sites
from hwsearch.separator.folding import convolve, input_site, run_folded
from tests.sensitivity.small import with_layer
from tests.separator.small import KINDS, RELU, normalised_features, small_network

SITES = activation_sites(RELU)


def noise_like(x: torch.Tensor) -> torch.Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("site", SITES)
def test_continuing_from_a_site_is_the_full_run(kind, site):
    """Bit for bit, with the full-precision tensor there and with any other."""
    separator, network, _ = small_network(KINDS[kind])
    features = normalised_features(separator)
    tensors = site_tensors(network, features, convolve)
    change = noise_like(tensors[site])
    for x in (tensors[site], tensors[site] + change):
        full = run_folded(network, features, lambda at, y, x=x: x if at == site else y)
        assert torch.equal(continue_from(network, site, x, tensors), full)


@pytest.mark.parametrize("kind", KINDS)
def test_other_weights_in_one_layer_are_the_full_run_with_that_layer(kind):
    separator, network, _ = small_network(KINDS[kind])
    features = normalised_features(separator)
    tensors = site_tensors(network, features, convolve)
    for layer, folded in network.layers.items():
        weight = folded.weight + 0.1 * noise_like(folded.weight)
        full = run_folded(with_layer(network, layer, weight=weight), features, lambda _, y: y)
        y = layer_output(network, layer, tensors[input_site(network.config, layer)], weight)
        assert torch.equal(continue_from(network, output_site(layer), y, tensors), full), layer


@pytest.mark.parametrize("site", SITES)
def test_a_batch_continues_as_each_alone(site):
    separator, network, _ = small_network()
    tensors = site_tensors(network, normalised_features(separator))
    batch = torch.cat([tensors[site], tensors[site] + noise_like(tensors[site])])
    together = continue_from(network, site, batch, tensors)
    for index in range(2):
        alone = continue_from(network, site, batch[index : index + 1], tensors)
        torch.testing.assert_close(together[index : index + 1], alone)


def test_no_layer_before_the_site_is_computed_again():
    separator, network, _ = small_network()
    tensors = site_tensors(network, normalised_features(separator))
    computed = 0

    def counting(x, layer):
        nonlocal computed
        computed += 1
        return convolve(x, layer)

    for site in SITES:
        computed = 0
        continue_from(network, site, tensors[site], tensors, counting)
        behind = [layer for layer in network.layers if SITES.index(output_site(layer)) > SITES.index(site)]
        assert computed == len(behind), site


def test_an_unknown_site_is_refused():
    separator, network, _ = small_network()
    tensors = site_tensors(network, normalised_features(separator))
    with pytest.raises(ValueError, match=r"no activation site 'blocks\.6\.add\.output'"):
        continue_from(network, "blocks.6.add.output", tensors["input_proj.output"], tensors)
