"""`hwsearch sensitivity`: what it says and leaves, that it goes on after a kill, and what it refuses."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hwsearch.sensitivity.cache import JOBS_FILE
from hwsearch.sensitivity.estimate import DEFAULT_METHODS
from hwsearch.separator.base import BaseDescription, load_base, save_base
from tests.separator.small import RELU, small_separator
from tests.shown_tables import tables as shown_tables
from tests.tiny import hwsearch, refusal, snapshot

TOML = """\
name = "small"
base = "small.safetensors"

[data]
array = "linear4"

[[data.corpora]]
kind = "espeak"
speakers = 6
utterances_per_speaker = 2
splits = { train = 0.5, validation = 0.5 }

[data.rooms]
count = { train = 1, validation = 1 }
size_max_m = [6.0, 5.0, 3.0]
t60_max_s = 0.12

[data.mixtures]
count = { validation = 2 }
seconds = 1.0

[separator]
B = 8
H = 16
X = 2
R = 1
n_fft = 128
hop_length = 64

[quantization]
calibration_mixtures = 2

[sensitivity]
mixtures = 2
max_probes = 8
recoverability_steps = 2

[qat]
examples = 4
batch_size = 2
segment_seconds = 0.5

[search]
allowed = { "*" = [8], "blocks.*.expand.weight" = [2, 4, 8], "mask_head.weight" = [2, 4, 8], "features" = [4, 8] }
"""
SITES = ["blocks.0.expand.weight", "blocks.1.expand.weight", "mask_head.weight", "features"]
ARGUMENTS = ("--workers", 0, "--processes", 1)


def write(path: Path, *changes: tuple[str, str]) -> Path:
    """Write the experiment with pieces of its text replaced, and its base beside it."""
    text = TOML
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    description = BaseDescription(sample_rate=8000, array="linear4", separator=RELU, made_by={})
    save_base(path.with_name("small.safetensors"), small_separator(), description)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which the command has ended, and its answer; tests must not change it."""
    folder = tmp_path_factory.mktemp("sensitivity")
    answer = hwsearch("sensitivity", write(folder / "small.toml"), "--runs-dir", folder / "runs", *ARGUMENTS)
    assert answer.code == 0, answer.stderr
    return folder, answer.stdout


@pytest.fixture
def again(made: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of that folder to go on in."""
    return shutil.copytree(made[0], tmp_path / "again")


def sensitivities(folder: Path) -> Path:
    return folder / "runs" / "small" / "sensitivity"


def tables(folder: Path) -> dict[str, dict]:
    paths = sorted(sensitivities(folder).glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in paths if path.name != "key.json"}


def test_every_method_that_needs_no_training_has_a_table(made: tuple[Path, str]) -> None:
    found = tables(made[0])
    assert set(found) == set(DEFAULT_METHODS)
    for method, table in found.items():
        assert (table["method"], table["sites"], table["widths"], table["mixtures"]) == (method, SITES, [2, 4, 8], 2)


def test_the_answer_names_the_most_fragile_sites_of_each_method_with_their_error(made: tuple[Path, str]) -> None:
    folder, answer = made
    all_shown = shown_tables(answer)
    assert len(all_shown) == len(DEFAULT_METHODS)
    assert "most fragile sites, 2 mixtures" in answer.splitlines()
    for method, found in zip(DEFAULT_METHODS, all_shown, strict=True):
        shown, table = found.rows, tables(folder)[method]
        assert f"{method}, {table['unit']}" in answer.splitlines()
        narrowest = [1 if site == "features" else 0 for site in SITES]
        value = np.array([row[column] for row, column in zip(table["value"], narrowest, strict=True)])
        error = np.array([row[column] for row, column in zip(table["standard_error"], narrowest, strict=True)])
        order = np.argsort(-value)
        assert [row[0] for row in shown] == [SITES[position] for position in order]
        assert [row[1] for row in shown] == [str(table["widths"][narrowest[position]]) for position in order]
        figures = np.array([[float(part.replace(",", "")) for part in row[2].split(" ± ")] for row in shown])
        np.testing.assert_allclose(figures[:, 0], value[order], rtol=5.1e-3)
        np.testing.assert_allclose(figures[:, 1], error[order], rtol=5.1e-2)
        assert not any("e" in row[2] for row in shown)


def test_the_answer_ends_with_files_that_are_there_and_the_next_command(made: tuple[Path, str]) -> None:
    folder, answer = made
    named = [line.split(":", 1) for line in answer.splitlines() if line.startswith(("table:", "plot:", "next:"))]
    paths = {kind: [Path(text.strip()) for found, text in named if found == kind] for kind in ("table", "plot")}
    assert {path.stem for path in paths["table"]} == set(DEFAULT_METHODS)
    assert all(path.is_file() for path in paths["table"])
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths["plot"])
    assert len(paths["plot"]) == 2
    (following,) = [text for kind, text in named if kind == "next"]
    program, *arguments = shlex.split(following)
    assert Path(program).name == "hwsearch"
    assert arguments == ["search", str(folder / "small.toml"), "--runs-dir", str(folder / "runs")]


def test_the_same_command_estimates_nothing_twice(again: Path) -> None:
    before = snapshot(sensitivities(again))
    answer = hwsearch("sensitivity", again / "small.toml", "--runs-dir", again / "runs", *ARGUMENTS)
    assert answer.code == 0
    assert "sensitivities:" not in answer.stderr
    after = snapshot(sensitivities(again))
    assert {name: content for name, content in after.items() if name != "lock"} == {
        name: content for name, content in before.items() if name != "lock"
    }


def test_recoverability_is_made_where_it_is_asked_for_and_the_other_tables_stay(again: Path) -> None:
    before = tables(again)
    command = ("sensitivity", again / "small.toml", "--method", "recoverability", "--runs-dir", again / "runs", *ARGUMENTS)
    answer = hwsearch(*command)
    assert answer.code == 0, answer.stderr
    after = tables(again)
    assert after == {**before, "recoverability": after["recoverability"]}
    wide = [row[2] for row in after["recoverability"]["value"]]
    assert wide == [row[2] for row in after["output-noise-ratio"]["value"]]
    assert [line for line in answer.stdout.splitlines() if line.startswith("kl,")] == []


ENDED = """
import os, sys
from hwsearch.cli import main
from hwsearch.process.interrupts import pause
from hwsearch.sensitivity.cache import ResultJournal

signal, results = int(sys.argv.pop(1)), int(sys.argv.pop(1))
append = ResultJournal.append

def append_and_end(journal, result):
    global results
    append(journal, result)
    results -= 1
    if results == 0:
        os.kill(os.getpid(), signal)
        pause(60)  # until it is heard, which is soon

ResultJournal.append = append_and_end
main()
"""
"""A command that sends itself a signal as soon as so many results are on the disk: from outside it might have ended by then."""


def test_a_command_that_was_ended_goes_on(made: tuple[Path, str], tmp_path: Path) -> None:
    file = write(tmp_path / "small.toml")
    for shared in ("data", "corpora"):
        shutil.copytree(made[0] / "runs" / shared, tmp_path / "runs" / shared)
    command = ["sensitivity", file, "--method", "curvature", "--runs-dir", tmp_path / "runs", *ARGUMENTS]
    journal = sensitivities(tmp_path) / JOBS_FILE
    for ended_by in (signal.SIGINT, signal.SIGKILL):
        ended = [sys.executable, "-c", ENDED, str(int(ended_by)), "1", *map(str, command)]
        process = subprocess.run(ended, capture_output=True, text=True, check=False)
        if ended_by is signal.SIGINT:
            assert process.returncode == 130, process.stderr
            assert process.stderr.endswith("hwsearch: interrupted; the same command goes on where it stopped\n")
        else:
            assert process.returncode == -signal.SIGKILL, process.stderr
    kept = journal.read_bytes()
    assert 2 <= kept.count(b"\n") < len(SITES) + 2
    assert tables(tmp_path) == {}
    assert hwsearch(*command).code == 0
    assert journal.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    assert len(journal.read_bytes().splitlines()) == len(SITES) + 2
    assert tables(tmp_path)["curvature"] == tables(made[0])["curvature"]


# What is refused


def test_an_unknown_method_is_answered_with_those_there_are(again: Path) -> None:
    answer = hwsearch("sensitivity", again / "small.toml", "--method", "hessian", "--runs-dir", again / "runs")
    assert refusal(answer).startswith("unknown method 'hessian'; wanted one of curvature, ")


def test_sensitivities_of_another_base_are_kept_and_not_used(again: Path) -> None:
    before = tables(again)
    separator, description = load_base(again / "small.safetensors")
    with torch.no_grad():
        separator.network.mask_head.bias.mul_(1.01)
    save_base(again / "small.safetensors", separator, description)
    answer = hwsearch("sensitivity", again / "small.toml", "--runs-dir", again / "runs", *ARGUMENTS)
    assert refusal(answer).startswith(f"{sensitivities(again)}: its sensitivities were made with another base; delete the folder")
    assert tables(again) == before


def test_changed_settings_under_cached_sensitivities_are_named(again: Path) -> None:
    file = write(again / "small.toml", ("max_probes = 8", "max_probes = 12"))
    answer = hwsearch("sensitivity", file, "--runs-dir", again / "runs", *ARGUMENTS)
    assert "another [sensitivity] (max_probes 8, now 12); delete the folder" in refusal(answer)


FREE = ', "blocks.*.expand.weight" = [2, 4, 8], "mask_head.weight" = [2, 4, 8], "features" = [4, 8] }'


@pytest.mark.parametrize(
    ("change", "method", "reason"),
    [
        (
            ("count = { train = 1, validation = 1 }", "count = { validation = 1 }"),
            "recoverability",
            "data.rooms.count: no 'train'; recoverability trains",
        ),
        ((FREE, " }"), "kl", "sensitivity: no site is free to take another width"),
        (('base = "small.safetensors"', 'base = "absent.safetensors"'), "kl", "absent.safetensors: no base there"),
    ],
)
def test_what_cannot_be_estimated_is_refused_before_any_work(
    tmp_path: Path, change: tuple[str, str], method: str, reason: str
) -> None:
    file = write(tmp_path / "small.toml", change)
    answer = hwsearch("sensitivity", file, "--method", method, "--runs-dir", tmp_path / "runs", *ARGUMENTS)
    assert reason in refusal(answer)
    assert not (tmp_path / "runs").exists()
