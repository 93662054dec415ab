"""The smallest experiment that the whole main job works on, and the command line called in this process."""

import contextlib
import io
import json
import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hwsearch.cli import main
from hwsearch.data.dataset import Mixture, load_mixture, open_dataset
from hwsearch.experiment import Split, load_experiment
from hwsearch.search.scoring import ScorerFactory
from hwsearch.workspace import Workspace

HWSEARCH = Path(sys.executable).with_name("hwsearch")
"""The installed command."""

TRIALS = 60

TINY = f"""\
name = "tiny"
seed = 3
base = "embedded"

[data]

[[data.corpora]]
kind = "espeak"
speakers = 8
utterances_per_speaker = 3
digit_strings = 0.5
splits = {{ validation = 0.5, test = 0.5 }}

[data.rooms]
count = {{ validation = 2, test = 2 }}
size_max_m = [6.0, 5.0, 3.0]
t60_max_s = 0.12

[data.mixtures]
count = {{ validation = 3, test = 3 }}
seconds = 1.5

[quantization]
calibration_mixtures = 2

[sensitivity]
mixtures = 1

[search]
priors = ["output-noise-ratio", "kl"]
trials = {TRIALS}
population = 8
validation_mixtures = 3
"""

SPOKEN = """\
[[data.corpora]]
kind = "espeak"
speakers = 8
utterances_per_speaker = 3
splits = { train = 0.4, validation = 0.3, test = 0.3 }

[data.rooms]
count = { train = 2, validation = 2, test = 2 }
size_max_m = [6.0, 5.0, 3.0]
t60_max_s = 0.12

[data.mixtures]
count = { validation = 2, test = 2 }
seconds = 1.5

"""
"""Speech, rooms and mixtures for an experiment that trains."""

TRAINED = """\
[separator]
n_fft = 128
hop_length = 64
B = 8
H = 8
X = 2
R = 1

[training]
epochs = 1
steps_per_epoch = 2
batch_size = 2
segment_seconds = 0.5

[quantization]
calibration_mixtures = 2

[sensitivity]
mixtures = 1

[qat]
finetune_steps = 2
examples = 4
batch_size = 2
segment_seconds = 0.5

"""
"""A network whose base and candidates are trained in seconds."""

PROGRESS = re.compile(
    r"(rooms|rooms and mixtures|training of the base|training mixtures|training examples|sensitivities|candidates, [a-z-]+"
    r"|shared network|test mixtures): \d+/\d+"
    r"|data: .*|starting Ray|epoch .*"
)


@dataclass(frozen=True)
class Tiny:
    """The main job's run folder, and what the command said."""

    file: Path
    runs: Path
    stdout: str
    stderr: str

    @property
    def folder(self) -> Path:
        return self.runs / "tiny"

    @property
    def model(self) -> Path:
        return self.folder / "export" / "model.onnx"

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.runs, load_experiment(self.file))

    @property
    def scorer_factory(self) -> ScorerFactory:
        workspace = self.workspace
        return ScorerFactory(
            workspace.experiment, workspace.base_path, workspace.data_folder, workspace.folder / "calibration.json"
        )

    def mixtures(self, split: Split) -> list[tuple[Mixture, NDArray[np.float32], NDArray[np.float32]]]:
        """Every mixture of a split with its sound [mics, samples] and its target [samples]."""
        folder = self.workspace.data_folder
        return [(mixture, *load_mixture(folder, mixture)) for mixture in open_dataset(folder, split)]

    def recording(self, number: int = 0) -> Path:
        """A test mixture's file."""
        folder = self.workspace.data_folder
        return folder / open_dataset(folder, Split.TEST)[number].mixture_path

    def events(self, event: str = "scored") -> list[dict[str, Any]]:
        """Lines of the record of one kind."""
        return read_events(self.folder, event)


@dataclass(frozen=True)
class Answer:
    """What a command gave."""

    code: int
    stdout: str
    stderr: str


def read_events(folder: Path, event: str = "scored") -> list[dict[str, Any]]:
    """Entries of a run folder's record of one kind, without their seals; half a line, as it is being written, is none."""
    lines = [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [{name: value for name, value in line.items() if name != "seal"} for line in lines if line["event"] == event]


def hwsearch(*arguments: object) -> Answer:
    """Run a command line in this process, through the entry point that is installed."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        patch.setattr(sys, "argv", ["hwsearch", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    return Answer(int(ended.value.code or 0), stdout.getvalue(), stderr.getvalue())


def refusal(answer: Answer) -> str:
    """The one line that a user's mistake gives, behind any progress; checks that there is nothing else."""
    assert answer.code == 2, answer
    assert answer.stdout == ""
    lines = [line for line in answer.stderr.splitlines() if not PROGRESS.fullmatch(line)]
    assert len(lines) == 1, answer.stderr
    assert lines[0].startswith("hwsearch: error: ")
    return lines[0].removeprefix("hwsearch: error: ")


def tiny_content() -> dict[str, Any]:
    """The tiny experiment as parsed TOML, to change."""
    return tomllib.loads(TINY)


def write_tiny(path: Path, *changes: tuple[str, str]) -> Path:
    """Write the tiny experiment with pieces of its text replaced."""
    text = TINY
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}
