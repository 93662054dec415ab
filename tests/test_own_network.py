"""A network of the user's own, and Conv-TasNet, from an experiment file through every step."""

import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import soundfile

from hwsearch.executor.portable import contents, unpack
from hwsearch.experiment import Fidelity
from hwsearch.search.scoring import ScorerFactory, ScoringJob
from hwsearch.separator import untrained
from hwsearch.separator.configuration import Configuration
from hwsearch.workflow.runs import open_workspace
from tests.tiny import hwsearch, read_events, refusal

OWN = Path(__file__).parent / "own"


TARGETS = {
    "unet": ("cortex-m7-cmsis-nn", "ethos-u55-128", "x86-onnxruntime"),
    "conv_tasnet": ("cortex-m7-cmsis-nn", "x86-onnxruntime"),
}


@dataclass(frozen=True)
class Done:
    """A finished main job."""

    kind: str
    folder: Path

    @property
    def run(self) -> Path:
        return next(self.folder.glob("runs/*/record.jsonl")).parent


@pytest.fixture(scope="module", params=TARGETS)
def done(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Done:
    folder = tmp_path_factory.mktemp("own")
    for name in ("unet.py", f"{request.param}.toml"):
        shutil.copy(OWN / name, folder / name)
    file = folder / f"{request.param}.toml"
    answer = hwsearch("run", file, "--runs-dir", folder / "runs", "--workers", "0", "--processes", "1")
    assert answer.code == 0, answer.stderr
    return Done(request.param, folder)


def test_a_front_is_found_and_trained(done: Done) -> None:
    scored = [event for event in read_events(done.run) if set(event["allocation"].values()) != {32}]
    assert len({event["candidate"] for event in scored}) == 24
    assert any(event.get("weights") for event in scored)
    sizes = {event["costs"]["size_bytes"] for event in scored if "size_bytes" in event["costs"]}
    assert len(sizes) > 5
    assert {bits for event in scored for site, bits in event["allocation"].items() if "add" in site} >= {8, 16}
    for target in TARGETS[done.kind]:
        assert all(event["costs"][f"latency_ms[{target}]"] > 0 for event in scored)


@pytest.mark.parametrize("form", ["onnx", "qonnx"])
def test_a_candidate_is_exported_and_verified(done: Done, tmp_path: Path, form: str) -> None:
    answer = hwsearch("export", done.run, "--candidate", "3", "--format", form, "--output", tmp_path / "out")
    assert answer.code == 0, answer.stderr


def test_an_exported_file_separates_without_the_code(done: Done, tmp_path: Path) -> None:
    model, output = done.run / "export" / "model.onnx", tmp_path / "out.wav"
    recording = min(done.folder.glob("runs/data/*/test/*mixture*.wav"))
    (done.folder / "unet.py").rename(done.folder / "elsewhere.py")
    directed = ["--doa", "30"]
    arguments = ["separate", model, "--input", recording, "--output", output]
    try:
        wanted = hwsearch(*arguments, *(directed if done.kind == "unet" else []))
        other = hwsearch(*arguments, *([] if done.kind == "unet" else directed))
    finally:
        (done.folder / "elsewhere.py").rename(done.folder / "unet.py")
    assert wanted.code == 0, wanted.stderr
    if done.kind == "unet":
        assert (other.code, re.findall(r"at-(\d+)\.wav", other.stderr)) == (0, re.findall(r"(\d+) degrees", other.stderr))
    else:
        assert "direction" in refusal(other)
    made, given = soundfile.info(output), soundfile.info(recording)
    assert (made.frames, made.channels) == (given.frames, 1 if done.kind == "unet" else 2)


@pytest.mark.parametrize("subject", ["base", "candidate"])
def test_base_and_candidates_are_evaluated(done: Done, subject: str) -> None:
    chosen = ["--candidate", "3"] if subject == "candidate" else []
    answer = hwsearch("evaluate", done.run, *chosen)
    assert answer.code == 0, answer.stderr


OF_ONES_OWN = pytest.mark.parametrize("done", ["unet"], indirect=True)


@OF_ONES_OWN
def test_a_worker_needs_no_file_but_those_that_it_is_sent(done: Done, tmp_path: Path) -> None:
    workspace = open_workspace(done.run)
    event = next(event for event in read_events(done.run) if "improvement_db" in str(event) and not event.get("weights"))
    factory = ScorerFactory(
        workspace.experiment, workspace.base_path, workspace.data_folder, workspace.folder / "calibration.json"
    )
    unpack(contents(factory.files()), tmp_path)
    with edited(done, None):
        job = ScoringJob(Configuration.of(event["allocation"]), Fidelity(event["fidelity"]))
        assert factory.below(tmp_path)()(job) == event["metrics"]


@OF_ONES_OWN
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("self.head(y)", "0.9 * self.head(y)"),  # a number that the layer before it takes up
        ("torch.relu(self.enter", "torch.tanh(self.enter"),
        ("for _ in range(3)", "for _ in range(2)"),
    ],
)
def test_code_that_was_changed_behind_a_run_is_refused(done: Done, tmp_path: Path, before: str, after: str) -> None:
    code = (done.folder / "unet.py").read_text()
    assert before in code
    with edited(done, code.replace(before, after)):
        for arguments in (
            ["search", done.folder / "unet.toml", "--runs-dir", done.folder / "runs", "--workers", "0"],
            ["sensitivity", done.folder / "unet.toml", "--runs-dir", done.folder / "runs"],
            ["export", done.run, "--candidate", "3", "--output", tmp_path / "out"],
            ["evaluate", done.run, "--candidate", "3"],
            ["evaluate", done.run],
        ):
            line = refusal(hwsearch(*arguments))
            assert "base.safetensors" in line
    assert hwsearch("export", done.run, "--candidate", "3", "--output", tmp_path / "out").code == 0


@contextmanager
def edited(done: Done, code: str | None) -> Iterator[None]:
    """Other code in place of the run's, or none, as a new process finds it."""
    path = done.folder / "unet.py"
    original = path.read_text()

    def forget() -> None:
        for name in [name for name, module in sys.modules.items() if getattr(module, "__file__", None) == str(path)]:
            del sys.modules[name]
        untrained._network.cache_clear()

    path.unlink()
    if code is not None:
        path.write_text(code)
    forget()
    try:
        yield
    finally:
        path.write_text(original)
        forget()


def test_weights_of_ones_own_are_where_training_begins(tmp_path: Path) -> None:
    text = (OWN / "unet.toml").read_text().replace("arguments =", 'weights = "mine.safetensors"\narguments =')
    (tmp_path / "unet.toml").write_text(text)
    shutil.copy(OWN / "unet.py", tmp_path / "unet.py")
    for content, said in ((None, "no such file"), (b"x" * 100, "not the state of UNet")):
        if content is not None:
            (tmp_path / "mine.safetensors").write_bytes(content)
        line = refusal(hwsearch("train", tmp_path / "unet.toml", "--runs-dir", tmp_path / "runs"))
        assert "separator.weights" in line
        assert said in line


LSTM = """
import torch

class Recurrent(torch.nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.recurrent = torch.nn.LSTM(inputs, 8, batch_first=True)
        self.head = torch.nn.Linear(8, outputs)

    def forward(self, x):
        return self.head(self.recurrent(x.transpose(1, 2))[0]).transpose(1, 2)
"""

SHORT = """
import torch

class Short(torch.nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.head = torch.nn.Conv1d(inputs, outputs, 3)

    def forward(self, x):
        return self.head(x)
"""


WEIGHTLESS = """
import torch

class Weightless(torch.nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()

    def forward(self, x):
        return torch.relu(x)
"""


@pytest.mark.parametrize(
    ("command", "code", "name", "said"),
    [
        ("run", WEIGHTLESS, "Weightless", "has no layer with weights"),
        ("train", LSTM, "Recurrent", "module 'recurrent' (LSTM)"),
        ("search", SHORT, "Short", "as many frames as came in"),
        ("run", "def build(inputs, outputs):\n    return 3\n", "build", "gives a int; wanted a torch.nn.Module"),
        ("train", "def build(inputs):\n    return 3\n", "build", "TypeError"),
        ("search", "import no_such_package\n", "build", "no_such_package"),
        ("run", "x = 1\n", "build", "has no function 'build'"),
    ],
)
def test_what_cannot_be_taken_is_refused_before_any_work(tmp_path: Path, command: str, code: str, name: str, said: str) -> None:
    (tmp_path / "net.py").write_text(code)
    text = (OWN / "unet.toml").read_text().replace("unet.py:build", f"net.py:{name}").replace("channels = 8", "")
    (tmp_path / "net.toml").write_text(text)
    assert said in refusal(hwsearch(command, tmp_path / "net.toml", "--runs-dir", tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()
