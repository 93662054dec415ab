"""The same numbers, whichever library computes them."""

from dataclasses import replace

import pytest
import torch

from hwsearch.network.operations import Convolution
from hwsearch.network.run import run
from hwsearch.sensitivity.gradient import site_gradients
from hwsearch.sensitivity.kernels import through_onednn
from hwsearch.separator.fast import fast_compute
from tests.sensitivity.small import double_base, double_mixture, small_base, small_mixture
from tests.separator.small import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_the_output_is_that_of_the_network(kind: str) -> None:
    base = small_base(KINDS[kind])
    x = small_mixture(base, samples=40_000).analysis.normalised  # long enough for oneDNN to be taken
    outputs = [run(network, {"features": x}, how=fast_compute)[0] for network in (base.graph, through_onednn(base.graph))]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4 * float(outputs[0].std()))


def test_gradients_are_those_of_the_network() -> None:
    base = double_base()
    mixture = double_mixture(base)
    wanted = site_gradients(base, mixture)
    found = site_gradients(replace(base, graph=through_onednn(base.graph)), mixture)
    assert found.keys() == wanted.keys()
    for site, gradient in wanted.items():
        torch.testing.assert_close(found[site], gradient, rtol=1e-9, atol=1e-9 * float(gradient.abs().max()))


def test_layers_of_several_taps_are_left_alone() -> None:
    network = small_base().graph
    for before, operation in zip(network.operations, through_onednn(network).operations, strict=True):
        one_tap = isinstance(before, Convolution) and network.parameter(before, "weight").shape[-1] == 1
        assert (operation is before) == (not one_tap)
