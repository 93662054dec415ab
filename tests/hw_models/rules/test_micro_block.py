import numpy as np
import pytest

from hw_models.compile import compile_target
from hw_models.cost import evaluate
from hw_models.shape import Shape, executed_shape
from hw_models.target import load_target
from hw_models.workload import LayerKind
from tests.hw_models.networks import layer, one_layer

TARGETS = {name: load_target(name) for name in ("ethos-u55-128", "ethos-u55-256", "ethos-u65-256")}
RULE = TARGETS["ethos-u55-128"].compute
RULE_256 = TARGETS["ethos-u55-256"].compute


def cycles(rule, kind, inputs, outputs, taps, frames, activation_bits=8):
    return rule.work(Shape(kind, inputs, outputs, taps, frames, 0), activation_bits, 8).compute


@pytest.mark.parametrize(
    ("taps", "channels", "frames", "multiply", "fill"),
    [
        # 250 frames are 4 tiles of 63; one of 16 channels takes 4 * 32 * 2 * steps, or 504 to write; 32 bytes a frame pass at 8.
        (9, 128, 250, 4 * 125 * 16 * (2 + 1), 504 + 63 * 32 / 8 + 64),  # pieces of 8 and 1
        (65, 128, 250, 4 * 125 * 16 * (8 * 2 + 1), 504 + 63 * 32 / 8 + 64),  # d = 64
        (129, 512, 100, 4 * 50 * 64 * (16 * 2 + 1), 0.5 * 50 * 16 + 50 * 32 / 8 + 64),  # d = 128; 2 tiles of 50
        (13, 12, 51, 4 * 26 * 2 * (2 + 2), 0.5 * 51 * 12 + 51 * 24 / 8 + 64),  # frames and channels rounded up to blocks
    ],
)
def test_depthwise_cycles_by_hand(taps, channels, frames, multiply, fill):
    assert cycles(RULE, LayerKind.DEPTHWISE, channels, channels, taps, frames) == multiply + fill


def test_a_short_depthwise_kernel_waits_for_its_outputs():
    # Multiplying takes 4 * 125 * 16 = 8000; the first tile is multiplied before anything is written: 4 * 32 * 2.
    assert cycles(RULE, LayerKind.DEPTHWISE, 128, 128, 3, 250) == 128 * 250 * 0.5 + 256 + 63 * 32 / 8 + 64


@pytest.mark.parametrize(
    ("inputs", "outputs", "taps", "frames", "multiply", "fill"),
    [
        # A tile of 63 frames by 32 channels: 4 * 32 * 4 * steps to multiply, 1008 to write, 64 bytes a frame pass at 8.
        (64, 128, 1, 250, 64 * 128 * 250 / 128, 1008 + 63 * 64 / 8 + 64),  # every block full: 128 MACs a cycle
        (64, 128, 3, 250, 3 * 64 * 128 * 250 / 128, 1008 + 63 * 64 / 8 + 64),
        (64, 129, 1, 251, 4 * 126 * 17 * 2, 1008 + 63 * 64 / 8 + 64),  # rounded up to 2 frames, 8 outputs, 32 inputs
        (8, 64, 8, 100, 4 * 50 * 8 * 2, 800 + 50 * 40 / 8 + 64),  # few inputs: four taps share a step
        (8, 64, 1, 100, 64 * 100 * 0.5, 4 * 25 * 4 + 50 * 40 / 8 + 64),  # bound by writing
    ],
)
def test_convolution_cycles_by_hand(inputs, outputs, taps, frames, multiply, fill):
    assert cycles(RULE, LayerKind.CONV, inputs, outputs, taps, frames) == multiply + fill


def test_a_sum_takes_one_and_a_half_cycles_per_element():
    assert cycles(RULE, LayerKind.ADD, 64, 64, 1, 250) == 64 * 250 * 1.5


def test_twice_the_multipliers_halve_a_convolution_of_an_even_number_of_frames_only():
    def multiply(rule, kind, taps, frames):  # growth with the taps: outputs and filling cancel
        return cycles(rule, kind, 256, 256, taps + 8, frames) - cycles(rule, kind, 256, 256, taps, frames)

    assert multiply(RULE_256, LayerKind.CONV, 8, 252) == multiply(RULE, LayerKind.CONV, 8, 252) / 2
    assert multiply(RULE_256, LayerKind.CONV, 8, 251) == multiply(RULE, LayerKind.CONV, 8, 251)
    assert multiply(RULE_256, LayerKind.DEPTHWISE, 8, 252) == multiply(RULE, LayerKind.DEPTHWISE, 8, 252)


def test_inputs_are_read_once_per_column_of_tiles_and_stored_weights_once_per_row():
    work = RULE_256.work(Shape(LayerKind.CONV, 64, 128, 1, 250, 0), 8, 8)
    assert work.memory == (2 * 64 * 250 + 128 * 250) / 8
    assert work.memory_per_weight_byte == 4 / 8


def test_inputs_of_a_depthwise_layer_are_read_once_per_piece_of_its_kernel():
    work = RULE.work(Shape(LayerKind.DEPTHWISE, 128, 128, 65, 250, 62 * 128), 8, 8)
    assert work.memory == (9 * 128 * 250 + 128 * 250) / 8


def test_fewer_weight_bits_take_less_of_the_buffers_time():
    network = one_layer(LayerKind.CONV, 512, 512, frames=250)
    table = compile_target(TARGETS["ethos-u55-256"], network)
    eight, two = evaluate(table, np.array([[8, 8, 8], [2, 8, 8]])).latency_ms
    assert two < eight


@pytest.mark.parametrize("kind", [LayerKind.CONV, LayerKind.DEPTHWISE])
def test_sixteen_bit_activations_take_about_twice_the_cycles(kind):
    assert cycles(RULE, kind, 128, 128, 65, 250, 16) == pytest.approx(2 * cycles(RULE, kind, 128, 128, 65, 250), rel=0.01)


# Cycles that ethos-u-vela 5.2.0 prints for 250 frames, 64 or 128 channels, int8.
VELA = {
    "ethos-u55-128": {"expand": 17600, "project": 17600, "add": 24000, 1: 16580, 2: 16584, 8: 24848, 64: 137556, 128: 266580},
    "ethos-u55-256": {"expand": 12032, "project": 10032, "add": 12000, 1: 8580, 2: 8584, 8: 24596, 64: 137492, 128: 266516},
}


@pytest.mark.parametrize("name", VELA)
def test_layers_of_a_separator_take_what_vela_says(name):
    target = TARGETS[name]
    shapes = {
        "expand": Shape(LayerKind.CONV, 64, 128, 1, 250, 0),
        "project": Shape(LayerKind.CONV, 128, 64, 1, 250, 0),
        "add": Shape(LayerKind.ADD, 64, 64, 1, 250, 0),
    }
    for d in (1, 2, 8, 64, 128):
        depthwise = layer(LayerKind.DEPTHWISE, "a", "x", "y", 128, 128, 3, d)
        shapes[d] = executed_shape(depthwise, 250, target.dilation)
    found = {}
    for key, shape in shapes.items():
        work = target.compute.work(shape, 8, 8)
        weights = 0 if shape.kind is LayerKind.ADD else shape.macs // shape.frames - shape.inserted_zeros
        traffic = work.memory + work.memory_per_weight_byte * weights
        found[key] = max(work.compute, traffic)
    assert found == pytest.approx(VELA[name], rel=0.03)
