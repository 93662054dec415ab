"""`hwsearch doctor`: what is right is said to be right, and what is wrong is found, with what to do."""

import importlib
import os
import shutil
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from hwsearch.errors import UserError
from hwsearch.process import machine
from hwsearch.view.doctor import print_findings
from hwsearch.workflow import doctor
from hwsearch.workflow.doctor import Finding, State, examine_experiment, examine_machine
from tests.tiny import Tiny, hwsearch, snapshot, write_tiny

WIDTH = 80
ROOT = Path(__file__).parents[1]


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwsearch.executor.start_seconds", lambda: 3.0)


def found(topic: str, runs: Path = Path("runs")) -> Finding:
    """The first finding about a topic."""
    return next(each for each in examine_machine(runs) if each.topic == topic)


def test_this_installation_is_fine_and_ray_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answer = hwsearch("doctor")
    assert (answer.code, answer.stderr) == (0, "")
    lines = answer.stdout.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert not [line for line in lines if line.startswith("wrong")]
    assert lines[-1].startswith("nothing wrong, ")
    for topic in ("Python", "packages", "C compiler", "cores", "memory", "disk", "kernels", "Ray"):
        assert sum(line[9:].startswith(f"{topic}:") for line in lines) == 1, topic
    assert list(tmp_path.iterdir()) == []


def test_every_dependency_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def nothing(name: str) -> str:
        asked.append(name)
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", nothing)
    missing = list(doctor._packages())
    plain = [each for each in requires("hwsearch") or () if "extra ==" not in each]
    assert len(missing) == len(asked) == len(plain) > 20
    assert {each.state for each in missing} == {State.WRONG}
    assert any(each.said.startswith("optuna is not installed; wanted >=5.0") for each in missing)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*doctor._EXTRAS, "test"} == {*extras}
    # The installation that runs the tests may be older than an extra.
    known = [Requirement(f"{each}; extra == '{name}'") for name, needed in extras.items() for each in needed if ";" not in each]
    monkeypatch.setattr(doctor, "_requirements", lambda: known)
    assert all("is not installed" in each.said and "hwsearch[" in each.advice for each in doctor._extras())


def test_an_extra_that_is_newer_than_the_installation_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [Requirement("numpy; extra == 'asr'"), Requirement("scipy")]
    monkeypatch.setattr(doctor, "_requirements", lambda: known)
    said = [each.said for each in doctor._extras()]
    assert [each for each in said if "is installed" in each] == ["'asr' is installed"]
    assert not [each for each in said if "is not installed" in each]
    (last,) = [each for each in doctor._extras() if each.state is State.WARNING]
    assert "'dashboard'" in last.said
    assert "'asr'" not in last.said
    assert last.advice == "install anew: pip install -e ."


@pytest.mark.parametrize(("found_version", "fine"), [("4.9.1", False), ("5.0", True), ("5.1.0.dev1", True), ("6", True)])
def test_a_version_outside_its_bounds_is_wrong(monkeypatch: pytest.MonkeyPatch, found_version: str, fine: bool) -> None:
    whole = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: found_version if name == "optuna" else whole(name))
    (only,) = list(doctor._packages())
    assert (only.state is State.OK) == fine
    if not fine:
        assert only.said == f"optuna is {found_version}; wanted >=5.0"


def test_a_machine_that_lacks_something_is_told_what_to_do(no_ray: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "available_bytes", lambda: 0.4e9)
    assert found("memory").state is State.WRONG
    monkeypatch.setattr(doctor, "available_bytes", lambda: 2e9)
    assert found("memory").state is State.WARNING
    monkeypatch.setattr(doctor, "free_bytes", lambda folder: 0.1e9)
    assert found("disk").state is State.WRONG
    (tmp_path / "file").touch()
    assert "is no folder" in found("disk", tmp_path / "file" / "runs").said
    monkeypatch.setenv("OMP_NUM_THREADS", "4000")
    assert found("cores").state is State.WARNING
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert found("cores").state is State.WRONG
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "none is needed any more" in found("C compiler").said

    def refuse(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    assert found("C compiler").advice == "install gcc, then pip install --force-reinstall pesq"


def test_a_ray_that_does_not_start_is_wrong_and_the_exit_code_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> float:
        raise UserError("Ray cannot be started on this machine (no room)")

    monkeypatch.setattr("hwsearch.executor.start_seconds", refuse)
    answer = hwsearch("doctor")
    assert answer.code == 1
    assert "wrong    Ray: Ray cannot be started on this machine (no room)" in answer.stdout
    assert answer.stdout.splitlines()[-1].startswith("1 wrong")


@pytest.mark.parametrize("saturates", [True, False])
def test_what_the_processor_lacks_is_no_error(no_ray: None, monkeypatch: pytest.MonkeyPatch, saturates: bool) -> None:
    monkeypatch.setattr("hwsearch.export.saturation.kernels_saturate", lambda: saturates)
    assert found("kernels").state is (State.WARNING if saturates else State.OK)


def test_limits_of_a_container_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_LIMITS", tmp_path)
    whole = machine.memory_bytes()
    assert whole == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine.core_quota() is None
    assert 0 < machine.available_bytes() <= whole
    for name, text in (("memory.max", "2000000"), ("memory.current", "1500000"), ("cpu.max", "150000 100000")):
        (tmp_path / name).write_text(f"{text}\n")
    assert (machine.memory_bytes(), machine.available_bytes(), machine.core_quota()) == (2_000_000, 500_000, 1.5)
    for name in ("memory.max", "cpu.max"):
        (tmp_path / name).write_text("max 100000\n")
    assert (machine.memory_bytes(), machine.core_quota()) == (whole, None)


# An experiment


def test_a_finished_run_is_measured(tiny: Tiny) -> None:
    before = snapshot(tiny.folder)
    findings = list(examine_experiment(tiny.file, tiny.runs, 0))
    assert {each.state for each in findings} == {State.OK}
    said = [each.said for each in findings]
    assert any(each.startswith("60 candidates would be scored") for each in said)
    assert any(each.startswith("takes about ") for each in said)
    assert any(each.startswith("workers take about ") for each in said)
    assert snapshot(tiny.folder) == before


def test_the_size_of_data_is_an_upper_bound(tiny: Tiny) -> None:
    size = sum(path.stat().st_size for path in tiny.workspace.data_folder.rglob("*") if path.is_file())
    assert 0.3 * doctor.most_bytes(tiny.workspace.experiment.data) < size < doctor.most_bytes(tiny.workspace.experiment.data)


def untrained(folder: Path, *changes: tuple[str, str]) -> Path:
    """An experiment whose base is to be trained."""
    splits = ("splits = { validation = 0.5, test = 0.5 }", "splits = { train = 0.4, validation = 0.3, test = 0.3 }")
    rooms = ("count = { validation = 2, test = 2 }", "count = { train = 2, validation = 2, test = 2 }")
    return write_tiny(folder / "x.toml", splits, rooms, ('base = "embedded"\n', ""), *changes)


def test_a_base_that_is_to_be_trained_is_timed(tmp_path: Path) -> None:
    file = untrained(tmp_path)
    findings = list(examine_experiment(file, tmp_path / "runs", 0))
    (training,) = [each for each in findings if each.topic == "training"]
    assert training.said.startswith("the training of the base takes at most 18000 steps, about ")
    assert {each.advice for each in findings if each.topic == "scoring"} == {
        "'hwsearch data build' and train first, and ask again"
    }
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("bfloat16", "state"), [(0.3, State.WARNING), (0.1, State.OK)])
def test_bfloat16_that_is_slower_here_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bfloat16: float, state: State
) -> None:
    seconds = {"float32": 0.2, "bfloat16": bfloat16}
    monkeypatch.setattr("hwsearch.training.fit.step_seconds", lambda separator, config, rate: seconds[config.precision])
    file = untrained(tmp_path, ("[search]", '[training]\nprecision = "bfloat16"\n\n[search]'))
    (training,) = [each for each in examine_experiment(file, tmp_path / "runs", 0) if each.topic == "training"]
    assert training.state is state
    assert (training.advice == "set training.precision = 'float32': about 60 min") == (state is State.WARNING)


@pytest.mark.parametrize(
    ("change", "topic", "said"),
    [
        (("trials = 60", "trials = 0"), "experiment", "search.trials is 0"),
        (("trials = 60", "trials = 2"), "search", "search.trials is 2; uniform allocations"),
        (
            ("count = { validation = 3, test = 3 }", "count = { validation = 99999, test = 99999 }"),
            "search",
            "GB free: wanted smaller",
        ),
    ],
)
def test_what_a_search_would_be_refused_for_is_wrong(
    tmp_path: Path, change: tuple[str, str], topic: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hwsearch.data.feasible.free_bytes", lambda folder: 1e9)
    findings = list(examine_experiment(write_tiny(tmp_path / "x.toml", change), tmp_path / "runs", 0))
    (wrong,) = [each for each in findings if each.state is State.WRONG and each.topic == topic]
    assert said in wrong.said
    assert wrong.advice


def test_long_findings_are_wrapped_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    counts = print_findings([Finding(State.WRONG, "disk", "word " * 60, "do " * 60), Finding(State.OK, "Ray", "starts")])
    lines = capsys.readouterr().out.splitlines()
    assert counts == {State.OK: 1, State.WARNING: 0, State.WRONG: 1}
    assert max(map(len, lines)) <= WIDTH
    assert [line[:9].strip() for line in lines if line[:9].strip()] == ["wrong", "ok"]
    assert sum("->" in line for line in lines) == 1
