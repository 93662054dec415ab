"""The packed file: as long as the cost model says, and exact."""

import math
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
from tests.separator.small import KINDS, PRELU, allocations, small_network, small_shapes

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


@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_what_is_read_is_what_the_quantizers_gave(data):
    config, per_channel = data.draw(st.sampled_from(list(KINDS.values()))), data.draw(st.booleans())
    allocation = data.draw(allocations(config))
    separator, graph, calibration = small_network(config)
    quantization = QuantizationConfig(weight_scale="per_channel" if per_channel else "per_tensor")
    written, base = build_quantized(graph, allocation, calibration, quantization), separator.front_end
    content = pack(ExportedNetwork(written, base))
    workload = small_shapes(config, base.inputs).workload(10, 0.008, per_channel=per_channel)
    assert len(content) == packed_size_bytes(workload, bits_matrix(workload, [allocation.by_site]))[0]
    read = unpack(content, graph, base.inputs)
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
    trained = pytest.approx(0.2) if config is PRELU else 0.0
    for site, slope in read.slopes.items():
        assert slope == (trained if site.endswith((".expand.output", ".depthwise.output")) else 1.0)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_integers_survive_the_bit_stream(data):
    bits = data.draw(st.sampled_from([2, 3, 4, 5, 6, 7, 8, 16]))
    limit = 2 ** (bits - 1) - 1
    values = np.array(data.draw(st.lists(st.integers(-limit, limit), min_size=1, max_size=50)), np.int32)
    stream = pack_integers(values, bits)
    assert len(stream) == math.ceil(len(values) / 5 if bits == 2 else len(values) * bits / 8)
    np.testing.assert_array_equal(unpack_integers(stream, bits, len(values)), values)


def test_the_stream_starts_with_the_lowest_bit():
    """Three-bit 1, -2, 3: 001, 110, 011 from the low end of the first byte on."""
    assert pack_integers(np.array([1, -2, 3], np.int32), 3) == bytes([0b11_110_001, 0b0])


def test_five_two_bit_weights_share_a_byte_the_first_counts_least():
    """-1, 0, 1, 1, -1 are the digits 0, 1, 2, 2, 0 in base 3. A byte that is not full ends with zero weights."""
    assert pack_integers(np.array([-1, 0, 1, 1, -1, 1], np.int32), 2) == bytes([3 + 2 * 9 + 2 * 27, 2 + 3 + 9 + 27 + 81])


@pytest.mark.parametrize("value", [-2, 2])
def test_two_bit_weights_that_are_not_ternary_are_refused(value):
    with pytest.raises(ValueError, match="beyond -1, 0 and 1"):
        pack_integers(np.array([0, value], np.int32), 2)


def test_scales_that_a_file_cannot_hold_are_refused():
    separator, graph, calibration = small_network(PRELU)
    allocation = allocation_of(find_sites(graph), 4, 8)
    network = build_quantized(graph, allocation, calibration, QuantizationConfig())
    with torch.no_grad():
        network.layer("mask_head").weight_quant.tensor_quant.scale.mul_(1.001)
    with pytest.raises(ValueError, match="not bfloat16 values"):
        pack(ExportedNetwork(network, separator.front_end))


def test_eight_and_sixteen_bit_streams_are_plain_arrays():
    values = np.array([-128, 127, -1, 5], np.int32)
    assert pack_integers(values, 8) == values.astype(np.int8).tobytes()
    assert pack_integers(values * 200, 16) == (values * 200).astype("<i2").tobytes()
