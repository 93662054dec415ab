"""The Brevitas network: its meaning against a plain NumPy reading of the allocation, its gradients, and its numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.experiment import FLOAT_BITS, QuantizationConfig
from hwsearch.separator.allocation import BitAllocation, is_weight
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.quantizers import bias_integers, quantize_weight, weight_scale
from tests.separator.small import (
    KINDS,
    PRELU,
    RELU,
    activation_sites,
    allocations,
    normalised_features,
    small_network,
    uniform,
    weight_sites,
)

CONFIG = QuantizationConfig()


def site_outputs(network, features):
    """What the Brevitas network puts out at every activation site, in float64."""
    seen = {}
    hooks = [
        network.site(site).register_forward_hook(
            lambda _, __, output, site=site: seen.__setitem__(site, output[0].numpy().astype(np.float64))
        )
        for site in network.graph_sites.activations
    ]
    with torch.no_grad():
        network(features)
    for hook in hooks:
        hook.remove()
    return seen


def numpy_sites(graph, allocation, calibration, config, features, found):
    """What an allocation means at each site before it is rounded, given what the network under test has at the sites before.

    Float64, with loops over taps: no torch, no Brevitas, no shared code.
    """
    widths = allocation.by_site

    def activate(name, x):
        slope = graph.parameters.get(f"{name.removesuffix('.output')}_activation.slope")
        if slope is not None:
            return np.where(x > 0, x, x * float(slope))
        return np.maximum(x, 0) if name.endswith((".expand.output", ".depthwise.output")) else x

    def layer(name, source):
        x, of = found[source], graph.by_name[name]
        master, offset = graph.parameters[f"{name}.weight"], graph.parameters[f"{name}.bias"]
        bits = widths[f"{name}.weight"]
        weight, bias = master.numpy().astype(np.float64), offset.numpy().astype(np.float64)
        if bits != FLOAT_BITS:
            scale = weight_scale(master, bits, config)
            limit = 2 ** (bits - 1) - 1
            weight = np.clip(np.rint(master.numpy() / scale.numpy()), -limit, limit) * scale.numpy().astype(np.float64)
            if widths[source] <= 8:
                step = scale.numpy().ravel() * np.float32(calibration.grids[source][widths[source]].scale)
                bias = np.rint(offset.numpy() / step) * step.astype(np.float64)
        if of.groups == 1:
            return weight[:, :, 0] @ x + bias[:, None]
        padded = np.pad(x, ((0, 0), of.padding))
        frames = x.shape[1]
        taps = [weight[:, 0, k, None] * padded[:, k * of.dilation :][:, :frames] for k in range(weight.shape[2])]
        return sum(taps) + bias[:, None]

    wanted = {"features": features}
    wanted["input_proj.output"] = layer("input_proj", "features")
    trunk = "input_proj.output"
    for block in range(RELU.R * RELU.X):
        name = f"blocks.{block}"
        source = trunk
        for stage in ("expand", "depthwise", "project"):
            site = f"{name}.{stage}.output"
            wanted[site] = activate(site, layer(f"{name}.{stage}", source))
            source = site
        wanted[f"{name}.add.output"] = found[trunk] + found[f"{name}.project.output"]
        trunk = f"{name}.add.output"
    return wanted | {"mask_head.output": layer("mask_head", trunk)}


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_an_allocation_means_what_it_says(kind, data):
    config = KINDS[kind]
    separator, graph, calibration = small_network(config)
    allocation = data.draw(allocations(config))
    features = normalised_features(separator, 1500, 3)
    found = site_outputs(build_quantized(graph, allocation, calibration, CONFIG), features)
    wanted = numpy_sites(graph, allocation, calibration, CONFIG, features[0].numpy().astype(np.float64), found)
    assert set(found) == set(wanted)
    for site, bits in allocation.widths:
        if is_weight(site):
            continue
        if bits == FLOAT_BITS:
            assert np.abs(found[site] - wanted[site]).max() <= 1e-5 * np.abs(wanted[site]).max()
            continue
        grid = calibration.grids[site][bits]
        steps = found[site] / np.float64(grid.scale) + grid.zero_point
        assert np.abs(steps - np.rint(steps)).max() < 1e-3 * 2 ** max(bits - 14, 0)
        assert steps.min() > -0.5
        assert steps.max() < 2**bits - 0.5
        # Half a step is what rounding may move a value by; a value half-way between two integers may go either way.
        exact = np.clip(wanted[site] / np.float64(grid.scale) + grid.zero_point, 0, 2**bits - 1)
        assert np.abs(steps - exact).max() < 0.51


def test_float_everywhere_is_the_folded_network():
    separator, graph, calibration = small_network()
    features = normalised_features(separator)
    with torch.no_grad():
        found = build_quantized(graph, uniform(RELU, 32, 32), calibration, CONFIG)(features)
        torch.testing.assert_close(found, separator.network(features), rtol=1e-5, atol=1e-5)


@given(allocations(RELU))
@settings(max_examples=5, deadline=None)
def test_the_network_reports_the_grids_it_was_built_with(allocation):
    _, graph, calibration = small_network()
    network = build_quantized(graph, allocation, calibration, CONFIG)
    for site, grid in network.activation_grids().items():
        assert grid == calibration.grid(site, allocation.by_site[site])
    for site, weight in network.quantized_weights().items():
        bits = allocation.by_site[site]
        assert (weight is None) == (bits == FLOAT_BITS)
        if weight is not None:
            master = graph.parameters[site]
            wanted = quantize_weight(master, weight_scale(master, bits, CONFIG), bits)
            assert torch.equal(weight.integers, wanted.integers)
            assert torch.equal(weight.scale, wanted.scale)
            name = site.removesuffix(".weight")
            assert torch.equal(network.layer(name).quant_weight().value, weight.value)


def test_weights_scales_biases_and_slopes_can_be_trained():
    separator, graph, calibration = small_network(PRELU)
    network = build_quantized(graph, uniform(PRELU, 3, 5), calibration, CONFIG).train()
    network(normalised_features(separator)).square().mean().backward()
    parameters = dict(network.named_parameters())
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in parameters.values())
    moving = [name for name, parameter in parameters.items() if parameter.grad.any()]
    assert len(moving) == len(parameters)
    weights, activations = len(weight_sites(PRELU)), len(activation_sites(PRELU))
    slopes = [name for name in graph.parameters if name.endswith(".slope")]
    assert len(slopes) == 4
    assert len(parameters) == 3 * weights + activations + len(slopes)


def test_training_lowers_the_error_that_quantization_made():
    separator, graph, calibration = small_network()
    features = normalised_features(separator)
    with torch.no_grad():
        wanted = separator.network(features)
    network = build_quantized(graph, uniform(RELU, 3, 6), calibration, CONFIG)
    optimizer = torch.optim.Adam(network.parameters(), 5e-4)
    losses = []
    for _ in range(60):
        loss = (network(features) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses[-10:]) < 0.7 * losses[0]


def test_a_trained_state_loads_into_a_new_network():
    separator, graph, calibration = small_network()
    allocation = uniform(RELU, 4, 8)
    trained = build_quantized(graph, allocation, calibration, CONFIG)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.1)
    fresh = build_quantized(graph, allocation, calibration, CONFIG)
    features = normalised_features(separator)
    with torch.no_grad():
        before = fresh(features)
        fresh.load_state_dict(trained.state_dict())
        assert torch.equal(fresh(features), trained(features))
        assert not torch.equal(fresh(features), before)


def test_the_master_copy_of_an_untrained_network_is_what_it_was_built_from():
    _, graph, calibration = small_network(PRELU)
    master = build_quantized(graph, uniform(PRELU, 2, 4), calibration, CONFIG).master_copy()
    assert master.operations == graph.operations
    assert master.parameters.keys() == graph.parameters.keys()
    for name, tensor in graph.parameters.items():
        assert torch.equal(master.parameters[name], tensor)


def test_biases_are_integers_of_the_product_of_scales():
    _, graph, calibration = small_network()
    network = build_quantized(graph, uniform(RELU, 4, 8), calibration, CONFIG)
    layer = network.layer("blocks.0.expand")
    scale = network.quantized_weights()["blocks.0.expand.weight"].scale.flatten()
    step = scale * calibration.grids["input_proj.output"][8].scale
    with torch.no_grad():
        value = layer.quant_bias().value
    assert torch.equal(value, bias_integers(layer.bias, step) * step)


def test_the_order_of_sites_in_an_allocation_does_not_matter():
    separator, graph, calibration = small_network()
    allocation = uniform(RELU, 3, 5)
    shuffled = BitAllocation(tuple(reversed(allocation.widths)))
    features = normalised_features(separator)
    with torch.no_grad():
        assert torch.equal(
            build_quantized(graph, allocation, calibration, CONFIG)(features),
            build_quantized(graph, shuffled, calibration, CONFIG)(features),
        )
