"""The public API: its examples run, its names are those of the package, and importing the package stays cheap."""

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import hwsearch
from hwsearch import api
from tests.tiny import Tiny, write_tiny


@pytest.mark.parametrize("function", ["open_experiment", "open_run", "run_search", "query_front", "export_candidate"])
def test_the_examples_run(copied: Tiny, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    monkeypatch.chdir(copied.file.parent)
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(api, function), function, globs=vars(api).copy())
    result = doctest.DocTestRunner().run(example)
    assert result.attempted >= 2
    assert result.failed == 0


def test_the_package_has_the_names_of_the_api() -> None:
    for name in hwsearch.__all__:
        assert getattr(hwsearch, name) is getattr(api, name, None) or name == "UserError"
    assert {"Listener", "open_run"} <= set(hwsearch.__all__)
    with pytest.raises(AttributeError, match="no attribute 'pipeline_of_old'"):
        _ = hwsearch.pipeline_of_old


def test_a_run_that_is_none_is_refused_as_on_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(hwsearch.UserError, match="not a run folder"):
        hwsearch.open_run(tmp_path)


def test_opening_an_experiment_writes_nothing(tmp_path: Path) -> None:
    file = write_tiny(tmp_path / "tiny.toml")
    assert hwsearch.open_experiment(file, tmp_path / "runs").folder == tmp_path / "runs" / "tiny"
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]
    file.write_text(file.read_text("utf-8") + "tirals = 3\n")
    with pytest.raises(hwsearch.UserError, match="tirals"):
        hwsearch.open_experiment(file)
    with pytest.raises(hwsearch.UserError, match="no such file"):
        hwsearch.open_experiment(tmp_path / "missing.toml")


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, hwsearch; print([name for name in ('torch', 'optuna', 'ray', 'brevitas', 'rich') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
