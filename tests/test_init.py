"""`hwsearch init`: an experiment that runs as it is, from a few choices, on the command line or asked for in a terminal."""

import os
import pty
import select
import subprocess
import time
import tomllib
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given
from hypothesis import strategies as st

from hw_models.target import built_in_targets
from hwsearch.data.corpus import read_corpora
from hwsearch.data.kinds import kind_of
from hwsearch.data.source import deal_speakers
from hwsearch.errors import UserError
from hwsearch.experiment import ArrayName, Split, load_experiment
from hwsearch.extensions import CORPORA
from hwsearch.workflow.checks import check_plan
from hwsearch.workflow.start import Size, Wishes, shares, write_first
from hwsearch.workspace import Workspace
from tests.tiny import HWSEARCH, hwsearch, refusal

NEAR = ("cortex-m4", "cortex-m7-c", "systolic-w", "systolic-o")
CHIPS = [name for name in built_in_targets() if not name.startswith(NEAR)][::2]
"""Every second one, without near relatives."""


def sounds(folder: Path, *names: str) -> Path:
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        sf.write(folder / name, 0.1 * rng.standard_normal(8000), 8000)
    return folder


def librispeech(folder: Path, speakers: int = 6) -> Path:
    return sounds(folder, *(f"{speaker}/7/{speaker}-7-000{take}.flac" for speaker in range(speakers) for take in range(2)))


# The kind of a corpus


def test_the_kind_is_found_by_looking(tmp_path: Path) -> None:
    assert kind_of(librispeech(tmp_path / "libri")) == "librispeech"
    assert kind_of(sounds(tmp_path / "digits", "3_ann_0.wav", "4_ann_0.wav")) == "fsdd"
    listed = tmp_path / "all.csv"
    listed.write_text("path,speaker\na.wav,ann\n")
    assert kind_of(listed) == "csv"


def test_a_kind_counts_once_it_is_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sounds(tmp_path / "mine", "ann/hello.wav", "ann/2024-01-05.wav", "bob/day 2/bye.wav")
    monkeypatch.setattr(CORPORA, "entries", {name: entry for name, entry in CORPORA.entries.items() if name != "folder"})
    with pytest.raises(UserError, match="no speech found in a form that is read; wanted one of these: 'csv'"):
        kind_of(folder)
    CORPORA.register("folder", "somewhere:reader", "a folder of folders")
    assert kind_of(folder) == "folder"


@pytest.mark.parametrize("name", ["nothing", "text.csv", "empty"])
def test_what_holds_no_speech_is_refused_in_a_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty").mkdir()
    said = refusal(hwsearch("init", "--speech", tmp_path / name, "--output", tmp_path / "x.toml"))
    assert said.startswith(f"{tmp_path / name}: no s")
    assert not (tmp_path / "x.toml").exists()


# What is written


@given(st.integers(6, 400), st.integers(0, 20))
def test_shares_give_every_split_two_speakers_and_training_most(speakers: int, seed: int) -> None:
    found = shares(speakers)
    dealt = list(deal_speakers(map(str, range(speakers)), found, seed).values())
    counts = {split: dealt.count(split) for split in Split}
    assert sum(counts.values()) == speakers
    assert min(counts.values()) >= 2
    assert counts[Split.TRAIN] == max(counts.values())
    assert sum(found.values()) <= 1 + 1e-9


@pytest.mark.parametrize("size", get_args(Size))
@pytest.mark.parametrize("array", get_args(ArrayName))
def test_each_size_and_array_gives_a_valid_file(tmp_path: Path, size: Size, array: ArrayName) -> None:
    output = tmp_path / "My File.toml"
    experiment = write_first(Wishes(output, None, array, "bitfusion", size))
    assert experiment == load_experiment(output)
    assert (experiment.name, experiment.data.array, experiment.search.targets) == ("my-file", array, ("bitfusion",))
    assert (experiment.base == "embedded") == (array == "linear6" and size in ("quick", "small"))
    lines = output.read_text().splitlines()
    assert max(map(len, lines)) <= 120
    assert sum("CHANGE FIRST" in line for line in lines) >= 3
    commented = [line.removeprefix("# ") for line in lines if line.startswith("# limits")]
    assert tomllib.loads("\n".join(commented))["limits"] == {"size_bytes": 200_000}


def test_sizes_rise(tmp_path: Path) -> None:
    found = [write_first(Wishes(tmp_path / f"{size}.toml", size=size)) for size in get_args(Size)]
    for key in ("B", "H"):
        quick, *values = [getattr(experiment.separator, key) for experiment in found]
        assert quick == values[0]
        assert values == sorted(set(values))
    # Where the base is shipped, as for both of the small networks, the shared training alone is left.
    steps = [experiment.shared.steps for experiment in found]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("chip", CHIPS)
def test_the_file_can_be_searched_for_every_chip(tmp_path: Path, chip: str) -> None:
    experiment = write_first(Wishes(tmp_path / "x.toml", chip=chip))
    check_plan(Workspace(tmp_path / "runs", experiment), may_train=True)


def test_recorded_speech_is_named_from_the_files_folder_and_dealt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    librispeech(tmp_path / "speech", 9)
    (tmp_path / "experiments").mkdir()
    monkeypatch.chdir(tmp_path)
    answer = hwsearch("init", "--speech", "speech", "--output", "experiments/mine.toml", "--array", "laptop2", "--size", "medium")
    assert (answer.code, answer.stderr) == (0, "")
    assert answer.stdout.splitlines()[0] == "written: experiments/mine.toml"
    assert 'root = "../speech"' in Path("experiments/mine.toml").read_text()
    experiment = load_experiment(Path("experiments/mine.toml"))
    assert experiment.data.corpora[0].kind == "librispeech"
    speech = read_corpora(experiment.data, experiment.seed, tmp_path / "corpora").speech
    assert all(len({utterance.speaker for utterance in speech[split]}) >= 2 for split in Split)


def test_the_file_runs_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    librispeech(tmp_path / "speech")
    monkeypatch.chdir(tmp_path)
    assert hwsearch("init", "--speech", "speech", "--array", "linear4", "--chip", "ethos-u55-128").code == 0
    answer = hwsearch("run", "experiment.toml", "--dry-run")
    assert answer.code == 0, answer.stderr
    assert "rung:     80 candidates at 'shared'" in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--output", "x.yaml"), "--output is x.yaml; wanted a name that ends in .toml"),
        (("--output", "there.toml"), "there.toml: is there already; wanted another --output, or no file there"),
        (("--chip", "pentium"), "target 'pentium': neither a file nor built in"),
        (("--array", "cube"), "Invalid value for '--array': 'cube' is not one of 'linear15'"),
        (("--size", "huge"), "Invalid value for '--size': 'huge' is not one of 'quick'"),
        (("--speech", "five"), "five: 5 speakers; wanted at least 6"),
        (("--speech", "broken"), "0-7-0000.flac: "),
    ],
)
def test_a_wrong_choice_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    librispeech(tmp_path / "five", 5)
    (librispeech(tmp_path / "broken") / "0" / "7" / "0-7-0000.flac").write_bytes(b"no sound")
    (tmp_path / "there.toml").write_text("mine")
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert said in refusal(hwsearch("init", *arguments))
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "there.toml").read_text() == "mine"


@pytest.mark.parametrize(("file", "name"), [("data.toml", "my-data"), ("Ä.toml", "my-experiment"), ("a b(2).TOML", "a-b-2")])
def test_the_run_is_named_after_the_file(tmp_path: Path, file: str, name: str) -> None:
    assert write_first(Wishes(tmp_path / file)).name == name


# In a terminal


class Terminal:
    """The command in a terminal, with someone who answers."""

    def __init__(self, *command: str, folder: Path) -> None:
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen([HWSEARCH, *command], stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder)
        os.close(theirs)
        self.shown = ""

    def until(self, word: str) -> None:
        """Read until a word is shown."""
        end = time.monotonic() + 120
        while word not in self.shown:
            assert time.monotonic() < end, self.shown
            if select.select([self.ours], [], [], 1)[0]:
                try:
                    self.shown += os.read(self.ours, 4096).decode()
                except OSError:  # the end
                    assert word in self.shown, self.shown

    def answer(self, question: str, text: str) -> None:
        self.until(question)
        self.shown = ""
        os.write(self.ours, f"{text}\n".encode())


def test_in_a_terminal_it_asks_for_what_no_option_says(tmp_path: Path) -> None:
    librispeech(tmp_path / "speech")
    terminal = Terminal("init", "--size", "small", folder=tmp_path)
    terminal.answer("nothing for synthesised speech", "nowhere")
    terminal.until("Error: nowhere: no such folder or file")
    terminal.answer("nothing for synthesised speech", "speech")
    terminal.answer("Microphone array", "linear8")
    terminal.answer("Chip", "")
    terminal.answer("File to write", "mine.toml")
    terminal.until("hwsearch run mine.toml")
    assert terminal.process.wait(60) == 0
    os.close(terminal.ours)
    experiment = load_experiment(tmp_path / "mine.toml")
    assert (experiment.data.array, experiment.search.targets) == ("linear8", ("cortex-m7-cmsis-nn",))
    assert experiment.data.corpora[0].root == tmp_path / "speech"
