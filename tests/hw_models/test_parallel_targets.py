"""The parallel microcontrollers and the GPU against figures published for them."""

import numpy as np
import pytest

from hw_models.breakdown import per_layer
from hw_models.compile import compile_target
from hw_models.cost import evaluate
from hw_models.shape import Shape
from hw_models.target import load_target
from hw_models.workload import LayerKind, bits_matrix
from tests.hw_models.networks import one_layer, tcn

GAP8, NE16, T4 = load_target("gap8-pulp-nn"), load_target("gap9-ne16"), load_target("nvidia-t4")


def layer_ms(target, network, weight_bits=8, activation_bits=8):
    bits = [weight_bits if site in network.weight_sites else activation_bits for site in network.sites]
    return float(evaluate(compile_target(target, network), np.array([bits])).latency_ms[0])


# Channels in and out, pixels, milliseconds at 100 MHz: pointwise layers of 1.0-MobileNet-128 on a GAP8 board
# (images/network_power.PNG of github.com/pulp-platform/dory at be3d6dd).
@pytest.mark.parametrize(
    ("inputs", "outputs", "pixels", "milliseconds"),
    [(64, 128, 1024, 7.84), (128, 128, 1024, 13.31), (128, 256, 256, 6.58), (256, 512, 64, 5.94)],
)
def test_pointwise_layers_take_the_time_measured_on_gap8(inputs, outputs, pixels, milliseconds):
    network = one_layer(LayerKind.CONV, inputs, outputs, frames=pixels)
    assert layer_ms(GAP8, network) == pytest.approx(milliseconds, rel=0.035)


@pytest.mark.parametrize(("channels", "pixels", "milliseconds"), [(128, 1024, 8.72), (256, 256, 4.75), (512, 64, 2.56)])
def test_depthwise_layers_take_the_time_measured_on_gap8(channels, pixels, milliseconds):
    network = one_layer(LayerKind.DEPTHWISE, channels, channels, 9, frames=pixels)
    assert layer_ms(GAP8, network) == pytest.approx(milliseconds, rel=0.12)


@pytest.mark.parametrize("weight_bits", [2, 4])
def test_sub_byte_weights_are_slower_on_gap8_while_they_fit(weight_bits):
    network = one_layer(LayerKind.CONV, 128, 128, frames=250)
    assert 2.0 < layer_ms(GAP8, network, weight_bits) / layer_ms(GAP8, network) < 2.6


def test_weights_that_outgrow_l2_wait_for_l3():
    # One frame of 600 channels squared is 360 KB and fits beside its activations, 660 squared is 436 KB and does not.
    fits, outgrows = (one_layer(LayerKind.CONV, channels, channels, frames=1) for channels in (600, 660))
    bounds = [per_layer(compile_target(GAP8, network), np.full(len(network.sites), 8))[0].bound for network in (fits, outgrows)]
    assert bounds == ["l2", "l3"]
    assert layer_ms(GAP8, outgrows) == pytest.approx((660**2 + 660 * 8) / 0.65 / 100e6 * 1e3)
    assert layer_ms(GAP8, outgrows) > 10 * layer_ms(GAP8, fits)
    # Four bits fit again, and win in spite of their slower kernel.
    assert layer_ms(GAP8, outgrows, weight_bits=4) < layer_ms(GAP8, outgrows) / 5


def test_fully_connected_layers_run_at_the_speed_of_l3():
    # 1024 to 1000 channels in 15.78 ms, power profile as above.
    network = one_layer(LayerKind.CONV, 1024, 1000, frames=1)
    assert layer_ms(GAP8, network) == pytest.approx(15.78, rel=0.02)


# Pixels, channels in and out, weight bits, cycles: `Ne16PerfModel` of github.com/pulp-platform/dory at be3d6dd with nq_bias.
@pytest.mark.parametrize(
    ("pixels", "inputs", "outputs", "weight_bits", "cycles"),
    [
        (9, 16, 32, 8, 131),
        (9, 256, 32, 8, 1106),
        (162, 64, 64, 8, 11736),
        (162, 64, 64, 2, 11736),
        (90, 48, 128, 4, 10440),
    ],
)
def test_pointwise_layers_take_the_cycles_of_dorys_ne16_model(pixels, inputs, outputs, weight_bits, cycles):
    shape = Shape(LayerKind.CONV, inputs, outputs, 1, pixels, 0)
    assert NE16.compute.work(shape, 8, weight_bits).total == pytest.approx(cycles, rel=1e-4)


@pytest.mark.parametrize(
    ("pixels", "channels", "weight_bits", "cycles"),
    [(162, 64, 8, 17064), (162, 64, 4, 12456), (9, 16, 2, 141), (90, 96, 5, 11340)],
)
def test_depthwise_layers_take_the_cycles_of_dorys_ne16_model(pixels, channels, weight_bits, cycles):
    shape = Shape(LayerKind.DEPTHWISE, channels, channels, 3, pixels, 0)
    assert NE16.compute.work(shape, 8, weight_bits).total == pytest.approx(cycles, rel=1e-4)


# MACs per cycle by activation and weight bits, Ottavi et al. 2020, as in github.com/eml-eda/plinio at 3d6b5e0, mpic_latency.py.
@pytest.mark.parametrize(
    ("activation_bits", "weight_bits", "macs_per_cycle"),
    [(8, 8, 2.1), (8, 4, 2.3), (8, 2, 2.5), (4, 8, 2.1), (4, 4, 3.5), (4, 2, 3.9), (2, 8, 2.2), (2, 4, 4.0), (2, 2, 6.5)],
)
def test_mpic_runs_at_the_published_rates(activation_bits, weight_bits, macs_per_cycle):
    network = one_layer(LayerKind.CONV, 64, 64, frames=100)
    milliseconds = layer_ms(load_target("mpic"), network, weight_bits, activation_bits)
    assert milliseconds == pytest.approx(64 * 64 * 100 / macs_per_cycle / 250e6 * 1e3)


@pytest.mark.parametrize(("bits", "tera_operations"), [(8, 130), (4, 260), (32, 8.1)])
def test_a_t4_multiplies_at_its_data_sheets_peak(bits, tera_operations):
    peak = T4.compute.peak_macs_per_cycle(bits, bits) * 2 * T4.clock.clock_hz
    assert peak == pytest.approx(tera_operations * 1e12, rel=0.01)


def test_a_t4_spends_a_small_network_on_launching_kernels():
    network = tcn()
    layers = per_layer(compile_target(T4, network), np.full(len(network.sites), 8))
    assert {layer.bound for layer in layers} == {"overhead"}
    assert layer_ms(T4, network) == pytest.approx(len(layers) * 5e-3, rel=0.05)


def test_a_large_depthwise_layer_and_a_sum_are_bound_by_memory_on_a_t4():
    for kind, operands in ((LayerKind.DEPTHWISE, 1), (LayerKind.ADD, 2)):
        network = one_layer(kind, 512, 512, 3 if kind is LayerKind.DEPTHWISE else 1, frames=100_000)
        (layer,) = per_layer(compile_target(T4, network), np.full(len(network.sites), 8))
        assert layer.bound == "gddr6"
        assert layer.latency_ms == pytest.approx((operands + 1) * 512 * 100_000 / 320e9 * 1e3, rel=0.05)


def test_widths_of_one_operand_gain_nothing_on_a_t4():
    network = one_layer(LayerKind.CONV, 4096, 4096, frames=100_000)
    both, weights, neither = (layer_ms(T4, network, w, a) for w, a in ((4, 4), (4, 8), (8, 8)))
    assert weights == neither
    assert 1.9 < neither / both < 2.01


@pytest.mark.parametrize("name", ["gap8-pulp-nn", "gap9", "gap9-ne16", "mpic", "nvidia-t4"])
def test_energy_is_power_times_time(name):
    target, network = load_target(name), tcn()
    costs = evaluate(compile_target(target, network), bits_matrix(network, [dict.fromkeys(network.sites, 8)]))
    assert costs.energy_uj[0] == pytest.approx(target.energy.active_mw * costs.latency_ms[0])
