import pytest

from hw_models.micro_block import micro_block_cycles
from hw_models.shape import Shape
from hw_models.workload import LayerKind
from tests.hw_models.networks import TARGETS

RULE = TARGETS["ethos-u55-128"].compute


@pytest.mark.parametrize(
    ("taps", "channels", "frames", "cycles"),
    [
        (3, 128, 250, 128 * 250 * 0.5),  # one step of 4 * 125 * 16 = 8000: writing the outputs takes longer
        (9, 128, 250, 4 * 125 * 16 * (2 + 1)),  # pieces of 8 and 1
        (65, 128, 250, 4 * 125 * 16 * (8 * 2 + 1)),  # d = 64
        (129, 512, 100, 4 * 50 * 64 * (16 * 2 + 1)),  # d = 128
        (13, 12, 51, 4 * 26 * 2 * (2 + 2)),  # frames and channels rounded up to blocks
    ],
)
def test_depthwise_cycles_by_hand(taps, channels, frames, cycles):
    shape = Shape(LayerKind.DEPTHWISE, channels, channels, taps, frames, 0)
    assert micro_block_cycles(RULE, shape, 8).compute == cycles


@pytest.mark.parametrize(
    ("inputs", "outputs", "taps", "frames", "cycles"),
    [
        (64, 128, 1, 250, 64 * 128 * 250 / 128),  # every block full: 128 MACs a cycle
        (64, 128, 3, 250, 3 * 64 * 128 * 250 / 128),
        (64, 129, 1, 251, 4 * 126 * 17 * 2),  # rounded up to 2 frames, 8 outputs, 32 inputs
        (8, 64, 4, 100, 4 * 50 * 8 * 1),  # few inputs: four taps share a step; writing takes 3200 as well
        (8, 64, 1, 100, 64 * 100 * 0.5),  # bound by writing
    ],
)
def test_convolution_cycles_by_hand(inputs, outputs, taps, frames, cycles):
    shape = Shape(LayerKind.CONV, inputs, outputs, taps, frames, 0)
    assert micro_block_cycles(RULE, shape, 8).compute == max(cycles, outputs * frames * 0.5)


def test_a_sum_takes_one_and_a_half_cycles_per_element():
    assert micro_block_cycles(RULE, Shape(LayerKind.ADD, 64, 64, 1, 250, 0), 8).compute == 64 * 250 * 1.5


@pytest.mark.parametrize("kind", [LayerKind.CONV, LayerKind.DEPTHWISE])
def test_sixteen_bit_activations_take_twice_the_cycles(kind):
    shape = Shape(kind, 128, 128, 65, 250, 0)
    assert micro_block_cycles(RULE, shape, 16).compute == 2 * micro_block_cycles(RULE, shape, 8).compute
