import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hw_models.rules.roofline import RooflineCompute
from hw_models.sections import Precisions
from hw_models.shape import Shape
from hw_models.workload import LayerKind

CONV = {"kernel": "conv", "pairs": [(8, 8), (8, 4)], "macs_per_cycle": 16.0, "cycles_per_output": 2.0, "source": "s"}
DEPTHWISE = {"kernel": "depthwise", "pairs": [(8, 8), (8, 4)], "macs_per_cycle": 4.0, "source": "s"}
ADD = {"kernel": "add", "pairs": [(8, 0)], "cycles_per_output": 1.5, "source": "s"}
PRECISIONS = Precisions(
    pairs=((8, 8), (8, 4)),
    unsupported="widen",
    activation_signed=True,
    weight_signed=True,
    accumulator_bits=32,
    source="s",
)


def rule(*throughput):
    return RooflineCompute.model_validate({"rule": "roofline", "source": "s", "throughput": throughput})


def cycles(compute, kind, inputs, outputs, taps, frames, weight_bits=8):
    return compute.work(Shape(LayerKind(kind), inputs, outputs, taps, frames, 0), 8, weight_bits).total


def test_layers_by_hand():
    compute = rule(CONV, DEPTHWISE, ADD)
    assert cycles(compute, "conv", 32, 64, 3, 10) == 32 * 64 * 3 * 10 / 16 + 64 * 10 * 2
    assert cycles(compute, "depthwise", 64, 64, 3, 10) == 64 * 3 * 10 / 4
    assert cycles(compute, "add", 64, 64, 1, 10) == 64 * 10 * 1.5


def test_a_tile_begun_is_a_tile_paid():
    tiled = {"tile_frames": 9, "tile_taps": 3, "tile_in_channels": 16, "tile_out_channels": 32}
    compute = rule(CONV | tiled, DEPTHWISE | tiled, ADD)
    assert cycles(compute, "conv", 17, 33, 4, 10) == 32 * 64 * 6 * 18 / 16 + 64 * 18 * 2
    # A depthwise layer has one input channel per output, however wide a tile of them is.
    assert cycles(compute, "depthwise", 33, 33, 1, 9) == 64 * 3 * 9 / 4


@given(
    inputs=st.integers(1, 100),
    outputs=st.integers(1, 100),
    taps=st.integers(1, 9),
    frames=st.integers(1, 300),
    tile=st.integers(2, 40),
)
def test_tiles_cost_less_than_one_tile_in_every_dimension(inputs, outputs, taps, frames, tile):
    plain = {"kernel": "conv", "pairs": [(8, 8), (8, 4)], "macs_per_cycle": 1.0, "source": "s"}
    tiled = rule(plain | {f"tile_{what}": tile for what in ("frames", "taps", "in_channels", "out_channels")}, DEPTHWISE, ADD)
    sizes = (inputs, outputs, taps, frames)
    found = cycles(tiled, "conv", *sizes)
    assert math.prod(sizes) <= found < math.prod(size + tile for size in sizes)
    assert found % tile**4 == 0


def test_the_roof_is_that_of_the_fastest_kernel_at_these_widths():
    slow = CONV | {"pairs": [(8, 4)], "macs_per_cycle": 3.0}
    compute = rule(CONV | {"pairs": [(8, 8)]}, slow, DEPTHWISE, ADD)
    assert compute.peak_macs_per_cycle(8, 8) == 16
    assert compute.peak_macs_per_cycle(8, 4) == 4


@pytest.mark.parametrize(
    ("throughput", "message"),
    [
        ((CONV, DEPTHWISE), r"found 0 for kernel 'add', pair \[8, 0\]; wanted 1"),
        ((CONV | {"pairs": [(8, 8)]}, DEPTHWISE, ADD), r"found 0 for kernel 'conv', pair \[8, 4\]; wanted 1"),
        ((CONV, CONV, DEPTHWISE, ADD), r"found 2 for kernel 'conv', pair \[8, 4\]; wanted 1"),
        (
            (CONV, DEPTHWISE | {"pairs": [(8, 8), (8, 4), (4, 4)]}, ADD),
            r"found 1 for kernel 'depthwise', pair \[4, 4\]; wanted 0",
        ),
    ],
)
def test_every_kernel_has_one_throughput_at_every_pair(throughput, message):
    with pytest.raises(ValueError, match=message):
        rule(*throughput).check(PRECISIONS)
    rule(CONV, DEPTHWISE, ADD).check(PRECISIONS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kernel": "conv", "pairs": [(8, 8)], "cycles_per_output": 1.0, "source": "s"}, "found None for kernel 'conv'"),
        (ADD | {"macs_per_cycle": 1.0}, "found 1.0 for kernel 'add'"),
        (ADD | {"cycles_per_output": 0.0}, "cycles_per_output: found 0 for kernel 'add'"),
        (CONV | {"macs_per_cycle": 0.0}, "greater than 0"),
    ],
)
def test_a_kernel_that_takes_no_time_is_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        rule(wrong)
