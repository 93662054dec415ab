"""The share of a latency that was compared with a reference, and what target files say of their comparisons."""

import hashlib
import json
import sys
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from pydantic import ValidationError

from hw_models.calibration import calibrate, target_toml
from hw_models.compile import compile_target
from hw_models.confidence import confidence, evidence_of
from hw_models.cost import evaluate
from hw_models.measurements import load_measurements
from hw_models.report import cost_rows
from hw_models.sections import Calibration, Compared, Evidence
from hw_models.target import BUILT_IN, load_target
from hw_models.workload import LayerKind
from tests.hw_models.networks import RUNNABLE_WIDTHS, TARGETS, tcn

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
VALIDATION = json.loads((RESULTS / "hardware_validation.json").read_text("utf-8"))
ENTRIES = [(name, entry) for name, target in TARGETS.items() for entry in target.calibration.evidence]


def stated(name):
    """The evidence in a built-in target file, read as TOML."""
    return tomllib.loads((BUILT_IN / f"{name}.toml").read_text("utf-8"))["calibration"].get("evidence", [])


# What the files say


def test_every_kind_of_layers_can_be_compared():
    assert {*get_args(Compared)} == {*map(str, LayerKind), "inference"}


def test_a_target_that_nobody_measured_has_no_evidence_and_every_other_has_some():
    for target in TARGETS.values():
        assert (target.calibration.against == "nothing") == (not target.calibration.evidence)


@pytest.mark.parametrize(("name", "entry"), ENTRIES, ids=[f"{name} {'+'.join(entry.kinds)}" for name, entry in ENTRIES])
def test_an_entry_has_the_numbers_of_the_results_that_it_names(name, entry, monkeypatch):
    file, _, rest = entry.source.partition(":")
    place, *words = file.split(", ")
    assert (ROOT / place).is_file()
    if words:
        tool, metric = words
        rows = [row for row in VALIDATION[tool]["rows"] if row["metric"] == metric and row["target"] in (name, "dataflow")]
        (row,) = rows
        errors = (row["cases"], row["mean_error_percent"], abs(row["worst_error_percent"]))
        if rest == " the file with a trunk of 16 bits":
            assert row["worst_case"] == "8 bits, trunk of 16"
            errors = (1, errors[2], errors[2])
    elif place.endswith("structure_speed.json"):
        rows = json.loads((ROOT / place).read_text("utf-8"))["AVX2 kernels"]["rows"]
        errors = summed([row["expected_ms"] / row["median_ms"] for row in rows])
    elif "onnxruntime_measured" in place:
        errors = summed(chains(name, entry, ROOT / place))
    else:
        errors = summed(published(name, entry, ROOT / place, monkeypatch))
    assert (entry.cases, entry.mean_error_percent, entry.max_error_percent) == (
        errors[0],
        pytest.approx(errors[1], abs=0.051),
        pytest.approx(errors[2], abs=0.051),
    )


def summed(ratios):
    errors = 100 * np.abs(np.array(ratios) - 1)
    return len(errors), errors.mean(), errors.max()


def chains(name, entry, path):
    """Predicted over measured for the measurements of one kind that the target was not fitted to: every third by a hash."""
    target = load_target(name)  # the timed graphs have no features to quantize
    target = target.model_copy(update={"overheads": target.overheads.model_copy(update={"cycles_per_input": 0.0})})
    measured = load_measurements(path).measurements
    by_hash = sorted(measured, key=lambda each: hashlib.sha256(each.name.encode()).digest())[2::3]
    (kind,) = entry.kinds
    weighted = kind in ("conv", "depthwise")
    found = []
    for each in by_hash:
        pair = (each.activation_bits, each.weight_bits if weighted else 0)
        if {layer.kind for layer in each.layers} == {kind} and pair in entry.pairs:
            found.append(evaluate(compile_target(target, each.workload), each.bits[None]).latency_ms[0] / each.latency_ms)
    return found


def published(name, entry, path, monkeypatch):
    """Predicted over published latency for the figures of a chip that were not fitted, at the widths of the evidence.

    Counts of another model are no figures.
    """
    spec = spec_from_file_location("published_for_evidence", path)
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    cases = module.cases()
    return [
        ours["latency_ms"] / theirs["latency_ms"]
        for case, ours, theirs in zip(cases, module.predictions(cases), module.measured(), strict=True)
        if case["target"] == name and "latency_ms" in theirs and case["name"].startswith("M")
        if {(8, layer["weight_bits"]) for layer in case["layers"] if layer["kind"] != "add"} & set(map(tuple, entry.pairs))
    ]


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"mean_error_percent": 9.0}, "wanted at most max_error_percent"),
        ({"kinds": ["wheel"]}, "kinds"),
        ({"kinds": []}, "kinds"),
        ({"cases": 0}, "cases"),
        ({"pairs": [[8, 64]]}, "pairs"),
    ],
)
def test_wrong_evidence_is_refused(change, wanted):
    good = {
        "kinds": ["conv"],
        "compared": "layers",
        "cases": 2,
        "mean_error_percent": 1.0,
        "max_error_percent": 2.0,
        "source": "s",
    }
    assert Evidence.model_validate(good).cases == 2
    with pytest.raises(ValidationError, match=wanted):
        Evidence.model_validate(good | change)
    words = {"against": "measurements", "fitted_on": "f", "held_out": "h", "source": "s"}
    with pytest.raises(ValidationError, match="wanted each layer in one at most"):
        Calibration.model_validate(words | {"evidence": [good, good | {"pairs": [[8, 8]]}]})
    apart = [good | {"pairs": [[8, 4]]}, good | {"pairs": [[8, 8]]}]
    assert len(Calibration.model_validate(words | {"evidence": apart}).evidence) == 2
    with pytest.raises(ValidationError, match="wanted what it was compared with"):
        Calibration.model_validate(words | {"against": "nothing", "evidence": [good]})


# How sure a latency is


@pytest.mark.parametrize("name", TARGETS)
def test_the_share_is_that_of_the_layers_which_the_file_names(name):
    network, widths = tcn(), RUNNABLE_WIDTHS[name]
    table = compile_target(TARGETS[name], network)
    for bits in (np.full(len(network.sites), max(widths)), np.random.default_rng(1).choice(widths, len(network.sites))):
        *rows, total = cost_rows(table, bits)
        time = dict.fromkeys(range(len(stated(name))), 0.0)
        for row in rows:
            words = (row["runs_as"] or row["bits"]).split(" -> ")[0].split()
            numbers = {word[0]: int(word[1:]) for word in words}
            for place, entry in enumerate(stated(name)):
                speaks = row["kind"] in entry["kinds"] and row["bound"] in entry.get("bound", [row["bound"]])
                if speaks and [numbers["a"], numbers.get("w", 0)] in entry.get("pairs", [[numbers["a"], numbers.get("w", 0)]]):
                    time[place] += row["latency_ms"]
        layers, whole = sum(row["latency_ms"] for row in rows), total["latency_ms"]
        whole = layers if TARGETS[name].family == "fpga" else whole
        for place, entry in enumerate(stated(name)):
            time[place] += (whole - layers) * ("inference" in entry["kinds"])
        found = confidence(table, bits)
        assert found.share == pytest.approx(sum(time.values()) / whole, abs=1e-9)
        used = [place for place, ms in time.items() if ms > 0]
        assert (found.max_error_percent is None) == (not used)
        if used:
            assert found.max_error_percent == max(stated(name)[place]["max_error_percent"] for place in used)
            errors = [stated(name)[place]["mean_error_percent"] for place in used]
            assert found.mean_error_percent == pytest.approx(np.average(errors, weights=[time[place] for place in used]))


def test_the_interval_holds_every_time_that_the_largest_error_allows():
    network = tcn()
    table = compile_target(TARGETS["cortex-m7-x-cube-ai"], network)
    bits = np.full(len(network.sites), 8)
    found, latency = confidence(table, bits), evaluate(table, bits[None]).latency_ms[0]
    assert 0.5 < found.share < 1
    for error in (-found.max_error_percent, found.max_error_percent):  # predicted = measured (1 + error)
        measured = latency * (1 - found.share) + latency * found.share / (1 + error / 100)
        assert measured == pytest.approx(found.low_ms if error > 0 else found.high_ms)
    assert found.low_ms < latency < found.high_ms


def test_there_is_no_interval_where_little_was_checked():
    network = tcn()
    found = confidence(compile_target(TARGETS["cortex-m7-cmsis-nn"], network), np.full(len(network.sites), 4))
    assert found.share < 0.5
    assert found.low_ms is found.high_ms is None
    assert not confidence(compile_target(TARGETS["gap9"], network), np.full(len(network.sites), 8)).share


# Evidence of one's own


def test_a_calibration_is_evidence_for_what_was_held_out():
    measured = load_measurements(RESULTS / "onnxruntime_measured_avx2.json")
    kept = tuple(each for each in measured.measurements if each.weight_bits == 7)
    fit = calibrate(
        load_target("x86-onnxruntime-avx2"), measured.model_copy(update={"measurements": kept}), file="f", name="mine"
    )
    assert not fit.target.calibration.evidence, "evidence for another fit"
    found = evidence_of(fit.target, kept, fit.held_out)
    assert {(entry.kinds, entry.pairs) for entry in found} == {
        (("conv",), ((8, 7),)),
        (("depthwise",), ((8, 7),)),
        (("add",), ((8, 0),)),
    }
    by_kind = {entry.kinds[0]: entry for entry in found}
    names = {check.name: abs(check.predicted_ms / check.latency_ms - 1) for check in fit.held_out}
    told = [error for name, error in names.items() if name.startswith(("depthwise", "separator"))]
    assert by_kind["depthwise"].cases >= sum(name.startswith("depthwise") for name in names)
    assert by_kind["depthwise"].max_error_percent <= 100 * max(told) + 0.051
    calibration = fit.target.calibration.model_copy(update={"evidence": found})
    written = tomllib.loads(target_toml(fit.target.model_copy(update={"calibration": calibration})))
    assert [entry["kinds"] for entry in written["calibration"]["evidence"]] == [["add"], ["conv"], ["depthwise"]]
