import itertools

import pytest

from hw_models.bit_flexible import bit_flexible_cycles, performance_factor
from hw_models.errors import TargetError
from hw_models.shape import Shape
from hw_models.workload import LayerKind
from tests.hw_models.networks import TARGETS

RULE = TARGETS["bitfusion"].compute

# Frames, channels in and out, activation bits, weight bits, cycles: the least `total_cycles` of the authors'
# simulator (github.com/hsharma35/bitfusion at 04ec1c8, get_stats_fast) over all tilings, frames as batch.
SIMULATED = [
    (250, 64, 128, 8, 8, 11676),
    (250, 64, 128, 4, 4, 11172),
    (250, 64, 128, 8, 2, 11420),
    (250, 64, 128, 2, 2, 11176),
    (250, 128, 64, 8, 8, 7009),
    (250, 128, 64, 4, 4, 6171),
    (250, 128, 64, 2, 2, 5838),
    (100, 128, 512, 8, 8, 20332),
    (100, 128, 512, 8, 2, 18284),
    (333, 514, 96, 8, 8, 34165),
    (333, 514, 96, 4, 4, 15375),
    (333, 514, 96, 2, 2, 13208),
    (250, 258, 40, 8, 8, 8986),
    (250, 258, 40, 8, 2, 8155),
    (1, 64, 64, 8, 2, 69),
    (1, 64, 64, 2, 2, 195),
]


@pytest.mark.parametrize(("frames", "inputs", "outputs", "activation", "weight", "cycles"), SIMULATED)
def test_pointwise_layers_take_the_simulated_cycles(frames, inputs, outputs, activation, weight, cycles):
    shape = Shape(LayerKind.CONV, inputs, outputs, 1, frames, 0)
    assert bit_flexible_cycles(RULE, shape, activation, weight).total == cycles


def test_one_frame_of_a_small_layer_by_hand():
    # One tile: ceil(64/32) * ceil(64/16) = 8 cycles. In: 64*64*8 weight, 64*8 input and 64*32 output bits at
    # 192 bits a cycle = 184; out: 64*32 bits = 11.
    cycles = bit_flexible_cycles(RULE, Shape(LayerKind.CONV, 64, 64, 1, 1, 0), 8, 8)
    assert (cycles.compute, cycles.memory, cycles.fixed) == (8, 0, 184 + 11)
    assert cycles.bound == "overhead"


@pytest.mark.parametrize(("activation", "weight"), itertools.product((2, 4, 8), repeat=2))
def test_narrow_operands_multiply_the_throughput(activation, weight):
    factor = performance_factor(RULE, activation, weight)
    assert factor == (8 // activation) * (8 // weight)
    shape = Shape(LayerKind.CONV, 1024, 32, 1, 64, 0)
    compute = bit_flexible_cycles(RULE, shape, activation, weight).compute
    assert compute >= shape.macs / (16 * 32 * factor)


def test_a_depthwise_layer_runs_one_channel_at_a_time():
    cycles = bit_flexible_cycles(RULE, Shape(LayerKind.DEPTHWISE, 128, 128, 3, 250, 0), 4, 4)
    assert cycles.compute == 128 * 250 * 3
    assert cycles.memory == pytest.approx((128 * 250 * 4 + 128 * 3 * 4 + 128 * 250 * 32) / 192)


def test_a_sum_is_bound_by_memory():
    cycles = bit_flexible_cycles(RULE, Shape(LayerKind.ADD, 64, 64, 1, 250, 0), 8, 0)
    assert cycles.compute == 64 * 250 / 32
    assert cycles.memory == pytest.approx(64 * 250 * (8 + 8 + 32) / 192)
    assert cycles.bound == "memory"


def test_a_kernel_that_no_buffer_holds_is_refused():
    with pytest.raises(TargetError, match="found no tile that fits"):
        bit_flexible_cycles(RULE, Shape(LayerKind.CONV, 4, 4, 100_000, 10, 0), 8, 8)
