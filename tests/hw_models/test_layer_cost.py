import pytest

from hw_models.layer_cost import (
    Executed,
    executed_activation,
    executed_pair,
    layer_energy_pj,
    layer_time,
    running_pj,
    stored_weight_bytes,
)
from hw_models.placement import Placement, placements
from hw_models.sections import Energy, MacEnergy, Memory, Overheads, Precisions
from hw_models.shape import executed_shape
from hw_models.workload import LayerKind
from tests.hw_models.networks import TARGETS, layer


def precisions(pairs, unsupported="widen"):
    return Precisions(
        pairs=tuple(pairs),
        unsupported=unsupported,
        activation_signed=True,
        weight_signed=True,
        accumulator_bits=32,
        source="s",
    )


@pytest.mark.parametrize(
    ("chosen", "runs"),
    [
        ((8, 4), (8, 4)),
        ((8, 3), (8, 4)),
        ((5, 5), (8, 8)),
        ((8, 9), (32, 32)),
        ((16, 2), (32, 32)),
        ((2, 2), (8, 4)),
    ],
)
def test_a_pair_the_target_lacks_runs_in_the_next_wider_one(chosen, runs):
    assert executed_pair(precisions([(8, 8), (8, 4), (32, 32)]), *chosen) == runs


def test_a_pair_without_a_wider_one_is_refused():
    assert executed_pair(precisions([(8, 8)]), 8, 16) is None
    assert executed_activation(precisions([(8, 8)]), 16) is None


def test_a_target_that_refuses_runs_only_what_it_lists():
    strict = precisions([(8, 8), (4, 4)], "refuse")
    assert executed_pair(strict, 4, 4) == (4, 4)
    assert executed_pair(strict, 4, 3) is None
    assert executed_activation(strict, 3) is None


def stored(name, weight_bits, executed_bits, kind=LayerKind.CONV, dilation=1):
    target = TARGETS[name]
    x = layer(kind, "a", "x", "y", 33, 33, 1 if kind is LayerKind.CONV else 3, dilation)
    shape = executed_shape(x, 50, target.dilation)
    return stored_weight_bytes(target, x, shape, weight_bits, Executed(8, executed_bits, 8))


def test_packed_weights_take_the_executed_width_and_the_channel_constants():
    assert stored("cortex-m7-cmsis-nn", 3, 4) == 548 + 33 * 12  # 33 * 33 / 2 = 544.5 bytes, to a word
    assert stored("bitfusion", 2, 2) == 273 + 33 * 8


def test_weights_in_onnx_runtime_take_a_byte_or_a_float():
    assert stored("x86-onnxruntime", 4, 7) == stored("x86-onnxruntime", 8, 8) == 33 * 33 + 33 * 9
    assert stored("x86-onnxruntime", 4, 32) == stored("x86-onnxruntime", 32, 32) == 4 * 33 * 33 + 33 * 4


def test_encoded_weights_take_the_measured_bytes_of_the_chosen_width():
    constants = 336  # 33 * 10 to a multiple of 16
    assert stored("ethos-u55-128", 8, 8) == 1056 + constants  # 1089 * 0.958 = 1043.3
    assert stored("ethos-u55-128", 2, 8) == 208 + constants  # 198.2
    assert stored("ethos-u55-128", 1, 8) == stored("ethos-u55-128", 2, 8)


def test_zeros_that_fill_a_dilated_kernel_are_stored_too():
    plain = stored("ethos-u55-128", 8, 8, LayerKind.DEPTHWISE, dilation=2)
    filled = stored("ethos-u55-128", 8, 8, LayerKind.DEPTHWISE, dilation=128)
    assert plain == 96 + 336  # 99 * 0.958 = 94.8
    assert filled == 272 + 336  # and 126 * 33 zeros of 0.04 bytes: 261.2


def time_of(target, shape, executed, weight_bytes):
    work = target.compute.work(shape, executed.activation_bits, executed.weight_bits)
    return layer_time(target, shape, executed, work, weight_bytes, placements(target)[0])


def pointwise(frames=4):
    target = TARGETS["cortex-m7-cmsis-nn"]
    flash = Memory(name="flash", bytes_per_cycle=0.05, holds=("weights",), source="s")
    sram = Memory(name="sram", bytes_per_cycle=8.0, holds=("activations",), source="s")
    target = target.model_copy(update={"memory": (flash, sram)})
    return target, executed_shape(layer(LayerKind.CONV, "a", "x", "y", 512, 512), frames, target.dilation)


def test_a_slow_memory_bounds_a_layer_with_many_weights():
    target, shape = pointwise()
    (rate,) = (r for r in target.compute.rates if (r.kernel, r.activation_bits, r.weight_bits) == ("conv", 8, 8))
    time = time_of(target, shape, Executed(8, 8, 8), 262_144)
    arithmetic = rate.cycles_per_mac * 512 * 512 * 4 + rate.cycles_per_output * 512 * 4
    assert time.parts["compute"] == pytest.approx(arithmetic)
    assert (time.parts["flash"], time.parts["sram"]) == (262_144 / 0.05, 2 * 4 * 512 / 8)
    assert (time.total - time.parts["overhead"], time.bound) == (262_144 / 0.05, "flash")


def test_transfers_that_do_not_overlap_add_to_the_arithmetic():
    target, shape = pointwise()
    overheads = Overheads(layer_cycles=100.0, transfers_overlap=False, scale=2.0, source="s")
    slow = target.model_copy(update={"overheads": overheads})
    apart, together = (time_of(chip, shape, Executed(8, 8, 8), 262_144) for chip in (slow, target))
    fixed = together.parts["overhead"] - target.overheads.layer_cycles
    moving = sum(cycles for part, cycles in together.parts.items() if part != "overhead")
    assert apart.total == pytest.approx(2 * (moving + fixed) + 100)


def test_energy_is_power_and_arithmetic_and_traffic():
    target, shape = pointwise()
    levels = {level.name: level for level in target.memory}
    flash = levels["flash"].model_copy(update={"pj_per_bit": 3.0})
    sram = levels["sram"].model_copy(update={"pj_per_bit": 0.5})
    energy = Energy(active_mw=50.0, macs=(MacEnergy(activation_bits=8, weight_bits=8, pj_per_mac=0.25),), source="s")
    chip = target.model_copy(update={"memory": (sram, flash), "energy": energy})
    executed, placement = Executed(8, 8, 8), Placement(flash, sram)
    work = chip.compute.work(shape, 8, 8)
    found = layer_energy_pj(chip, shape, executed, work, 1000, placement, 262_144.0)
    power = 50e-3 * 262_144 / chip.clock.clock_hz * 1e12
    assert running_pj(chip, 262_144.0) == pytest.approx(power)
    assert found == pytest.approx(power + 0.25 * 512 * 512 * 4 + 3.0 * 8 * 1000 + 0.5 * 8 * 2 * 4 * 512)
