"""The Cortex-M targets against published measurements and against what their kernels are known to do."""

import importlib.util
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from hw_models.compile import compile_target
from hw_models.cost import evaluate
from hw_models.target import load_target
from hw_models.workload import LayerKind
from tests.hw_models.networks import one_layer

CORTEX_M = (
    "cortex-m4-x-cube-ai",
    "cortex-m7-x-cube-ai",
    "cortex-m33-x-cube-ai",
    "cortex-m4-cmsis-nn",
    "cortex-m7-cmsis-nn",
    "cortex-m7-cmix-nn",
)
PUBLISHED = Path(__file__).parents[2] / "experiments" / "hardware_validation" / "mlperf_tiny.py"


def load_published():
    spec = importlib.util.spec_from_file_location("validation_mlperf_tiny", PUBLISHED)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


mlperf_tiny = load_published()
CASES = mlperf_tiny.cases()
PREDICTIONS = cache(lambda: list(mlperf_tiny.predictions(CASES)))


def errors(target, metric):
    """Relative errors of the predictions, by the name of the case."""
    pairs = zip(CASES, PREDICTIONS(), mlperf_tiny.measured(), strict=True)
    return {c["name"]: p[metric] / m[metric] - 1 for c, p, m in pairs if c["target"] == target and metric in m}


def layer_ms(name, network, weight_bits=8, activation_bits=8):
    bits = [weight_bits if site in network.weight_sites else activation_bits for site in network.sites]
    return float(evaluate(compile_target(load_target(name), network), np.array([bits])).latency_ms[0])


# MACs as the trained int8 models of github.com/mlcommons/tiny have them, and as github.com/mit-han-lab/mcunet states in millions.
@pytest.mark.parametrize(
    ("network", "macs"),
    [("kws", 2_656_768), ("ic", 12_501_632), ("ad", 264_192), ("vww", 7_489_664)],
)
def test_networks_of_mlperf_tiny_have_their_macs(network, macs):
    case = next(c for c in CASES if c["name"] == f"MLPerf Tiny {network}")
    assert case["workload"].macs == macs


@pytest.mark.parametrize(
    ("network", "millions"),
    [
        ("mcunet-vww0", 6.0),
        ("mcunet-vww1", 11.6),
        ("mcunet-vww2", 55.8),
        ("mcunet-in2", 67.3),
        ("mcunet-in3", 81.8),
        ("mcunet-in4", 125.9),
        ("proxyless-w0.3-r176", 38.3),
    ],
)
def test_mcunet_networks_have_the_macs_their_authors_state(network, millions):
    case = next(c for c in CASES if c["name"] == network)
    assert case["workload"].macs / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(
    ("target", "least", "most"),
    [
        ("cortex-m4-x-cube-ai", -0.02, 0.02),
        ("cortex-m7-x-cube-ai", -0.08, 0.08),
        ("cortex-m33-x-cube-ai", -0.02, 0.02),
        ("cortex-m4-cmsis-nn", -0.23, 0.03),
        ("cortex-m7-cmsis-nn", -0.05, 0.05),
    ],
)
def test_networks_held_out_take_the_published_time(target, least, most):
    found = errors(target, "latency_ms")
    assert found
    assert least < min(found.values())
    assert max(found.values()) < most


@pytest.mark.parametrize("target", CORTEX_M)
def test_calibration_states_the_errors_on_what_was_held_out(target):
    calibration = load_target(target).calibration
    found = 100 * np.abs(list(errors(target, "latency_ms").values()))
    assert calibration.median_error_percent == pytest.approx(np.median(found), abs=0.1)
    assert calibration.max_error_percent == pytest.approx(found.max(), abs=0.1)


@pytest.mark.parametrize("target", [name for name in CORTEX_M if load_target(name).energy])
def test_energy_held_out_is_near_the_published(target):
    found = errors(target, "energy_uj")
    assert all(abs(error) < 0.1 for error in found.values()) if target != "cortex-m7-cmsis-nn" else not found


def test_systems_are_ranked_as_published():
    # Keyword spotting and the other three networks, on all four systems: 16 times between 1.8 and 390 ms.
    pairs = [
        (p["latency_ms"], m.get("latency_ms", m.get("fitted_latency_ms")))
        for c, p, m in zip(CASES, PREDICTIONS(), mlperf_tiny.measured(), strict=True)
        if c["name"].startswith("MLPerf Tiny")
    ]
    assert len(pairs) == 16
    assert spearmanr(*zip(*pairs, strict=True)).statistic > 0.98


@pytest.mark.parametrize(("inputs", "outputs", "pixels", "cycles"), [(32, 32, 1600, 3_516_545), (64, 128, 100, 1_516_726)])
def test_pointwise_layers_take_the_cycles_measured_on_the_stm32h743(inputs, outputs, pixels, cycles):
    # Layers 7 and 13 of github.com/EEESlab/mobilenet_v1_stm32_cmsis_nn, docs/imgs/profiling_160_0_25.png; neither was fitted.
    found = layer_ms("cortex-m7-cmix-nn", one_layer(LayerKind.CONV, inputs, outputs, frames=pixels)) * 400e3
    assert found == pytest.approx(cycles, rel=0.05)


@pytest.mark.parametrize("kind", [LayerKind.CONV, LayerKind.DEPTHWISE])
@pytest.mark.parametrize(("activation_bits", "weight_bits"), [(8, 4), (8, 2), (4, 8), (4, 4), (4, 2), (2, 8), (2, 4), (2, 2)])
def test_fewer_bits_hardly_change_the_time_on_cmix_nn(kind, activation_bits, weight_bits):
    network = one_layer(kind, 128, 128, 1 if kind is LayerKind.CONV else 3, frames=250)
    share = layer_ms("cortex-m7-cmix-nn", network, weight_bits, activation_bits) / layer_ms("cortex-m7-cmix-nn", network)
    assert 0.85 < share < 1.5  # weights and activations are unpacked to 16 bits before they are multiplied


@pytest.mark.parametrize("target", ["cortex-m4-cmsis-nn", "cortex-m7-cmsis-nn"])
def test_four_bit_weights_are_slower_on_cmsis_nn_and_half_as_large(target):
    network = one_layer(LayerKind.CONV, 128, 128, frames=250)
    table = compile_target(load_target(target), network)
    bits = np.array([[w if site in network.weight_sites else 8 for site in network.sites] for w in (8, 4)])
    costs = evaluate(table, bits)
    # Counted instructions of arm_convolve_1x1_s8_fast and _s4_fast on 128 channels: 2.315 and 3.374 per MAC.
    assert costs.latency_ms[1] / costs.latency_ms[0] == pytest.approx(3.374 / 2.315, rel=0.03)
    assert costs.weight_bytes[0] - costs.weight_bytes[1] == 128 * 128 / 2


@pytest.mark.parametrize("target", ["cortex-m4-x-cube-ai", "cortex-m33-x-cube-ai", "cortex-m7-x-cube-ai"])
def test_one_frame_waits_for_its_weights_and_many_share_them(target):
    one, many = (layer_ms(target, one_layer(LayerKind.CONV, 128, 128, frames=frames)) for frames in (1, 100))
    assert 1.25 * many / 100 < one < 2.0 * many / 100


@pytest.mark.parametrize("target", CORTEX_M)
def test_dilation_is_folded_into_time(target):
    # 250 frames by 4 are padded to 63 rows of 4; nothing else changes.
    plain, dilated = (
        layer_ms(target, one_layer(LayerKind.DEPTHWISE, 64, 64, 3, frames=250, dilation=dilation)) for dilation in (1, 4)
    )
    loaded = load_target(target)
    fetched = 0.0
    if (rate := loaded.levels("weights")[0].bytes_per_cycle) is not None:
        fetched = (64 * 3 + 64 * loaded.storage.channel_bytes_integer) / rate / loaded.clock.clock_hz * 1e3
    assert (dilated - fetched) / (plain - fetched) == pytest.approx(252 / 250)
