"""The packed file: as long as the cost model says, and exact."""

import math
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hw_models.packed import packed_size_bytes
from hw_models.workload import bits_matrix
from hwsearch.experiment import QuantizationConfig
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.packed import pack, pack_integers
from hwsearch.network.sites import find_sites
from hwsearch.network.trace import trace
from hwsearch.separator.allocation import uniform as allocation_of
from hwsearch.separator.calibration import calibrate
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.quantizers import QuantizedWeight
from hwsearch.separator.workload import build_workload
from tests.export.unpacked import unpack, unpack_integers
from tests.network.modules import CHANNELS, Joined, Sloped, Stack, UNet, settle
from tests.separator.small import CAUSAL, PRELU, RELU, allocations, small_network, small_shapes, uniform

CONFIG = QuantizationConfig()


@cache
def network(config=RELU, weight_bits=3, activation_bits=8):
    _, graph, calibration = small_network(config)
    return build_quantized(graph, uniform(config, weight_bits, activation_bits), calibration, CONFIG)


def pack_network(written, config=RELU):
    return pack(ExportedNetwork(written, small_network(config)[0].front_end))


def shapes(config=RELU):
    """What a reader has to know of a network."""
    separator, graph, _ = small_network(config)
    return graph, separator.front_end.inputs


@given(allocation=allocations(RELU), per_channel=st.booleans())
@settings(max_examples=12, deadline=None)
def test_the_file_is_as_long_as_the_cost_model_says(allocation, per_channel):
    separator, graph, calibration = small_network(RELU)
    config = QuantizationConfig(weight_scale="per_channel" if per_channel else "per_tensor")
    features = separator.front_end.inputs
    workload = small_shapes(RELU, features).workload(10, 0.008, per_channel=per_channel)
    content = pack_network(build_quantized(graph, allocation, calibration, config))
    assert len(content) == packed_size_bytes(workload, bits_matrix(workload, [allocation.by_site]))[0]


GROUPED = torch.nn.Sequential(torch.nn.ConvTranspose1d(CHANNELS, 2, 3, padding=1, groups=2))
"""As many groups as channels: one scale for all."""


@pytest.mark.parametrize(
    ("module", "bits"),
    [(UNet(), 4), (Joined(), 4), (Sloped(1), 3), (Sloped(CHANNELS), 5), (Stack(prelu=True), 2), (GROUPED, 4)],
)
@pytest.mark.parametrize("method", ["per_channel", "per_tensor"])
def test_the_file_of_any_network_is_as_long_as_the_cost_model_says(module, bits, method):
    graph = trace(settle(module, 0), [torch.randn(1, CHANNELS, 31)])
    sites, config = find_sites(graph), QuantizationConfig(weight_scale=method)
    allocation = allocation_of(sites, bits, 8)
    quantized = build_quantized(graph, allocation, calibrate(graph, [torch.randn(1, CHANNELS, 31)]), config)
    statistics = SimpleNamespace(feature_mean=torch.zeros(CHANNELS), feature_scale=torch.ones(CHANNELS))
    channels, per_channel = dict.fromkeys(graph.inputs, CHANNELS), method == "per_channel"
    workload = build_workload(graph, sites, channels, 40, 0.01, "any", per_channel=per_channel)
    size = packed_size_bytes(workload, bits_matrix(workload, [allocation.by_site]))[0]
    assert len(pack(ExportedNetwork(quantized, statistics))) == size


@given(allocation=allocations(PRELU))
@settings(max_examples=8, deadline=None)
def test_what_is_read_is_what_the_quantizers_gave(allocation):
    _, graph, calibration = small_network(PRELU)
    written = build_quantized(graph, allocation, calibration, CONFIG)
    read = unpack(pack_network(written, PRELU), *shapes(PRELU))
    base = small_network(PRELU)[0].front_end
    assert torch.equal(read.feature_mean, base.feature_mean)
    assert torch.equal(read.feature_scale, base.feature_scale)
    assert read.allocation == allocation
    assert dict(read.grids) == written.activation_grids()
    for site, weight in written.quantized_weights().items():
        assert torch.equal(read.biases[site], graph.parameters[site.removesuffix("weight") + "bias"])
        found = read.weights[site]
        if weight is None:
            assert torch.equal(found, graph.parameters[site])
        else:
            assert isinstance(found, QuantizedWeight)
            assert found.bits == weight.bits
            assert torch.equal(found.integers, weight.integers)
            assert torch.equal(found.scale, weight.scale)
    for site, slope in read.slopes.items():
        assert slope == pytest.approx(0.2 if site.endswith((".expand.output", ".depthwise.output")) else 1.0)


def test_relu_is_a_slope_of_zero():
    slopes = unpack(pack_network(network()), *shapes()).slopes
    assert slopes["blocks.0.expand.output"] == 0.0
    assert slopes["input_proj.output"] == 1.0


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_integers_survive_the_bit_stream(data):
    bits = data.draw(st.sampled_from([2, 3, 4, 5, 6, 7, 8, 16]))
    limit = 2 ** (bits - 1)
    values = np.array(data.draw(st.lists(st.integers(-limit, limit - 1), min_size=1, max_size=50)), np.int32)
    stream = pack_integers(values, bits)
    assert len(stream) == math.ceil(len(values) * bits / 8)
    np.testing.assert_array_equal(unpack_integers(stream, bits, len(values)), values)


def test_the_stream_starts_with_the_lowest_bit():
    """Three-bit 1, -2, 3: 001, 110, 011 from the low end of the first byte on."""
    assert pack_integers(np.array([1, -2, 3], np.int32), 3) == bytes([0b11_110_001, 0b0])


def test_eight_and_sixteen_bit_streams_are_plain_arrays():
    values = np.array([-128, 127, -1, 5], np.int32)
    assert pack_integers(values, 8) == values.astype(np.int8).tobytes()
    assert pack_integers(values * 200, 16) == (values * 200).astype("<i2").tobytes()


def test_causal_networks_pack_like_others():
    assert len(pack_network(network(CAUSAL))) == len(pack_network(network(RELU)))
