import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw_models.bops import bit_operations
from hw_models.errors import TargetError
from hw_models.workload import WIDTHS, LayerKind, bits_matrix
from tests.hw_models.networks import one_layer, tcn, workloads


def uniform(workload, width):
    return np.full((1, len(workload.sites)), width, np.int64)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (LayerKind.CONV, 50 * 6 * 8 * 3 * 4 * 2),  # frames, inputs, outputs, taps, weight bits, input bits
        (LayerKind.DEPTHWISE, 50 * 8 * 3 * 4 * 2),
    ],
)
def test_one_layer_by_hand(kind, expected):
    workload = one_layer(kind, 6 if kind is LayerKind.CONV else 8, 8, kernel_size=3, dilation=4)
    bits = bits_matrix(workload, [{"only.weight": 4, "x": 2, "y": 16}])
    assert bit_operations(workload, bits).tolist() == [expected]


def test_a_sum_has_no_bit_operations():
    workload = one_layer(LayerKind.ADD, 8, 8)
    assert bit_operations(workload, uniform(workload, 8)).tolist() == [0]


def test_float_counts_as_32_bits_and_large_counts_do_not_overflow():
    workload = tcn(features=514, bottleneck=256, hidden=1024, blocks=24, bins=257, frames=60_000)
    assert bit_operations(workload, uniform(workload, 32)).tolist() == [workload.macs * 32 * 32]
    assert workload.macs * 32 * 32 > 2**40


@settings(max_examples=50)
@given(workloads(), st.data())
def test_every_allocation_is_the_sum_over_its_layers(workload, data):
    widths = st.lists(st.sampled_from(WIDTHS), min_size=len(workload.sites), max_size=len(workload.sites))
    allocations = [dict(zip(workload.sites, data.draw(widths), strict=True)) for _ in range(3)]
    expected = [
        sum(
            layer.macs(workload.frames) * allocation[layer.weight_site] * allocation[layer.input_sites[0]]
            for layer in workload.layers
            if layer.kind is not LayerKind.ADD
        )
        for allocation in allocations
    ]
    counted = bit_operations(workload, bits_matrix(workload, allocations))
    assert counted.dtype == np.int64
    assert counted.tolist() == expected


def test_a_width_that_does_not_exist_is_refused():
    workload = one_layer(LayerKind.CONV, 4, 4)
    with pytest.raises(TargetError, match="only"):
        bit_operations(workload, np.array([[0, 8, 8]]))
