"""A network of the user's own, from one Python file and one experiment file, through every step."""

import shutil
from pathlib import Path

import pytest

from tests.tiny import hwsearch, read_events, refusal

OWN = Path(__file__).parent / "own"


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished main job."""
    folder = tmp_path_factory.mktemp("own")
    for name in ("unet.py", "unet.toml"):
        shutil.copy(OWN / name, folder / name)
    answer = hwsearch("run", folder / "unet.toml", "--runs-dir", folder / "runs", "--workers", "0", "--processes", "1")
    assert answer.code == 0, answer.stderr
    return folder


def test_a_front_is_found_and_trained(unet: Path) -> None:
    scored = [event for event in read_events(unet / "runs" / "unet") if set(event["allocation"].values()) != {32}]
    assert len({event["candidate"] for event in scored}) == 24
    assert any(event.get("weights") for event in scored)
    sizes = {event["costs"]["size_bytes"] for event in scored if "size_bytes" in event["costs"]}
    assert len(sizes) > 5
    for target in ("cortex-m7-cmsis-nn", "ethos-u55-128", "x86-onnxruntime"):
        assert all(event["costs"][f"latency_ms[{target}]"] > 0 for event in scored)


@pytest.mark.parametrize("form", ["onnx", "qonnx"])
def test_a_candidate_is_exported_and_verified(unet: Path, tmp_path: Path, form: str) -> None:
    answer = hwsearch("export", unet / "runs" / "unet", "--candidate", "3", "--format", form, "--output", tmp_path / "out")
    assert answer.code == 0, answer.stderr


def test_an_exported_file_separates_without_the_code(unet: Path, tmp_path: Path) -> None:
    model = unet / "runs" / "unet" / "export" / "model.onnx"
    recording = min((unet / "runs" / "data").glob("*/test/*mixture*.wav"))
    (unet / "unet.py").rename(unet / "elsewhere.py")
    try:
        answer = hwsearch("separate", model, "--input", recording, "--doa", "30", "--output", tmp_path / "out.wav")
    finally:
        (unet / "elsewhere.py").rename(unet / "unet.py")
    assert answer.code == 0, answer.stderr
    assert (tmp_path / "out.wav").stat().st_size > 1000


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

BRANCH = """
import torch

class Branch(torch.nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.head = torch.nn.Conv1d(inputs, outputs, 1)

    def forward(self, x):
        return self.head(x) if x.sum() > 0 else -self.head(x)
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


@pytest.mark.parametrize(
    ("code", "name", "said"),
    [
        (LSTM, "Recurrent", "module 'recurrent' (LSTM)"),
        (BRANCH, "Branch", "branches that depend on the data"),
        (SHORT, "Short", "as many frames as came in"),
        ("def build(inputs, outputs):\n    return 3\n", "build", "gives a int; wanted a torch.nn.Module"),
        ("def build(inputs):\n    return 3\n", "build", "TypeError"),
        ("import no_such_package\n", "build", "no_such_package"),
        ("x = 1\n", "build", "has no function 'build'"),
    ],
)
def test_what_cannot_be_taken_is_refused_before_any_work(tmp_path: Path, code: str, name: str, said: str) -> None:
    (tmp_path / "net.py").write_text(code)
    text = (OWN / "unet.toml").read_text().replace("unet.py:build", f"net.py:{name}").replace("channels = 8", "")
    (tmp_path / "net.toml").write_text(text)
    for command in ("run", "train", "search"):
        line = refusal(hwsearch(command, tmp_path / "net.toml", "--runs-dir", tmp_path / "runs"))
        assert said in line
    assert not (tmp_path / "runs").exists()
