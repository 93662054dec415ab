"""`hwsearch runs`, and what a shell completes."""

import json
import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hw_models.target import built_in_targets
from hwsearch.extensions import SAMPLERS
from hwsearch.search.record import REFERENCE
from hwsearch.view.runs import size
from tests.shown_tables import tables
from tests.tiny import HWSEARCH, TRIALS, Tiny, hwsearch, refusal

WIDTH = 80


def test_runs_are_listed_the_latest_first_and_a_damaged_one_says_why(copied: Tiny) -> None:
    runs = copied.runs
    for name in ("begun", "broken"):
        (runs / name).mkdir()
        shutil.copy(copied.folder / "experiment.json", runs / name)
    (runs / "broken" / "record.jsonl").write_text('{"event": "nonsense"}\n' * 2)
    (runs / "no-run").mkdir()
    for age, name in enumerate(("begun", "tiny", "broken")):
        for file in (runs / name).iterdir():
            os.utime(file, ((datetime.now(UTC) - timedelta(hours=1 + age)).timestamp(),) * 2)
    answer = hwsearch("runs", "--runs-dir", runs)
    assert answer.code == 0, answer.stderr
    table = tables(answer.stdout)[0]
    assert [row["run"] for row in table.records] == ["begun", "tiny", "broken"]
    begun, tiny, broken = table.records
    assert (begun["state"], begun["candidates"], begun["best_db"]) == ("not begun", "-", "-")
    assert (tiny["state"], tiny["candidates"]) == ("finished", f"{TRIALS} of {TRIALS}")
    best = max(event["metrics"]["si_snr_improvement_db"] for event in copied.events() if event["candidate"] > 0)
    assert float(tiny["best_db"]) == pytest.approx(best, abs=0.006)
    assert tiny["age"] == "2 h 00 min"
    assert tiny["size"] == size(sum(path.stat().st_size for path in copied.folder.rglob("*") if path.is_file()))
    assert broken["state"] == "unreadable"
    assert answer.stdout.splitlines()[-1].startswith("broken: ")


def test_the_list_fits_and_has_a_form_for_programs(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.runs.parent)
    answer = hwsearch("runs")
    assert max(map(len, answer.stdout.splitlines())) <= WIDTH
    (run,) = json.loads(hwsearch("runs", "--format", "json").stdout)
    assert (run["name"], run["state"], run["scored"], run["wanted"]) == ("tiny", "finished", TRIALS, TRIALS)
    assert datetime.fromisoformat(run["changed"]) <= datetime.now(UTC)


def test_no_runs_and_no_folder_are_told_apart(tmp_path: Path) -> None:
    assert hwsearch("runs", "--runs-dir", tmp_path).stdout == f"no runs in {tmp_path}\n"
    assert refusal(hwsearch("runs", "--runs-dir", tmp_path / "x")).startswith(f"{tmp_path / 'x'}: no such folder; wanted")


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (23_400_000, "23 MB"), (999_600, "1.0 MB"), (10**13, "10 TB")],
)
def test_sizes_are_written_short(count: int, said: str) -> None:
    assert size(count) == said


# Completion


def completed(folder: Path, *words: str) -> list[str]:
    """What bash is offered for the last word, by the installed command."""
    environment = {**os.environ, "_HWSEARCH_COMPLETE": "bash_complete", "COMP_CWORD": str(len(words))}
    environment["COMP_WORDS"] = " ".join(("hwsearch", *words))
    ended = subprocess.run([HWSEARCH], cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert ended.stderr == ""
    return [line.removeprefix("plain,") for line in ended.stdout.splitlines() if line]


@pytest.fixture(scope="module")
def project(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "experiments").mkdir()
    for name in ("mine.toml", "experiments/more.toml", "experiments/other.toml", "text.txt"):
        (folder / name).touch()
    (folder / "runs").symlink_to(tiny.runs)
    return folder


def test_experiments_runs_targets_and_names_are_completed(project: Path) -> None:
    assert completed(project, "run", "m") == ["mine.toml"]
    assert completed(project, "run", "") == ["mine.toml", "experiments/more.toml", "experiments/other.toml"]
    assert completed(project, "doctor", "experiments/m") == ["experiments/more.toml"]
    assert completed(project, "pareto", "") == ["runs/tiny"]
    assert completed(project, "status", "runs/t") == ["runs/tiny"]
    assert completed(project, "cost", "ethos-u5") == [name for name in built_in_targets() if name.startswith("ethos-u5")]
    assert completed(project, "init", "--array", "res") == ["respeaker4", "respeaker6"]
    assert completed(project, "run", "mine.toml", "--sampler", "") == list(SAMPLERS)
    assert completed(project, "stat") == ["status"]


def test_candidates_are_those_of_the_run_on_the_line(project: Path, tiny: Tiny) -> None:
    numbers = sorted({event["candidate"] for event in tiny.events()} - {REFERENCE})
    assert completed(project, "export", "runs/tiny", "--candidate", "") == list(map(str, numbers))
    ends = [str(number) for number in numbers if str(number).startswith("2")]
    assert completed(project, "cost", "bitfusion", "--run", "runs/tiny", "--candidate", "2") == ends
    assert completed(project, "evaluate", "runs/tiny", "--candidate", "2") == ends


def test_a_run_that_cannot_be_read_completes_nothing(project: Path, tmp_path: Path) -> None:
    (tmp_path / "record.jsonl").write_text('{"event": "scored"}\n[]\n"scored"\n{')
    for place in ("runs/nothing", "text.txt", str(tmp_path)):
        assert completed(project, "export", place, "--candidate", "") == []
    assert completed(project, "pareto", "nowhere/r") == ["file,nowhere/r"]
