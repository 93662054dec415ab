"""What of corpora, rooms and data sets is refused from the command line, and when."""

import json
import shutil
from pathlib import Path

import pytest
import soundfile as sf

from .data.conftest import RATE, babble
from .tiny import Tiny, hwsearch, refusal, write_tiny

COMMANDS = [
    ("data", "build"),
    ("run",),
    ("run", "--dry-run"),
    ("search", "--dry-run"),
    ("sensitivity",),
    ("evaluate",),
    ("train",),
]

ROOMS = "count = { validation = 2, test = 2 }"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An experiment on ten recorded speakers of a CSV manifest."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(20):
        sf.write(folder / f"{number}.wav", babble(0.6, number), RATE)
    (folder / "all.csv").write_text("path,speaker\n" + "".join(f"{number}.wav,s{number // 2}\n" for number in range(20)))
    return write_tiny(
        tmp_path / "tiny.toml",
        ('kind = "espeak"', 'kind = "csv"\nroot = "corpus/all.csv"'),
        ("splits = { validation = 0.5, test = 0.5 }", "splits = { train = 0.3, validation = 0.3, test = 0.4 }"),
        (ROOMS, "count = { train = 2, validation = 2, test = 2 }"),
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unusable_recording_is_refused_before_anything_is_made(file: Path, command: tuple[str, ...]) -> None:
    for path in (file.parent / "corpus").glob("*.wav"):
        path.write_bytes(b"")
    line = refusal(hwsearch(*command, file, "--runs-dir", file.parent / "runs"))
    assert line.endswith(".wav: the file is empty (0 bytes); wanted a recording")
    assert not (file.parent / "runs").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_rooms_that_take_too_long_are_refused_before_anything_is_made(file: Path, command: tuple[str, ...]) -> None:
    small = file.read_text().replace("size_max_m = [6.0, 5.0, 3.0]", "size_min_m = [2, 2, 2]\nsize_max_m = [2, 2, 2]")
    file.write_text(small.replace("t60_max_s = 0.12", "t60_max_s = 2.0"))
    line = refusal(hwsearch(*command, file, "--runs-dir", file.parent / "runs"))
    assert "data.rooms: a room of 2 x 2 x 2 m with a T60 of 2 s takes 152,583,911 images" in line
    assert not (file.parent / "runs").exists()


def test_a_number_that_is_none_in_the_test_manifest_is_named_with_its_line(file: Path) -> None:
    runs = file.parent / "runs"
    assert hwsearch("data", "build", file, "--runs-dir", runs, "--processes", 1).code == 0
    (manifest,) = runs.glob("data/*/test/manifest.jsonl")
    first, second, third = manifest.read_text().splitlines()
    content = json.loads(second)
    content["target"]["doa_deg"] = float("inf")
    manifest.write_text("\n".join([first, json.dumps(content).replace("Infinity", "1e999"), third]) + "\n")
    line = refusal(hwsearch("evaluate", file, "--runs-dir", runs))
    assert f"{manifest}:2: broken line in a manifest of mixtures (target.doa_deg: " in line


def test_a_search_is_judged_on_data_that_were_lost_and_built_again(copied: Tiny) -> None:
    for folder in ("data", "corpora"):
        shutil.rmtree(copied.runs / folder)
    assert hwsearch("evaluate", copied.folder, "--candidate", 1, "--processes", 1).code == 0
