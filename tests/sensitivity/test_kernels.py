"""The same numbers, whichever library computes them."""

from dataclasses import replace

import pytest
import torch

from hwsearch.sensitivity.gradient import site_gradients
from hwsearch.sensitivity.kernels import through_onednn
from hwsearch.separator.fast import fast_layer
from hwsearch.separator.folding import run_folded
from tests.sensitivity.small import double_base, double_mixture, small_base, small_mixture
from tests.separator.small import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_the_output_is_that_of_the_network(kind: str) -> None:
    base = small_base(KINDS[kind])
    x = small_mixture(base, samples=40_000).analysis.normalised  # long enough for oneDNN to be taken
    outputs = [run_folded(network, x, lambda _, y: y, fast_layer) for network in (base.folded, through_onednn(base.folded))]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4 * float(outputs[0].std()))


def test_gradients_are_those_of_the_network() -> None:
    base = double_base()
    mixture = double_mixture(base)
    wanted = site_gradients(base, mixture)
    found = site_gradients(replace(base, folded=through_onednn(base.folded)), mixture)
    assert found.keys() == wanted.keys()
    for site, gradient in wanted.items():
        torch.testing.assert_close(found[site], gradient, rtol=1e-9, atol=1e-9 * float(gradient.abs().max()))


def test_layers_of_several_taps_are_left_alone() -> None:
    network = small_base().folded
    for name, layer in through_onednn(network).layers.items():
        assert (layer is network.layers[name]) == (layer.weight.shape[-1] > 1)
