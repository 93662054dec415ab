"""Seeing and bounding a search from the command line: status, budgets, dry runs."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from hwsearch.errors import UserError
from hwsearch.experiment import Fidelity
from hwsearch.files.journal import Journal
from hwsearch.search.driver_account import DRIVERS_FILE, DriverAccount, Step
from hwsearch.search.log import LOG_FILE
from hwsearch.search.record import FolderLock
from hwsearch.workflow import dry_run
from hwsearch.workflow import search as searching
from tests.shown_tables import said
from tests.tiny import HWSEARCH, TRIALS, Tiny, hwsearch, refusal, snapshot, write_tiny

ARGUMENTS = ("--workers", 0, "--processes", 1)


def test_the_status_of_a_finished_search(tiny: Tiny) -> None:
    before = snapshot(tiny.folder)
    answer = hwsearch("status", tiny.folder, "--format", "json")
    assert (answer.code, answer.stderr) == (0, "")
    status = json.loads(answer.stdout)
    (rung,) = status["rungs"]
    assert (rung["scored"], rung["failed"], rung["in_flight"], rung["wanted"]) == (TRIALS, 0, 0, TRIALS)
    assert (status["driver"], status["remaining_seconds"], status["rungs"][0]["final"]) == (None, 0.0, True)
    assert status["last_end"]["how"] == "finished"
    assert status["log"] == str(tiny.folder / LOG_FILE)
    assert sum(worker["finished"] for worker in status["workers"]) == TRIALS + 1
    shown = hwsearch("status", tiny.folder, "--watch")
    assert shown.code == 0
    assert "no driver is running" in shown.stdout
    assert snapshot(tiny.folder) == before


def status_of(folder: Path) -> dict[str, Any]:
    answer = hwsearch("status", folder, "--format", "json")
    assert (answer.code, answer.stderr) == (0, "")
    content: dict[str, Any] = json.loads(answer.stdout)
    return content


@pytest.mark.parametrize(("command", "step"), [("search", "build"), ("run", "build"), ("search", "ensure")])
def test_the_status_before_anything_is_scored_says_who_does_what(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, command: str, step: str
) -> None:
    """From the data on, and after an end that came before the first candidate."""
    shutil.copytree(tiny.runs / "data", tmp_path / "runs" / "data")
    folder = tmp_path / "runs" / "tiny"
    seen: list[dict[str, Any]] = []
    shown: list[str] = []

    def stop(*given: Any, progress: Callable[[int, int], None] | None = None, **_: Any) -> None:
        if progress is None:
            given[2].advanced("rooms and mixtures", 3, 12)
        else:
            progress(3, 12)
        seen.append(status_of(folder))
        shown.append(hwsearch("status", folder).stdout)
        raise UserError("enough")

    monkeypatch.setattr(searching, step, stop)
    file = write_tiny(tmp_path / "tiny.toml")
    before = datetime.now(UTC)
    assert refusal(hwsearch(command, file, "--runs-dir", tmp_path / "runs", *ARGUMENTS)) == "enough"
    name = "rooms and mixtures" if step == "build" else "sensitivities"
    (status,) = seen
    assert status["driver"]["process"] == str(os.getpid())
    assert before <= datetime.fromisoformat(status["driver"]["since"]) + timedelta(milliseconds=1) <= datetime.now(UTC)
    assert {key: status["step"][key] for key in ("step", "done", "total")} == {"step": name, "done": 3, "total": 12}
    assert (status["last_end"], status["rungs"][0]["scored"]) == (None, 0)
    assert f"step:   {name} 3/12, since 20" in shown[0]
    after = status_of(folder)
    assert (after["driver"], after["step"], after["remaining_seconds"]) == (None, None, None)
    assert (after["last_end"]["how"], after["last_end"]["reason"]) == ("error", "enough")
    text = hwsearch("status", folder, "--watch").stdout
    assert "no driver is running; the last one ended 20" in text
    assert "UTC: enough" in text
    assert "nothing is scored yet" in text


def test_the_status_says_that_the_last_driver_was_killed(copied: Tiny) -> None:
    with FolderLock(copied.folder):
        with Journal(copied.folder / DRIVERS_FILE, "drivers", sealed=False) as journal:
            DriverAccount(journal).step(Step.SENSITIVITIES, 1, 2)
        assert status_of(copied.folder)["step"]["step"] == "sensitivities"
    assert status_of(copied.folder)["last_end"]["how"] == "killed"
    assert "it was killed, or its machine went down" in hwsearch("status", copied.folder).stdout


@pytest.mark.parametrize("output_format", ["table", "json"])
def test_ctrl_c_leaves_a_watch_without_a_word(copied: Tiny, output_format: str) -> None:
    command = [HWSEARCH, "status", copied.folder, "--watch", "--format", output_format]
    with FolderLock(copied.folder), subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline()
        watch.send_signal(signal.SIGINT)
        _, errors = watch.communicate()
    assert (watch.returncode, errors) == (130, "")


def test_a_terminal_that_cannot_show_the_curve_gets_the_figures(tiny: Tiny) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    answer = subprocess.run([HWSEARCH, "status", tiny.folder], env=environment, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "hypervolume ????" in answer.stdout


def test_a_log_is_kept_and_standard_error_is_as_before(tiny: Tiny) -> None:
    log = (tiny.folder / LOG_FILE).read_text().splitlines()
    assert f"/runs/tiny/{LOG_FILE} of process" in log[0]
    assert f"done: {TRIALS} of {TRIALS} candidates scored" in log[-1]
    assert sum("candidate " in line and " scored in " in line for line in log) == TRIALS
    assert "scored in" not in tiny.stderr


def test_budgets_are_given_on_the_command_line_and_a_larger_one_goes_on(copied: Tiny) -> None:
    command = ("search", copied.file, "--runs-dir", copied.runs, *ARGUMENTS)
    answer = hwsearch(*command, "--trials", TRIALS + 2)
    assert answer.code == 0, answer.stderr
    assert f"done: {TRIALS + 2} of {TRIALS + 2} candidates scored" in answer.stderr
    answer = hwsearch(*command, "--trials", TRIALS + 4, "--hours", "0.00000001")
    assert answer.code == 0, answer.stderr
    assert f"stopped, 1e-08 hours (search.hours) are over: {TRIALS + 2} of {TRIALS + 4} candidates scored" in answer.stderr
    assert "the same command goes on for as long again in" in answer.stderr
    assert status_of(copied.folder)["last_end"]["how"] == "hours"
    file = write_tiny(copied.file, ("[search]\n", "[search]\nstall_growth = 1.0\n"))
    answer = hwsearch("search", file, *command[2:], "--trials", TRIALS + 4, "--until-hypervolume-stalls", "20")
    assert answer.code == 0, answer.stderr
    assert "stopped, the hypervolume grew by less than 1 of itself over 20 candidates: " in answer.stderr
    status = status_of(copied.folder)
    assert (status["last_end"]["how"], status["remaining_seconds"]) == ("stalled", 0.0)
    assert "UTC: the hypervolume grew by less than 1 of itself over 20 candidates" in hwsearch("status", copied.folder).stdout
    answer = hwsearch(*command, "--trials", TRIALS + 3, "--hours", 5)
    assert answer.code == 0, answer.stderr
    scored = [event["candidate"] for event in copied.events()]
    assert scored == list(range(TRIALS + 4))


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--trials", "0", "--trials"),
        ("--trials", "3", "search.trials is 3"),
        ("--hours", "0", "--hours"),
        ("--hours", "nan", "hours"),
        ("--hours", "inf", "hours"),
        ("--until-hypervolume-stalls", "1", "--until-hypervolume-stalls"),
    ],
)
@pytest.mark.parametrize("command", ["run", "search"])
def test_a_budget_that_is_none_is_refused(tiny: Tiny, tmp_path: Path, command: str, option: str, value: str, named: str) -> None:
    assert named in refusal(hwsearch(command, tiny.file, "--runs-dir", tmp_path / "runs", option, value))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("given", [(), ("--workers", 0), ("20",)])
def test_the_experiment_may_stand_behind_the_option_that_takes_a_number(tmp_path: Path, given: tuple[object, ...]) -> None:
    file = write_tiny(tmp_path / "tiny.toml")
    answer = hwsearch("search", "--dry-run", "--runs-dir", tmp_path / "runs", "--until-hypervolume-stalls", *given, file)
    assert (answer.code, answer.stderr) == (0, "")


def test_an_empty_storage_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    for storage in ("", " "):
        line = refusal(hwsearch("search", tiny.file, "--runs-dir", tmp_path / "runs", "--storage", storage))
        assert line == "--storage is empty; wanted ADDRESS, or no --storage"


def test_a_dry_run_before_anything_says_what_is_missing_and_writes_nothing(tmp_path: Path) -> None:
    file = write_tiny(tmp_path / "tiny.toml")
    for command in ("run", "search"):
        answer = hwsearch(command, file, "--runs-dir", tmp_path / "runs", "--dry-run")
        assert answer.code == 0, answer.stderr
        assert said(answer.stdout, "seeds") == ["at most 27: 6 uniform, 5 ends-at-8, 8 output-noise-ratio, 8 kl"]
        assert said(answer.stdout, "rung") == [f"{TRIALS} candidates at 'post-training', not measured"]
        missing = said(answer.stdout, "missing")
        assert missing[0].startswith("rooms and mixtures")
        assert missing[0].endswith(", which the command makes")
        assert missing[1].startswith("sensitivities (output-noise-ratio, kl)")
        assert said(answer.stdout, "cost")[0].startswith("not estimated")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]


def test_a_dry_run_measures_and_counts_what_is_done(tiny: Tiny) -> None:
    before = snapshot(tiny.runs)
    answer = hwsearch("search", tiny.file, "--runs-dir", tiny.runs, "--dry-run", "--workers", 0, "--trials", TRIALS + 40)
    assert (answer.code, answer.stderr) == (0, "")
    found = [event["strategy"] for event in tiny.events()]
    (seeds,) = said(answer.stdout, "seeds")
    for origin in ("uniform", "ends-at-8", "output-noise-ratio", "kl"):
        assert f"{found.count(origin)} {origin}" in seeds
    assert not seeds.startswith("at most")
    (rung,) = said(answer.stdout, "rung")
    assert rung.startswith(f"{TRIALS + 40} candidates at 'post-training' ({TRIALS} are done), ")
    assert said(answer.stdout, "missing") == []
    assert said(answer.stdout, "time")[0].startswith("about ")
    assert said(answer.stdout, "workers") == ["this process alone"]
    whole = hwsearch("search", tiny.file, "--runs-dir", tiny.runs, "--dry-run", "--workers", 0)
    assert said(whole.stdout, "time") == ["about 0 s of scoring"]
    assert snapshot(tiny.runs) == before


def test_a_dry_run_says_what_the_budgets_come_to(tiny: Tiny, tmp_path: Path) -> None:
    command = ("search", tiny.file, "--runs-dir", tiny.runs, "--dry-run", "--workers", 0, "--trials", 100_000)
    answer = hwsearch(*command, "--hours", 1e-9, "--until-hypervolume-stalls", 20)
    assert (answer.code, answer.stderr) == (0, "")
    assert said(answer.stdout, "hours") == [
        f"1e-09 hours end the search after about {TRIALS} of 100000 candidates at 'post-training'"
    ]
    seeds = int(said(answer.stdout, "seeds")[0].partition(":")[0])
    (stall,) = said(answer.stdout, "stall")
    assert stall.startswith("no more are asked for once the hypervolume grew by less than 0.001 of itself over 20 candidates, ")
    assert stall.endswith(f", after {seeds + 20 + seeds % 2} at the earliest; then promotions follow")
    answer = hwsearch(*command[:-1], TRIALS + 1, "--hours", 1, "--until-hypervolume-stalls", 200)
    assert said(answer.stdout, "hours") == ["its trials end the search within 1 hour"]
    assert "; its trials end it before" in said(answer.stdout, "stall")[0]
    file = write_tiny(tmp_path / "tiny.toml")
    answer = hwsearch("run", file, "--runs-dir", tmp_path / "runs", "--dry-run", "--hours", 8, "--until-hypervolume-stalls")
    assert "8 hours end the search if its trials do not before" in said(answer.stdout, "hours")[0]
    assert "over 50 candidates, seeds not counted" in said(answer.stdout, "stall")[0]


def test_hours_are_filled_rung_by_rung() -> None:
    first = dry_run.RungPlan(Fidelity.SUBSET, 100, 20, 1.0)
    whole, trained = (
        dry_run.RungPlan(*given) for given in ((Fidelity.POST_TRAINING, 10, 0, 4.0), (Fidelity.SHORT_QAT, 5, 0, 8.0))
    )
    todo = [(80, first), (10, whole), (5, trained)]
    measured = dry_run.Measured(10.0, 1.0, None, 1.0, 1.0)
    for seconds, scored in ((9, (20, 0, 0)), (30, (60, 0, 0)), (58, (100, 4, 0)), (78.001, (100, 10, 2))):
        assert dry_run.scored_in(seconds / 3600, todo, measured, at_once=2) == scored
        later = replace(measured, shared_seconds=7.0)
        assert dry_run.scored_in((seconds + 7) / 3600, todo, later, at_once=2) == scored


@pytest.mark.parametrize(
    ("held", "told"),
    [
        (None, f"is not there yet; it gets the {TRIALS} results of the record, then every one of the search"),
        (7, f"holds 7 trials; it gets what it lacks of the {TRIALS} results of the record, then every one of the search"),
    ],
)
def test_a_dry_run_looks_at_the_shared_study(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, held: int | None, told: str) -> None:
    address = "postgresql://127.0.0.1:1/db"
    command = ("search", tiny.file, "--runs-dir", tiny.runs, "--dry-run", "--workers", 0, "--storage", address)
    assert f"storage {address}: " in refusal(hwsearch(*command))
    monkeypatch.setattr(dry_run, "check_storage", lambda *_: held)
    assert said(hwsearch(*command).stdout, "storage") == [f"study 'tiny' in {address} {told}"]


def test_a_dry_run_refuses_what_the_search_refuses(tiny: Tiny, tmp_path: Path) -> None:
    before = snapshot(tiny.folder)
    file = write_tiny(tmp_path / "tiny.toml", ("population = 8", "population = 9"))
    line = refusal(hwsearch("search", file, "--runs-dir", tiny.runs, "--dry-run"))
    assert "holds the search of an experiment 'tiny' that differs" in line
    assert snapshot(tiny.folder) == before


@pytest.mark.parametrize(("given", "wanted"), [({}, "1"), ({"OPENBLAS_NUM_THREADS": "3"}, "3")])
def test_the_driver_leaves_the_cores_to_the_scorers(given: dict[str, str], wanted: str) -> None:
    script = (
        "import atexit, os, sys\n"
        "atexit.register(lambda: print(os.environ['OPENBLAS_NUM_THREADS'], 'numpy' in sys.modules))\n"
        "from hwsearch.cli import main\n"
        "sys.argv = ['hwsearch', '--version']\n"
        "main()\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"} | given
    answer = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert answer.stdout.splitlines()[-1] == f"{wanted} False"  # set before NumPy is loaded, which reads it once


NO_RAY = """
import sys
from hwsearch.cli import main
try:
    main()
finally:
    print("ray" in sys.modules)
"""


def without_ray(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A command line in a process of its own, which says at last whether Ray was imported."""
    command = [sys.executable, "-c", NO_RAY, *map(str, arguments), "--workers", "1", "--processes", "1"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_search_that_is_done_starts_no_ray(copied: Tiny) -> None:
    ended = without_ray("search", copied.file, "--runs-dir", copied.runs)
    assert (ended.returncode, ended.stdout) == (0, "False\n"), ended.stderr
    assert f"done: {TRIALS} of {TRIALS} candidates scored" in ended.stderr


def test_a_damaged_record_is_found_before_ray_starts(copied: Tiny) -> None:
    record = copied.folder / "record.jsonl"
    lines = record.read_text().splitlines(keepends=True)
    record.write_text("".join([*lines[:9], "no entry\n", *lines[10:]]))
    ended = without_ray("search", copied.file, "--runs-dir", copied.runs, "--trials", TRIALS + 5)
    assert (ended.returncode, ended.stdout) == (2, "False\n"), ended.stderr
    assert f"{record}, line 10: changed since it was written" in ended.stderr.splitlines()[-1]


def test_a_record_that_is_a_folder_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    file = write_tiny(tmp_path / "tiny.toml")
    record = tmp_path / "runs" / "tiny" / "record.jsonl"
    record.mkdir(parents=True)
    line = refusal(hwsearch("search", file, "--runs-dir", tmp_path / "runs"))
    assert line == f"{record}: no file; wanted the record of a search, or nothing there"
    assert not (tmp_path / "runs" / "data").exists()
