"""What target files say of their error is what the committed validations found; each validation can be loaded."""

import json
import sys
from importlib import resources
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from tests.hw_models.networks import TARGETS

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
RESULTS = json.loads((EXPERIMENTS / "results/hardware_validation.json").read_text("utf-8"))
VALIDATIONS = EXPERIMENTS / "hardware_validation"


def rows(tool, metric):
    return {row["target"]: row for row in RESULTS[tool]["rows"] if row["metric"] == metric}


@pytest.mark.parametrize(("tool", "metric"), [("vela", "cycles"), ("scalesim", "cycles"), ("bitfusion", "cycles")])
def test_the_error_in_a_target_file_is_that_of_its_validation(tool, metric):
    assert rows(tool, metric)
    for target, row in rows(tool, metric).items():
        trust = TARGETS[target].calibration
        assert trust.median_error_percent == pytest.approx(row["median_error_percent"], abs=0.06)
        assert trust.max_error_percent == pytest.approx(abs(row["worst_error_percent"]), abs=0.06)


@pytest.mark.parametrize("tool", ["scalesim", "bitfusion", "qonnx", "finn"])
def test_closed_forms_are_equal_in_every_case(tool):
    exact = RESULTS[tool]["rows"]
    assert exact
    assert all(row["equal"] == row["cases"] > 0 for row in exact)


@pytest.mark.parametrize("group", ["", "held_out_"])
def test_the_finn_boards_count_what_finns_default_build_counts(group):
    for metric in ("bram18", "cycles"):
        assert {row["equal"] == row["cases"] > 0 for row in rows("finn_default", group + metric).values()} == {True}
    logic = rows("finn_default", f"{group}lut")
    assert set(logic) == {"finn-pynq-z2", "finn-zcu104"}
    assert all(abs(row["worst_error_percent"]) < 10 for row in logic.values())


def test_separators_take_what_vela_says_within_fifteen_percent():
    assert all(abs(row["worst_error_percent"]) < 15 for row in rows("vela", "cycles").values())


def loaded(path, monkeypatch):
    spec = spec_from_file_location(f"loaded_{path.stem}", path)
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(VALIDATIONS.glob("[!_]*.py")), ids=lambda path: path.stem)
def test_every_validation_can_be_loaded(path, monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)  # two of them share a module there
    assert callable(loaded(path, monkeypatch).cases)


@pytest.mark.parametrize("path", sorted(VALIDATIONS.glob("[!_]*.py")), ids=lambda path: path.stem)
def test_results_name_the_setting_of_their_validation(path, monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    assert RESULTS[path.stem]["setting"] == loaded(path, monkeypatch).SETTING


def test_the_page_holds_the_tables_of_the_results(monkeypatch):
    page = (resources.files("hw_models") / "README.md").read_text("utf-8")
    assert loaded(EXPERIMENTS / "validation_table.py", monkeypatch).with_tables(page, RESULTS) == page


def test_held_out_errors_and_fitted_ones_stand_in_tables_of_their_own(monkeypatch):
    table = loaded(EXPERIMENTS / "validation_table.py", monkeypatch)
    row = {"target": "chip-1", "metric": "energy_uj", "cases": 2, "equal": 0, "mean_error_percent": 30.0, "spearman": None}
    rows = [row | {"worst_error_percent": -50.0}, row | {"target": "chip-2", "cases": 1, "worst_error_percent": 60.0}]
    rows += [row | {"metric": f"fitted_exact_{place}", "equal": 2, "worst_error_percent": 0.0} for place in (0, 1)]
    text = table.tables({"bench": {"setting": "at noon", "versions": {"tool": "1"}, "rows": rows}})
    held_out, fitted = text.split("Fitted to these")
    assert "| `bench` (tool 1) | at noon |" in held_out
    assert (
        "| `bench` | `chip-*` | energy uj | 3 | 0 | 30 %, +60 %, a factor of 2.00 |  |" in held_out
    )  # half is off by 2, not 1.6
    assert "| `bench` | `chip-1` | exact | 4 | 4 | 0 | 1 |" in fitted


def test_beside_cases_called_held_out_the_others_count_as_fitted(monkeypatch):
    table = loaded(EXPERIMENTS / "validation_table.py", monkeypatch)
    row = {"target": "chip", "cases": 2, "equal": 0, "mean_error_percent": 30.0, "worst_error_percent": 50.0}
    rows = [row | {"metric": name, "spearman": rank} for name, rank in (("lut", 0.5), ("held_out_lut", 0.25))]
    held_out, fitted = table.tables({"bench": {"setting": "", "versions": {}, "rows": rows}}).split("Fitted to these")
    assert [text.count("| lut |") for text in (held_out, fitted)] == [1, 1]
    assert ("| 0.250 |" in held_out, "| 0.500 |" in fitted) == (True, True)


def test_a_page_without_a_place_for_the_tables_is_refused(monkeypatch):
    table = loaded(EXPERIMENTS / "validation_table.py", monkeypatch)
    with pytest.raises(ValueError, match="the page has no lines"):
        table.with_tables("a page", RESULTS)


def test_the_command_takes_its_own_folder_from_the_path_and_nothing_else(monkeypatch):
    before = list(sys.path)
    monkeypatch.setattr(sys, "path", ["first", str(VALIDATIONS), *before])
    assert callable(loaded(VALIDATIONS / "__main__.py", monkeypatch).main)
    assert sys.path == ["first", *before, str(EXPERIMENTS)]
