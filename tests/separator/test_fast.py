"""The scorer's network gives the Brevitas network's numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.experiment import QuantizationConfig
from hwsearch.network.operations import Convolution
from hwsearch.network.run import convolve, run
from hwsearch.network.sites import find_sites
from hwsearch.separator.fast import FastNetwork, KeptInput, fast_compute, fast_convolve
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.quantizers import fake_quantize
from tests.separator.small import KINDS, RELU, allocations, normalised_features, small_network, uniform
from tests.travel import travelled

CONFIG = QuantizationConfig()
CONFIGS = [
    QuantizationConfig(weight_scale=scale, weight_scale_method=method)
    for scale in ("per_tensor", "per_channel")
    for method in ("mse", "max")
]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_the_fast_network_is_the_brevitas_network(kind, data):
    """Bit-equal but for depthwise sums, whose order differs: those may move a value by a few units in the last place, and a
    value that close to a half to the next integer, and what lies behind it. So: most outputs agree to float rounding; the
    tests below hold every integer."""
    config = KINDS[kind]
    separator, graph, calibration = small_network(config)
    allocation = data.draw(allocations(config))
    quantization = data.draw(st.sampled_from(CONFIGS))
    features = normalised_features(separator, 1500, data.draw(st.integers(3, 50)))
    found = FastNetwork(graph, calibration, quantization).mask_function(allocation)(features)
    with torch.no_grad():
        wanted = build_quantized(graph, allocation, calibration, quantization)(features)
    difference = (found - wanted).abs()
    peak = float(wanted.abs().max())
    assert float((difference > 1e-5 * peak).float().mean()) < 0.2
    assert float(difference.max()) < 0.3 * peak


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 4, 8, 16, 32])
def test_with_floating_point_activations_only_rounding_differs(kind, bits):
    config = KINDS[kind]
    separator, graph, calibration = small_network(config)
    allocation = uniform(config, bits, 32)
    features = normalised_features(separator)
    found = FastNetwork(graph, calibration, CONFIG).mask_function(allocation)(features)
    with torch.no_grad():
        wanted = build_quantized(graph, allocation, calibration, CONFIG)(features)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_every_integer_is_that_of_the_brevitas_network_or_a_tie(bits):
    """Site by site, each fed with the Brevitas network's own values, so that no difference can spread."""
    separator, graph, calibration = small_network()
    allocation = uniform(RELU, 32, bits)
    network = build_quantized(graph, allocation, calibration, CONFIG)
    recorded: dict[str, torch.Tensor] = {}
    for key, module in network.sites.items():
        module.register_forward_hook(lambda _, __, output, key=key: recorded.__setitem__(key, output))
    features = normalised_features(separator)
    with torch.no_grad():
        network(features)
    judged = 0

    sites = find_sites(graph).of_tensor

    def at_tensor(name: str, x: torch.Tensor) -> torch.Tensor:
        nonlocal judged
        if (site := sites.get(name)) is None:
            return x
        grid = calibration.grids[site][bits]
        wanted = recorded[site.replace(".", "_")]
        differs = fake_quantize(x, grid) != wanted
        quotient = x / grid.scale
        assert bool(((quotient - quotient.floor() - 0.5).abs()[differs] < 1e-4).all()), site
        judged += x.numel()
        return wanted

    run(graph, {"features": features}, at_tensor, fast_compute)
    assert judged == sum(value.numel() for value in recorded.values())


@given(st.integers(1, 20), st.sampled_from([3, 5, 7]), st.sampled_from([1, 2, 4, 16]), st.booleans(), st.integers(0, 1000))
@settings(max_examples=80, deadline=None)
def test_shifted_products_are_the_depthwise_convolution(frames, kernel, dilation, causal, seed):
    random = torch.Generator().manual_seed(seed)
    reach = (kernel - 1) * dilation
    pads = (reach, 0) if causal else (reach // 2, reach // 2)
    weight, bias = torch.randn(5, 1, kernel, generator=random), torch.randn(5, generator=random)
    depthwise = Convolution("depthwise", ("x",), dilation=dilation, groups=5, padding=pads)
    x = torch.randn(2, 5, frames, generator=random)
    torch.testing.assert_close(
        fast_convolve(depthwise, x, weight, bias), convolve(depthwise, x, weight, bias), rtol=1e-5, atol=1e-5
    )


def test_allocations_do_not_disturb_each_other():
    separator, graph, calibration = small_network()
    features = normalised_features(separator)
    network = FastNetwork(graph, calibration, CONFIG)
    low, high = network.mask_function(uniform(RELU, 2, 4)), network.mask_function(uniform(RELU, 8, 8))
    first = low(features)
    high(features)
    assert torch.equal(low(features), first)
    assert not torch.equal(high(features), first)


@pytest.mark.parametrize("integers", [False, True])
def test_a_kept_input_gives_every_candidate_the_same_masks(integers):
    """Whatever candidates came before, and one that shares only some widths of the first layer with them."""
    separator, graph, calibration = small_network()
    features = normalised_features(separator)
    network = FastNetwork(graph, calibration, CONFIG, integers=integers)
    kept, before = KeptInput(features), features.clone()
    pairs = [(2, 8), (8, 8), (8, 4), (2, 8), (32, 32), (8, 32), (32, 8), (2, 4), (8, 8)]
    for weight_bits, activation_bits in pairs:
        mask = network.mask_function(uniform(RELU, weight_bits, activation_bits))
        assert torch.equal(mask(kept), mask(features)), (weight_bits, activation_bits)
    assert len(kept.outputs) < len(pairs)
    assert torch.equal(kept.normalised, before)


@pytest.mark.parametrize("integers", [False, True])
def test_a_batch_is_its_mixtures_one_by_one(integers):
    separator, graph, calibration = small_network()
    mask = FastNetwork(graph, calibration, CONFIG, integers=integers).mask_function(uniform(RELU, 4, 8))
    features = [normalised_features(separator, seed=seed) for seed in (3, 4, 5)]
    together = mask(torch.cat(features))
    for number, one in enumerate(features):
        torch.testing.assert_close(together[number : number + 1], mask(one), rtol=1e-4, atol=1e-4)


def test_inputs_are_left_alone_and_masks_carry_no_gradient():
    separator, graph, calibration = small_network()
    features = normalised_features(separator)
    before = features.clone()
    mask = FastNetwork(graph, calibration, CONFIG).mask_function(uniform(RELU, 4, 8))(features.requires_grad_())
    assert torch.equal(features, before)
    assert not mask.requires_grad


def test_a_fast_network_travels_to_a_worker():
    separator, graph, calibration = small_network()
    network = FastNetwork(graph, calibration, CONFIG)
    there = travelled(network)
    features, allocation = normalised_features(separator), uniform(RELU, 4, 8)
    assert torch.equal(there.mask_function(allocation)(features), network.mask_function(allocation)(features))
