import hashlib
from itertools import product

import numpy as np
import pytest

from hw_models.calibration import Errors, calibrate, target_toml
from hw_models.compile import compile_target
from hw_models.cost import evaluate
from hw_models.errors import TargetError
from hw_models.measurements import Measurement, Measurements
from hw_models.target import Target, built_in_targets, load_target

CLOCK_HZ = 2e8
TRUE = {  # cycles_per_mac, cycles_per_output, cycles_per_channel, layer_cycles
    "conv": (0.5, 2.0, 30.0, 900.0),
    "depthwise": (1.5, 1.0, 10.0, 400.0),
    "add": (0.0, 3.0, 5.0, 250.0),
}
INFERENCE = 5000.0


def target(memory=(), **changes):
    """A chip with every rate at a guess, all at (8, 8) and (8, 4)."""
    rates = [
        {
            "kernel": kernel,
            "activation_bits": 8,
            "weight_bits": w,
            "cycles_per_mac": float(kernel != "add"),
            "layer_cycles": 10.0,
            "source": "guess",
        }
        for kernel, w in [*product(("conv", "depthwise"), (8, 4)), ("add", 0)]
    ]
    content = {
        "name": "guess",
        "title": "A guess",
        "family": "microcontroller",
        "runtime": "none",
        "clock": {"clock_hz": CLOCK_HZ, "source": "s"},
        "memory": memory or [{"name": "ram", "holds": ["weights", "activations"], "source": "s"}],
        "storage": {"codec": "packed", "alignment_bytes": 1, "channel_bytes_integer": 0.0, "source": "s"},
        "precisions": {
            "pairs": [(8, 8), (8, 4)],
            "unsupported": "refuse",
            "activation_signed": True,
            "weight_signed": True,
            "accumulator_bits": 32,
            "source": "s",
        },
        "compute": {"rule": "rates", "source": "guess", "rates": rates},
        "dilation": {"mode": "native", "source": "s"},
        "overheads": {"layer_cycles": 0.0, "source": "guess"},
        "calibration": {"against": "nothing", "fitted_on": "nothing", "held_out": "nothing", "source": "s"},
    }
    return Target.model_validate({**content, **changes})


def layer(kind, in_channels, out_channels, kernel_size=1, dilation=1):
    return {
        "kind": kind,
        "in_channels": in_channels,
        "out_channels": out_channels,
        "kernel_size": kernel_size,
        "dilation": dilation,
    }


def true_cycles(layers, frames, true=TRUE):
    """Written out by hand."""
    total = INFERENCE
    for x in layers:
        per_mac, per_output, per_channel, per_layer = true[x["kind"]]
        outputs = x["out_channels"] * frames
        per_output_macs = x["kernel_size"] * (x["in_channels"] if x["kind"] == "conv" else 1)
        macs = 0 if x["kind"] in ("add", "function") else outputs * per_output_macs
        total += per_mac * macs + per_output * outputs + per_channel * x["out_channels"] + per_layer
    return total


def measurement(name, layers, frames, cycles=None, **changes):
    milliseconds = 1e3 * (true_cycles(layers, frames) if cycles is None else cycles) / CLOCK_HZ
    content = {
        "name": name,
        "latency_ms": milliseconds,
        "frames": frames,
        "activation_bits": 8,
        "weight_bits": 8,
        "layers": layers,
    }
    return Measurement.model_validate_json(Measurement.model_construct(**{**content, **changes}).model_dump_json(warnings=False))


def block(narrow, wide, dilation=1):
    return [
        layer("conv", narrow, wide),
        layer("depthwise", wide, wide, 3, dilation),
        layer("conv", wide, narrow),
        layer("add", narrow, narrow),
    ]


def networks(frames=(20, 50, 120)):
    found = [
        measurement(f"{narrow}-{wide} x {blocks}, {t} frames", block(narrow, wide, 2) * blocks, t)
        for narrow, wide in ((8, 16), (16, 24), (16, 64), (32, 48))
        for blocks in (1, 3)
        for t in frames
    ]
    for channels, t in product((8, 24, 64), frames):
        found.append(measurement(f"depthwise {channels}, {t}", [layer("depthwise", channels, channels, 5)] * 4, t))
        found.append(measurement(f"conv {channels}, {t}", [layer("conv", channels, 2 * channels)], t))
        found.append(measurement(f"add {channels}, {t}", [layer("add", channels, channels)] * 2, t))
    return found


def fit(measurements, chip=None, file="board.json"):
    return calibrate(
        chip or target(), Measurements(source="board 3", measurements=tuple(measurements)), file=file, name="my-chip"
    )


def rates(found):
    return {(r.kernel, r.weight_bits): r for r in found.target.compute.rates}


def numbers(rate):
    return rate.cycles_per_mac, rate.cycles_per_output, rate.cycles_per_channel, rate.layer_cycles


def test_the_rates_that_made_the_measurements_are_found_from_networks_that_mix_them():
    found = fit(networks())
    for kernel, weight_bits in (("conv", 8), ("depthwise", 8), ("add", 0)):
        assert numbers(rates(found)[kernel, weight_bits]) == pytest.approx(TRUE[kernel], rel=0.05)
    assert found.target.overheads.inference_cycles == pytest.approx(INFERENCE, rel=0.02)
    errors = Errors.of_latency(found.held_out)
    assert errors.count == len(networks()) // 3
    assert errors.worst < 0.002
    assert errors.spearman == pytest.approx(1)


def test_functions_have_rates_of_their_own_and_inputs_are_charged_as_the_target_says():
    chip = target()
    function = chip.compute.rates[-1].model_copy(update={"kernel": "function", "cycles_per_output": 9.0})
    compute = chip.compute.model_copy(update={"rates": (*chip.compute.rates, function)})
    overheads = chip.overheads.model_copy(update={"cycles_per_input": 4.0})
    chip = chip.model_copy(update={"compute": compute, "overheads": overheads})
    true = TRUE | {"function": (0.0, 0.75, 0.0, 120.0)}
    entries = []
    for x in networks():
        functions = [layer("function", channels, channels) for channels in (8, 40)]
        layers = [entry.model_dump(mode="json") for entry in x.layers] + functions
        shape = measurement(x.name, layers, x.frames, 1.0)
        made = {entry.output_site for entry in shape.workload.layers}
        inputs = sum(count for site, count in shape.workload.site_channels.items() if site not in made)
        entries.append(measurement(x.name, layers, x.frames, true_cycles(layers, x.frames, true) + 4.0 * inputs * x.frames))
    found = fit(entries, chip)
    assert numbers(rates(found)["conv", 8]) == pytest.approx(TRUE["conv"], rel=0.05)
    assert rates(found)["function", 0].cycles_per_output == pytest.approx(0.75, rel=0.05)
    assert found.target.overheads.cycles_per_input == 4.0
    assert Errors.of_latency(found.held_out).worst < 0.005


def test_a_rate_that_was_not_measured_stays_and_is_named():
    found = fit(networks())
    assert found.unmeasured == ("conv a8w4", "depthwise a8w4")
    assert rates(found)["conv", 4] == target().compute.rates[1]
    assert rates(found)["conv", 8].source == "fitted to board.json, 34 measurements"


def test_one_network_scales_the_chip_as_a_whole():
    layers = block(16, 64) * 2
    chip = target(overheads={"layer_cycles": 0.0, "inference_cycles": 100.0, "source": "guess"})
    before = 2 * (2 * 16 * 64 * 50 + 3 * 64 * 50) + 8 * 10 + 100
    found = fit([measurement("only", layers, 50, 7 * before)], chip)
    assert found.held_out == ()
    for kernel, weight_bits in (("conv", 8), ("depthwise", 8)):
        assert rates(found)[kernel, weight_bits].cycles_per_mac == pytest.approx(7, rel=1e-3)
    assert "depthwise a8w8 cycles_per_mac" in found.undetermined
    assert found.target.calibration.median_error_percent is None


def test_what_one_length_cannot_tell_apart_is_named():
    found = fit([x for x in networks() if x.frames == 50])
    assert {"add a8 cycles_per_output", "add a8 cycles_per_channel"} <= set(found.undetermined)
    assert "conv a8w8 cycles_per_mac" not in found.undetermined
    assert fit(networks()).undetermined == ()


def test_measurements_that_repeat_badly_still_give_the_errors_of_the_new_target():
    rng = np.random.default_rng(0)
    noisy = [x.model_copy(update={"latency_ms": x.latency_ms * rng.lognormal(0, 0.1)}) for x in networks()]
    found = fit(noisy)
    errors = []
    for x in noisy:
        if x.name in {check.name for check in found.held_out}:
            predicted = evaluate(compile_target(found.target, x.workload), x.bits[None]).latency_ms[0]
            errors.append(abs(predicted / x.latency_ms - 1))
    reported = Errors.of_latency(found.held_out)
    assert (reported.median, reported.mean, reported.worst) == pytest.approx((np.median(errors), np.mean(errors), max(errors)))
    assert 0.02 < reported.median < 0.2
    assert found.target.calibration.max_error_percent == pytest.approx(100 * max(errors), abs=0.05)
    assert found.target.calibration.median_error_percent == pytest.approx(100 * np.median(errors), abs=0.05)


def test_layers_that_wait_for_memory_are_not_blamed_on_arithmetic():
    memory = [{"name": "ram", "bytes_per_cycle": 0.25, "holds": ["weights", "activations"], "source": "s"}]
    true = {"conv": (0.5, 0.0, 0.0, 300.0), "depthwise": (2.0, 0.0, 0.0, 300.0), "add": (0.0, 20.0, 0.0, 300.0)}

    def cycles(x, frames):
        per_mac, per_output, _, per_layer = true[x["kind"]]
        outputs = x["out_channels"] * frames
        weights = x["out_channels"] * x["kernel_size"] * (x["in_channels"] if x["kind"] == "conv" else 1)
        macs, operands = weights * frames, 1
        if x["kind"] == "add":
            weights, macs, operands = 0, 0, 2
        moved = weights + operands * x["in_channels"] * frames + outputs
        return max(per_mac * macs + per_output * outputs, moved / 0.25) + per_layer

    entries = []
    for kind, channels, frames in product(
        TRUE, (8, 16, 100, 200), (20, 35, 50, 80)
    ):  # the narrow convolutions wait, the wide do not
        layers = [layer(kind, channels, channels)] * 2
        entries.append(measurement(f"{kind} {channels} {frames}", layers, frames, 2 * cycles(layers[0], frames) + INFERENCE))
    narrow, wide = layer("conv", 8, 8), layer("conv", 200, 200)
    assert cycles(narrow, 50) == 4 * (64 + 800) + 300  # memory
    assert cycles(wide, 50) == 0.5 * 200 * 200 * 50 + 300  # arithmetic
    found = fit(entries, target(memory=memory))
    assert rates(found)["conv", 8].cycles_per_mac == pytest.approx(0.5, rel=0.02)
    assert Errors.of_latency((*found.fitted, *found.held_out)).worst < 0.01


@pytest.mark.parametrize("name", ["ethos-u55-128", "bitfusion"])
def test_any_other_rule_is_scaled_and_charged_its_overheads(name):
    chip = load_target(name)
    plain = chip.model_copy(
        update={"overheads": chip.overheads.model_copy(update={"layer_cycles": 0.0, "inference_cycles": 0.0, "scale": 1.0})}
    )
    entries = []
    for x in networks((50,)):
        cycles = 1e-3 * chip.clock.clock_hz * evaluate(compile_target(plain, x.workload), x.bits[None]).latency_ms[0]
        true = 1.7 * cycles + 400 * len(x.layers) + 9000
        entries.append(x.model_copy(update={"latency_ms": 1e3 * true / chip.clock.clock_hz}))
    found = fit(entries, chip)
    overheads = found.target.overheads
    assert (overheads.scale, overheads.layer_cycles, overheads.inference_cycles) == pytest.approx((1.7, 400, 9000), rel=0.05)
    assert Errors.of_latency(found.held_out).worst < 0.01
    assert found.target.compute == chip.compute
    assert overheads.source == f"fitted to board.json, 12 measurements; what was not fitted: {chip.overheads.source}"
    again = fit(entries, found.target, "second.json").target.overheads.source
    assert again == f"fitted to second.json, 12 measurements; what was not fitted: {chip.overheads.source}"


def test_energy_gives_the_power():
    entries = [x.model_copy(update={"energy_uj": 12.5 * x.latency_ms}) for x in networks()]
    found = fit(entries)
    assert found.target.energy.active_mw == pytest.approx(12.5)
    assert Errors.of_energy(found.held_out).worst < 0.01
    assert fit(networks()).target.energy is None
    assert Errors.of_energy(fit(networks()).held_out) is None


def test_power_is_what_the_multiply_accumulates_leave_of_the_energy():
    macs = [{"activation_bits": 8, "weight_bits": w, "pj_per_mac": 1000.0} for w in (8, 4)]
    chip = target(energy={"active_mw": 1.0, "macs": macs, "source": "s"})
    entries = [x.model_copy(update={"energy_uj": 12.5 * x.latency_ms + 1e-3 * x.workload.macs}) for x in networks()]
    assert fit(entries, chip).target.energy.active_mw == pytest.approx(12.5)
    with pytest.raises(TargetError, match=r"energy: .* alone take more than was measured"):
        fit([x.model_copy(update={"energy_uj": 1e-4 * x.workload.macs + 1e-9}) for x in networks()], chip)


def test_marked_measurements_are_held_out_and_no_other():
    entries = [x.model_copy(update={"held_out": x.frames == 120}) for x in networks()]
    found = fit(entries)
    assert {check.name for check in found.held_out} == {x.name for x in entries if x.frames == 120}
    assert "marked so" in found.target.calibration.held_out
    with pytest.raises(TargetError, match=r"board.json: every measurement is held out"):
        fit([x for x in entries if x.held_out])


def test_without_marks_every_third_by_hash_is_held_out_in_any_order():
    names = sorted((x.name for x in networks()), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    for entries in (networks(), networks()[::-1]):
        found = fit(entries)
        assert {check.name for check in found.held_out} == set(names[2::3])
        assert len(found.fitted) + len(found.held_out) == len(entries)


def test_a_measurement_the_chip_cannot_run_is_named():
    with pytest.raises(TargetError, match=r"measurement 'odd': layer 'layer0': .*target 'guess' runs a8w8, a8w4"):
        fit([*networks(), measurement("odd", [layer("conv", 8, 8)], 20, weight_bits=2)])


def test_time_that_falls_with_the_work_is_refused():
    falling = [measurement(f"{n}", [layer("conv", n, n)], 50, 1e6 / n) for n in (8, 16, 32, 64, 128)]
    with pytest.raises(TargetError, match="measurements of conv a8w8 do not rise with its MACs"):
        fit(falling)
    with pytest.raises(TargetError, match="do not rise with the cycles of the compute rule"):
        fit(falling, load_target("ethos-u55-128"))


def test_a_circuit_without_free_numbers_is_refused():
    with pytest.raises(TargetError, match="target 'finn-pynq-z2': a dataflow circuit has no free number"):
        fit(networks(), load_target("finn-pynq-z2"))


def test_order_is_undefined_for_two_or_for_equal_measurements():
    found = fit(networks())
    assert Errors.of_latency(found.held_out[:2]).spearman is None
    assert Errors.of_latency([found.held_out[0]] * 3).spearman is None
    assert Errors.of_latency([]) is None


@pytest.mark.parametrize("name", built_in_targets())
def test_a_written_target_is_read_back(name, tmp_path):
    path = tmp_path / "chip.toml"
    path.write_text(target_toml(load_target(name)), "utf-8")
    assert load_target(path) == load_target(name)


def test_a_calibrated_target_is_read_back(tmp_path):
    found = fit([x.model_copy(update={"energy_uj": 3.0}) for x in networks()])
    path = tmp_path / "chip.toml"
    path.write_text(target_toml(found.target), "utf-8")
    assert load_target(path) == found.target
    assert found.target.name == "my-chip"
    assert found.target.calibration.source == "board 3"
