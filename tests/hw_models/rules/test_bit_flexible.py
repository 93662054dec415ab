import itertools

import pytest

from hw_models.errors import TargetError
from hw_models.rules.bit_flexible import performance_factor
from hw_models.shape import Shape
from hw_models.workload import LayerKind
from tests.hw_models.networks import TARGETS

RULE = TARGETS["bitfusion"].compute

# Frames, channels in and out, activation bits, weight bits, cycles, energy in pJ: the least `total_cycles` of the authors'
# simulator (github.com/hsharma35/bitfusion at 04ec1c8, get_stats_fast) over all tilings and orders, frames as batch, and the
# least `get_energy` among those, with the tables of that commit.
SIMULATED = [
    (250, 64, 128, 8, 8, 11676, 36121966.481),
    (250, 64, 128, 4, 4, 11172, 33294668.361),
    (250, 64, 128, 8, 2, 11420, 34415412.01),
    (250, 64, 128, 2, 2, 11176, 32972376.587),
    (250, 128, 64, 8, 8, 7009, 22587731.481),
    (250, 128, 64, 4, 4, 6171, 18793156.301),
    (250, 128, 64, 2, 2, 5838, 17377206.473),
    (100, 128, 512, 8, 8, 20332, 66174925.904),
    (100, 128, 512, 8, 2, 18284, 57168185.42),
    (333, 514, 96, 8, 8, 34165, 117463620.818),
    (333, 514, 96, 4, 4, 15375, 52005492.485),
    (333, 514, 96, 2, 2, 13208, 41657789.194),
    (250, 258, 40, 8, 8, 8986, 28222101.563),
    (250, 258, 40, 8, 2, 8155, 25557360.596),
    (1, 64, 64, 8, 2, 69, 195324.346),
    (1, 64, 64, 2, 2, 195, 557409.685),
]


@pytest.mark.parametrize(("frames", "inputs", "outputs", "activation", "weight", "cycles", "energy_pj"), SIMULATED)
def test_pointwise_layers_take_the_simulated_cycles_and_energy(frames, inputs, outputs, activation, weight, cycles, energy_pj):
    work = RULE.work(Shape(LayerKind.CONV, inputs, outputs, 1, frames, 0), activation, weight)
    assert work.total == cycles
    assert work.energy_pj == pytest.approx(energy_pj, rel=1e-8)


def test_one_frame_of_a_small_layer_by_hand():
    # One tile: ceil(64/32) * ceil(64/16) = 8 cycles. In: 64*64*8 weight, 64*8 input and 64*32 output bits at
    # 192 bits a cycle = 184; out: 64*32 bits = 11.
    work = RULE.work(Shape(LayerKind.CONV, 64, 64, 1, 1, 0), 8, 8)
    assert (work.compute, work.memory, work.fixed) == (8, 0, 184 + 11)

    # Each of the 64*64 multiplications reads a weight and an input; an output is written from memory, read and
    # written by the array, and read to memory.
    macs, weights, inputs, outputs = 64 * 64, 64 * 64 * 8, 64 * 8, 64 * 32
    expected = (
        8 * 235.104
        + (weights + inputs + 2 * outputs) * 15
        + weights * 0.02891615625
        + macs * 8 * 0.02136565625
        + inputs * 0.1137040625
        + macs * 8 * 0.059474375
        + 2 * outputs * (0.0331553125 + 0.0730840625)
    )
    assert work.energy_pj == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("activation", "weight"), itertools.product((2, 4, 8), repeat=2))
def test_narrow_operands_multiply_the_throughput(activation, weight):
    factor = performance_factor(RULE, activation, weight)
    assert factor == (8 // activation) * (8 // weight)
    shape = Shape(LayerKind.CONV, 1024, 32, 1, 64, 0)
    assert RULE.work(shape, activation, weight).compute >= shape.macs / (16 * 32 * factor)
    assert RULE.peak_macs_per_cycle(activation, weight) == 16 * 32 * factor


def test_a_depthwise_layer_runs_one_channel_at_a_time():
    work = RULE.work(Shape(LayerKind.DEPTHWISE, 128, 128, 3, 250, 0), 4, 2)
    macs, weights, inputs, outputs = 128 * 250 * 3, 128 * 3 * 2, 128 * 250 * 4, 128 * 250 * 32
    assert (work.compute, work.fixed) == (macs, 0)
    assert work.memory == pytest.approx((inputs + weights + outputs) / 192)
    expected = (
        macs * 235.104
        + (weights + inputs + outputs) * 15
        + weights * 0.02891615625
        + macs * 2 * 0.02136565625
        + inputs * 0.1137040625
        + macs * 4 * 0.059474375
        + outputs * (0.0331553125 + 0.0730840625)
    )
    assert work.energy_pj == pytest.approx(expected, rel=1e-12)


def test_a_sum_is_bound_by_memory():
    work = RULE.work(Shape(LayerKind.ADD, 64, 64, 1, 250, 0), 8, 0)
    operands, outputs = 2 * 64 * 250 * 8, 64 * 250 * 32
    assert work.compute == 64 * 250 / 32
    assert work.memory == pytest.approx((operands + outputs) / 192)
    assert work.total == work.memory
    buffers = operands * (0.1137040625 + 0.059474375) + outputs * (0.0331553125 + 0.0730840625)
    assert work.energy_pj == pytest.approx(500 * 235.104 + (operands + outputs) * 15 + buffers, rel=1e-12)


def test_a_kernel_that_no_buffer_holds_is_refused():
    with pytest.raises(TargetError, match="found no tile that fits"):
        RULE.work(Shape(LayerKind.CONV, 4, 4, 100_000, 10, 0), 8, 8)
