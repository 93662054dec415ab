"""The scorer's integer arithmetic gives the Brevitas network's integers."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from hwsearch.experiment import QuantizationConfig
from hwsearch.export.saturation import holds_unsigned_weights
from hwsearch.network.operations import Convolution, Linear
from hwsearch.separator.fast import FastNetwork
from hwsearch.separator.integer import from_grid, integer_layer, integers_are_fast, integers_on, is_product, run_layer, to_grid
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.quantizers import (
    ActivationGrid,
    QuantizedWeight,
    bias_integers,
    fake_quantize,
    quantize_weight,
    weight_scale,
)
from tests.separator.small import CAUSAL, PRELU, RELU, normalised_features, sites_of, small_network, uniform

CONFIG = QuantizationConfig()
RECTIFIED = (".expand.output", ".depthwise.output")
PER_TENSOR = QuantizationConfig(weight_scale="per_tensor")


def is_exact(weight_bits: int, activation_bits: int) -> bool:
    """Whether the kernels here add these products exactly: without VNNI they add pairs of them in 16 bits, which may saturate."""
    return integers_are_fast() or not holds_unsigned_weights(1, weight_bits, activation_bits)


def exact_layer(layer: Convolution | Linear, weight: QuantizedWeight, bias: Tensor, x: Tensor, read: ActivationGrid) -> Tensor:
    """A layer as sums of 64-bit integers: uint8 [batch, frames, in], or [batch, in], to values alike, float64."""
    scale = (weight.scale.flatten() * read.scale).double()
    integers, centred = weight.integers.long(), x.long() - read.zero_point
    if isinstance(layer, Linear):
        sums = centred @ integers.T
    else:
        outputs, in_group, kernel = integers.shape
        padded = functional.pad(centred, (0, 0, *layer.padding))
        reach = (kernel - 1) * layer.dilation
        frames = (padded.shape[1] - reach - 1) // layer.stride + 1
        sums = torch.zeros(len(x), frames, outputs, dtype=torch.long)
        for channel in range(outputs):
            first = channel // (outputs // layer.groups) * in_group
            for tap in range(kernel):
                start = tap * layer.dilation
                there = padded[:, start : start + (frames - 1) * layer.stride + 1 : layer.stride, first : first + in_group]
                sums[..., channel] += there @ integers[channel, :, tap]
    return (sums + bias_integers(bias, weight.scale.flatten() * read.scale).long()) * scale


@st.composite
def layers(draw: st.DrawFn) -> tuple[Convolution | Linear, tuple[int, ...], int, float]:
    """A layer, the shape of its weights, the channels that it reads, and a slope behind it that its kernel takes."""
    small = st.integers(1, 4)
    outputs, inputs = draw(small) * 3, draw(small) * 3
    slope = draw(st.sampled_from([1.0, 0.0, 0.25]))
    match draw(st.sampled_from(["linear", "pointwise", "depthwise", "convolution"])):
        case "linear":
            return Linear("layer", ("x",)), (outputs, inputs), inputs, slope
        case "pointwise":
            return Convolution("layer", ("x",)), (outputs, inputs, 1), inputs, slope
        case "depthwise":
            groups, outputs = inputs, inputs
        case _:
            groups = draw(st.sampled_from([1, 1, 3]))
    kernel, dilation = draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 3, 8]))
    padding = draw(st.tuples(*2 * [st.integers(0, (kernel - 1) * dilation)]))
    layer = Convolution("layer", ("x",), draw(st.integers(1, 3)), dilation, groups, padding)
    shape = outputs, inputs // groups, kernel
    slope = slope if slope in (0.0, 1.0) or is_product(layer, torch.empty(shape)) else 1.0
    return layer, shape, inputs, slope


@pytest.mark.parametrize("config", [CONFIG, PER_TENSOR])
@given(
    drawn=layers(),
    bits=st.integers(2, 8),
    activation_bits=st.tuples(st.integers(4, 8), st.integers(4, 8)),
    frames=st.integers(1, 20),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_a_layer_is_the_exact_sum_rounded_once(config, drawn, bits, activation_bits, frames, seed):
    layer, shape, inputs, slope = drawn
    read_bits, write_bits = activation_bits
    assume(is_exact(bits, read_bits))
    random = torch.Generator().manual_seed(seed)
    real, bias = torch.randn(shape, generator=random), torch.randn(shape[0], generator=random)
    scale = weight_scale(real.reshape(*shape[:2], -1), bits, config).reshape(-1, *[1] * (len(shape) - 1))
    weight = quantize_weight(real, scale, bits)
    read = ActivationGrid(read_bits, 0.037, seed % 2**read_bits)
    write = ActivationGrid(write_bits, 0.051, 2 ** (write_bits - 1) if slope else 0)
    # Frames beyond those of one tap's reach, and as many as the channels of a linear layer's batch.
    reach = (shape[2] - 1) * layer.dilation if isinstance(layer, Convolution) else 0
    axes = (2, inputs) if isinstance(layer, Linear) else (2, reach + frames, inputs)
    x = torch.randint(0, 2**read_bits, axes, generator=random, dtype=torch.uint8)
    packed = integer_layer(layer, weight, bias, read)
    exact = exact_layer(layer, weight, bias, x, read)
    exact = torch.where(exact < 0.0, exact * slope, exact)
    values = run_layer(x, packed, None, slope)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), exact, rtol=1e-5, atol=1e-5)
    found = run_layer(x, packed, write, slope)
    quotient = exact / write.scale
    wanted = (quotient.round() + write.zero_point).clamp(0, write.levels)
    tie = (quotient - quotient.floor() - 0.5).abs() < 1e-4
    assert found.dtype == torch.uint8
    assert bool(((found == wanted) | tie).all())


@given(st.integers(4, 8), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_integers_stand_for_the_values_of_fake_quantization(bits, seed):
    x = 5 * torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(seed))
    before = x.clone()
    grid = ActivationGrid(bits, 0.11, seed % 2**bits)
    integers, values = to_grid(x, grid)
    assert torch.equal(integers_on(x, grid), integers)
    assert torch.equal(values, fake_quantize(x, grid))
    assert torch.equal(from_grid(integers, grid), values)
    assert torch.equal(x, before)


@pytest.mark.parametrize("config", [RELU, CAUSAL])
@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(2, 8), (8 if is_exact(8, 8) else 7, 8), (5, 4), (8, 6)])
def test_every_integer_is_that_of_the_brevitas_network_or_a_tie(config, weight_bits, activation_bits):
    """Layer by layer, each fed with the Brevitas network's own integers, so that no difference can spread."""
    separator, graph, calibration = small_network(config)
    network = build_quantized(graph, uniform(config, weight_bits, activation_bits), calibration, CONFIG)
    recorded: dict[str, torch.Tensor] = {}
    for site, module in network.sites.items():
        module.register_forward_hook(lambda _, __, output, site=site: recorded.__setitem__(site, output))
    with torch.no_grad():
        network(normalised_features(separator))
    sites = sites_of(config)
    for operation in (graph.by_name[site.removesuffix(".weight")] for site in sites.weights):
        name, site, source = operation.name, f"{operation.name}.output", sites.read_by(operation)
        real, bias = graph.parameter(operation, "weight"), graph.parameter(operation, "bias")
        read, write = (calibration.grids[one][activation_bits] for one in (source, site))
        value = recorded[source.replace(".", "_")].transpose(1, 2)
        x = ((value / read.scale).round() + read.zero_point).to(torch.uint8)
        weight = quantize_weight(real, weight_scale(real, weight_bits, CONFIG), weight_bits)
        found = run_layer(x, integer_layer(operation, weight, bias, read), write, 0.0 if site.endswith(RECTIFIED) else 1.0)
        exact = exact_layer(operation, weight, bias, x, read) / write.scale
        wanted = recorded[site.replace(".", "_")].transpose(1, 2)
        differs = from_grid(found, write) != wanted
        assert bool(((exact - exact.floor() - 0.5).abs()[differs] < 1e-4).all()), name


@pytest.mark.parametrize(("config", "weight_bits", "activation_bits"), [(PRELU, 16, 8), (RELU, 8, 32), (RELU, 32, 32)])
def test_what_bytes_cannot_hold_is_computed_in_floats(config, weight_bits, activation_bits):
    separator, graph, calibration = small_network(config)
    features, allocation = normalised_features(separator), uniform(config, weight_bits, activation_bits)
    found, wanted = (
        FastNetwork(graph, calibration, CONFIG, integers=integers).mask_function(allocation)(features)
        for integers in (True, False)
    )
    assert torch.equal(found, wanted)
