"""The scorer's integer arithmetic gives the Brevitas network's integers."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hwsearch.experiment import QuantizationConfig
from hwsearch.export.saturation import holds_unsigned_weights
from hwsearch.network.operations import Convolution
from hwsearch.separator.allocation import BitAllocation, is_weight
from hwsearch.separator.fast import FastNetwork
from hwsearch.separator.integer import from_grid, integer_layer, integers_are_fast, run_layer, to_grid
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.quantizers import ActivationGrid, bias_integers, fake_quantize, quantize_weight, weight_scale
from tests.separator.small import CAUSAL, PRELU, RELU, all_sites, normalised_features, sites_of, small_network, uniform

CONFIG = QuantizationConfig()
RECTIFIED = (".expand.output", ".depthwise.output")
PER_TENSOR = QuantizationConfig(weight_scale="per_tensor")


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution: weight [out, in / groups, kernel], bias [out]."""

    weight: torch.Tensor
    bias: torch.Tensor
    dilation: int = 1
    groups: int = 1
    padding: tuple[int, int] = (0, 0)


def is_exact(weight_bits: int, activation_bits: int) -> bool:
    """Whether the kernels here add these products exactly: without VNNI they add pairs of them in 16 bits, which may saturate."""
    return integers_are_fast() or not holds_unsigned_weights(1, weight_bits, activation_bits)


def exact_layer(layer: Layer, x: torch.Tensor, read: ActivationGrid, bits: int, config: QuantizationConfig) -> torch.Tensor:
    """A layer in double precision, tap by tap: integers [batch, frames, in] to values [batch, frames, out]."""
    scale = weight_scale(layer.weight, bits, config)
    weight = quantize_weight(layer.weight, scale, bits).value.double()
    product_scale = scale.flatten() * read.scale
    bias = (bias_integers(layer.bias, product_scale) * product_scale).double()
    values = (x.double() - read.zero_point) * read.scale
    before, after = layer.padding
    padded = torch.nn.functional.pad(values, (0, 0, before, after))
    frames = x.shape[1]
    total = bias.expand(len(x), frames, -1).clone()
    for tap in range(weight.shape[2]):
        there = padded[:, tap * layer.dilation : tap * layer.dilation + frames]
        total += there @ weight[:, :, tap].T if layer.groups == 1 else there * weight[:, 0, tap]
    return total


@pytest.mark.parametrize("config", [CONFIG, PER_TENSOR])
@given(
    depthwise=st.booleans(),
    causal=st.booleans(),
    relu=st.booleans(),
    bits=st.integers(2, 8),
    activation_bits=st.tuples(st.integers(4, 8), st.integers(4, 8)),
    dilation=st.sampled_from([1, 2, 8]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_a_layer_is_the_exact_sum_rounded_once(config, depthwise, causal, relu, bits, activation_bits, dilation, seed):
    read_bits, write_bits = activation_bits
    assume(is_exact(bits, read_bits))
    random = torch.Generator().manual_seed(seed)
    reach = 2 * dilation
    shape = {"dilation": dilation, "groups": 12, "padding": (reach, 0) if causal else (dilation, dilation)} if depthwise else {}
    weight = torch.randn(12, 1, 3, generator=random) if depthwise else torch.randn(12, 10, 1, generator=random)
    layer = Layer(weight, torch.randn(12, generator=random), **shape)
    read = ActivationGrid(read_bits, 0.037, seed % 2**read_bits)
    write = ActivationGrid(write_bits, 0.051, 0 if relu else 2 ** (write_bits - 1))
    x = torch.randint(0, 2**read_bits, (2, 17, 12 if depthwise else 10), generator=random, dtype=torch.uint8)
    packed = integer_layer(
        operation_of(layer), quantize_weight(weight, weight_scale(weight, bits, config), bits), layer.bias, read
    )
    exact = exact_layer(layer, x, read, bits, config)
    exact = exact.clamp_min(0.0) if relu else exact
    real = run_layer(x, packed, None, relu=relu)
    assert real.dtype == torch.float32
    torch.testing.assert_close(real.double(), exact, rtol=1e-5, atol=1e-5)
    found = run_layer(x, packed, write, relu=relu)
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
        parameters = graph.parameter(operation, "weight"), graph.parameter(operation, "bias")
        layer = Layer(*parameters, operation.dilation, operation.groups, operation.padding)
        read, write = (calibration.grids[one][activation_bits] for one in (source, site))
        value = recorded[source.replace(".", "_")].transpose(1, 2)
        x = ((value / read.scale).round() + read.zero_point).to(torch.uint8)
        weight = quantize_weight(layer.weight, weight_scale(layer.weight, weight_bits, CONFIG), weight_bits)
        found = run_layer(
            x,
            integer_layer(operation_of(layer), weight, layer.bias, read),
            write,
            relu=site.endswith(RECTIFIED),
        )
        exact = exact_layer(layer, x, read, weight_bits, CONFIG) / write.scale
        wanted = recorded[site.replace(".", "_")].transpose(1, 2)
        differs = from_grid(found, write) != wanted
        assert bool(((exact - exact.floor() - 0.5).abs()[differs] < 1e-4).all()), name


@pytest.mark.parametrize("config", [RELU, CAUSAL])
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_a_candidate_in_integers_is_the_brevitas_network(config, data):
    """But for ties that floating point breaks differently, and what lies behind them: at most a few values move far.

    Without VNNI a candidate asked for in integers is computed in floats.
    """
    separator, graph, calibration = small_network(config)
    widths = (st.integers(2, 8) if is_weight(site) else st.integers(4, 8) for site in all_sites(config))
    allocation = BitAllocation(tuple(zip(all_sites(config), data.draw(st.tuples(*widths)), strict=True)))
    features = normalised_features(separator, 1500, data.draw(st.integers(3, 50)))
    found = FastNetwork(graph, calibration, CONFIG, integers=True).mask_function(allocation)(features)
    with torch.no_grad():
        wanted = build_quantized(graph, allocation, calibration, CONFIG)(features)
    difference, peak = (found - wanted).abs(), float(wanted.abs().max())
    assert found.shape == wanted.shape
    assert float((difference > 1e-5 * peak).float().mean()) < 0.2
    assert float(difference.max()) < 0.3 * peak


@pytest.mark.parametrize(
    ("config", "weight_bits", "activation_bits"), [(PRELU, 8, 8), (RELU, 16, 8), (RELU, 8, 32), (RELU, 32, 32)]
)
def test_what_bytes_cannot_hold_is_computed_in_floats(config, weight_bits, activation_bits):
    separator, graph, calibration = small_network(config)
    features, allocation = normalised_features(separator), uniform(config, weight_bits, activation_bits)
    found, wanted = (
        FastNetwork(graph, calibration, CONFIG, integers=integers).mask_function(allocation)(features)
        for integers in (True, False)
    )
    assert torch.equal(found, wanted)


def operation_of(layer: Layer) -> Convolution:
    return Convolution("layer", ("x",), dilation=layer.dilation, groups=layer.groups, padding=layer.padding)


def output_of(layer: str) -> str:
    return {"input_proj": "input_proj.output", "mask_head": "mask_head.output"}.get(layer, f"{layer}.output")
