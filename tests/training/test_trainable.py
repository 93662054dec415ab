"""What short trainings run on has the outputs and the gradients of the Brevitas network."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from hwsearch.experiment import FLOAT_BITS, QuantizationConfig
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.second_order import input_statistics
from hwsearch.separator.trained import TrainedState, initial_state, trained_network
from hwsearch.training import trainable
from hwsearch.training.channels_first import by_torch, depthwise
from hwsearch.training.trainable import TrainableNetwork, mean_output
from tests.separator.small import KINDS, RELU, allocations, normalised_features, small_network, uniform


def moved(state, seed):
    """A state as training might leave it: every weight, bias, slope and scale a little off."""
    noise = torch.Generator().manual_seed(seed)
    parameters = {
        name: tensor * (1 + 0.1 * torch.randn(tensor.shape, generator=noise)).clamp_min(0.5)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in state.parameters.items()
    }
    return TrainedState(parameters, state.allocation, state.base_sha256, 7)


def brevitas_gradients(network, base, widths):
    """Gradient of every parameter of the Brevitas network by its name in a trained state."""
    gradients = {}
    for name in (site.removesuffix(".weight") for site in base.sites.weights):
        convolution = network.layer(name)
        gradients |= {f"{name}.weight": convolution.weight.grad, f"{name}.bias": convolution.bias.grad}
        if widths[f"{name}.weight"] != FLOAT_BITS:
            gradients[f"{name}.weight.scale"] = convolution.weight_quant.tensor_quant.scale.grad
    for site, tensor in base.sites.tensors.items():
        module = network.site(site)
        if widths[site] != FLOAT_BITS:
            gradients[f"{site}.scale"] = module.quantizer.act_quant.fused_activation_quant_proxy.tensor_quant.scale.grad
        if f"{tensor}.slope" in base.graph.parameters:
            gradients[f"{tensor}.slope"] = module.activation.weight.grad
    return gradients


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_outputs_and_gradients_are_those_of_the_brevitas_network(kind, data):
    """In double precision, where no value comes near enough to a half for the order of sums to matter.

    It does to slopes at zero, which integers may sum to. So gradients are those of layers that torch computes; fast layers have
    their own tests.
    """
    config = KINDS[kind]
    separator, graph, calibration = small_network(config)
    quantization = QuantizationConfig(weight_scale=data.draw(st.sampled_from(["per_channel", "per_tensor"])))
    base = PreparedBase(separator, graph, calibration, quantization, "")
    allocation, seed = data.draw(allocations(config)), data.draw(st.integers(3, 50))
    state = moved(initial_state(base, allocation), seed)
    normalised = torch.cat([normalised_features(separator, 1500, seed + i) for i in range(2)]).double()
    direction = torch.randn(2, 2 * 65, normalised.shape[-1], generator=torch.Generator().manual_seed(seed)).double()

    brevitas = trained_network(base, state).double().train()
    wanted = brevitas(normalised)
    (wanted * direction).sum().backward()

    parameters = {
        name: tensor.double().requires_grad_() if tensor.is_floating_point() else tensor
        for name, tensor in state.parameters.items()
    }
    fast = TrainableNetwork(base.graph, base.sites, allocation)
    with patch.object(trainable, "channels_first", lambda operation, _: by_torch(operation)):
        plain = TrainableNetwork(base.graph, base.sites, allocation)
    outputs = [network(parameters, normalised.transpose(0, 1)).transpose(0, 1) for network in (fast, plain)]
    (outputs[1] * direction).sum().backward()

    for found in outputs:
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    gradients = brevitas_gradients(brevitas, base, allocation.by_site)
    assert gradients.keys() == {name for name, tensor in parameters.items() if tensor.requires_grad}
    for name, gradient in gradients.items():
        difference = (parameters[name].grad - gradient.reshape(parameters[name].shape)).abs().max()
        assert float(difference) <= 1e-9 * (1 + float(gradient.abs().max())), name


@given(
    kernel=st.sampled_from([3, 5, 7]),
    dilation=st.integers(1, 9),
    frames=st.integers(1, 20),
    causal=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_shifted_products_are_the_librarys_depthwise_convolution(kernel, dilation, frames, causal, seed):
    """Also where the taps reach beyond both ends."""
    noise = torch.Generator().manual_seed(seed)
    x, taps, bias, direction = (
        torch.randn(shape, generator=noise, dtype=torch.float64, requires_grad=True)
        for shape in ((3, 2, frames), (3, 1, kernel), (3,), (3, 2, frames))
    )
    reach = (kernel - 1) * dilation
    before = reach if causal else reach // 2
    shifts = tuple(tap * dilation - before for tap in range(kernel))
    found = depthwise(x, taps, bias, shifts)
    padded = functional.pad(x.transpose(0, 1), (before, reach - before))
    wanted = functional.conv1d(padded, taps, bias, dilation=dilation, groups=3).transpose(0, 1)
    torch.testing.assert_close(found, wanted)
    for mine, theirs in zip(
        torch.autograd.grad(found, (x, taps, bias), direction),
        torch.autograd.grad(wanted, (x, taps, bias), direction),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("widths", [(3, 8), (4, FLOAT_BITS), (FLOAT_BITS, 8)])
def test_mean_outputs_in_place_of_biases_mean_the_same_network(widths):
    """The output is the same, the parameters come back, and a step that moves weights alone keeps the mean output of a layer."""
    separator, graph, calibration = small_network(RELU)
    base = PreparedBase(separator, graph, calibration, QuantizationConfig(), "")
    allocation = uniform(RELU, *widths)
    x = normalised_features(separator, 1500).double().transpose(0, 1)
    state = {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in initial_state(base, allocation).parameters.items()
    }
    means = {name: found.mean for name, found in input_statistics(graph, [x.transpose(0, 1).float()]).items()}
    plain, network = (TrainableNetwork(graph, base.sites, allocation, found) for found in (None, means))
    entered = network.entered(state)
    torch.testing.assert_close(network(entered, x), plain(state, x), rtol=1e-9, atol=1e-9)
    for name, tensor in network.left(entered).items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-9, atol=1e-9)
    moved_weights = {name: tensor * 1.3 if name.endswith(".weight") else tensor for name, tensor in entered.items()}
    after = network.left(moved_weights)
    rounded = TrainableNetwork(graph, base.sites, allocation)._layers["mask_head"].rounded_weight
    at_mean = [mean_output(rounded(own), means["mask_head"]) + own["mask_head.bias"] for own in (state, after)]
    torch.testing.assert_close(*at_mean, rtol=1e-9, atol=1e-9)
