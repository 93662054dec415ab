"""People's own speech, mixtures, rooms and noise, from the command line: from a folder to an exported model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from hwsearch.data.corpus import read_corpora
from hwsearch.data.dataset import open_dataset
from hwsearch.data.dynamic import DynamicMixtures
from hwsearch.data.source import Source
from hwsearch.data.training_examples import MixedExamples, RecordedExamples
from hwsearch.experiment import Split, load_experiment
from hwsearch.training.full_precision import training_examples
from hwsearch.training.pool import build_pool, load_pool
from hwsearch.workspace import Workspace

from .data.conftest import RATE, babble
from .data.mixtures import recorded
from .data.speakers import odd_speakers
from .data.test_noise import noise_folder
from .tiny import TRAINED, hwsearch, read_events, refusal

SMALL = f"""\
{TRAINED}[search]
priors = ["output-noise-ratio"]
trials = 12
seed_sizes = 8
validation_mixtures = 3
[export]
max_drop_db = 60.0
"""

FOLDER = """\
[[data.corpora]]
kind = "folder"
root = "my speech"
splits = { train = 0.8, validation = 0.1, test = 0.1 }
[data.rooms]
count = { train = 1, validation = 1, test = 1 }
size_max_m = [5.0, 5.0, 3.0]
t60_max_s = 0.1
[data.mixtures]
count = { validation = 3, test = 3 }
seconds = 1.0
"""

NOISE = '[data.noise]\nfolder = "noise"\nsnr_db = [5, 20]\n'
RECORDED = '[[data.recorded]]\npath = "mixtures.csv"\n'


def written(folder: Path, *parts: str, name: str = "own") -> Path:
    file = folder / f"{name}.toml"
    file.write_text("".join((f'name = "{name}"\n', *parts)))
    return file


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "own"
    odd_speakers(folder / "my speech")
    noise_folder(folder)
    recorded(folder, ("train", "validation", "test"), rate=16000)
    return folder


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    """A folder with speech, noise and mixtures."""
    return Path(shutil.copytree(made, tmp_path / "own"))


def test_a_folder_of_speakers_becomes_an_exported_model(own: Path) -> None:
    file = written(own, FOLDER, NOISE, SMALL)
    said = hwsearch("run", file, "--runs-dir", own / "runs", "--dry-run").stdout
    assert "recordings of 44100 Hz: resampled to 8000 Hz" in said
    assert f"data:     {own / 'noise'}: 11 noise files of one channel: the noise sounds from a place" in said
    assert not (own / "runs").exists()
    answer = hwsearch("run", file, "--runs-dir", own / "runs", "--workers", 0, "--processes", 1)
    assert answer.code == 0, answer.stderr
    assert answer.stderr.count("of 44100 Hz: resampled to 8000 Hz") == 1
    assert answer.stderr.count("of 2 channels: channel 0 is taken") == 1
    assert len(read_events(own / "runs" / "own")) == 1 + 12  # with full precision
    assert (own / "runs" / "own" / "export" / "model.onnx").is_file()
    test = next((own / "runs" / "data").glob("*/test/00000-mixture.wav"))
    model = own / "runs" / "own" / "export" / "model.onnx"
    assert hwsearch("separate", model, "--input", test, "--doa", 60, "--output", own / "out.wav").code == 0
    assert sf.info(own / "out.wav").frames == sf.info(test).frames


def test_mixtures_that_exist_are_trained_on_searched_on_and_evaluated(own: Path) -> None:
    file = written(own, RECORDED, SMALL)
    runs = own / "runs"
    answer = hwsearch("run", file, "--runs-dir", runs, "--workers", 0, "--processes", 1)
    assert answer.code == 0, answer.stderr
    assert "data: 9 recorded mixtures of 16000 Hz: resampled to 8000 Hz" in answer.stderr
    shutil.rmtree(own / "my speech")
    figures = own / "figures.json"
    answer = hwsearch("evaluate", runs / "own", "--candidate", 1, "--output", figures)
    assert answer.code == 0, answer.stderr
    content = json.loads(figures.read_text())
    assert [one["utterance"] for one in content["utterances"]] == [
        f"recorded:test/tär {n}.{s}" for n, s in enumerate(("wav", "flac", "flac"))
    ]
    assert {one["angle_deg"] for one in content["utterances"]} == {None}
    again = hwsearch("evaluate", file, "--runs-dir", runs, "--against", figures)
    assert again.code == 0, again.stderr
    # The run has its data by their content: other data are not those of its results.
    sf.write(own / "test" / "tär 0.wav", babble(1.5, 12345, 16000), 16000)
    line = refusal(hwsearch("evaluate", runs / "own", "--candidate", 1))
    assert "mixtures.csv: the list or its files have changed since they had the content" in line
    (runs / "own" / "base.safetensors").unlink()  # which is refused before
    line = refusal(hwsearch("run", file, "--runs-dir", runs))
    assert "an experiment 'own' that differs from the file given or from the recordings that it names" in line


def test_recorded_mixtures_come_before_made_ones(own: Path) -> None:
    file = written(own, FOLDER, RECORDED, "count = { validation = 2, test = 1 }\n")
    assert hwsearch("data", "build", file, "--runs-dir", own / "runs", "--processes", 1).code == 0
    workspace = Workspace(own / "runs", load_experiment(file))
    ids = [one.id for one in open_dataset(workspace.data_folder, Split.VALIDATION)]
    assert ids == [*(f"validation-recorded-{n:05d}" for n in range(2)), *(f"validation-{n:05d}" for n in range(3))]
    assert workspace.experiment.data.fixed_count(Split.TEST) == len(open_dataset(workspace.data_folder, Split.TEST)) == 4


@pytest.mark.parametrize(
    ("parts", "kind"),
    [((FOLDER, NOISE), DynamicMixtures), ((RECORDED,), RecordedExamples), ((FOLDER, RECORDED, NOISE), MixedExamples)],
)
def test_training_takes_made_mixtures_recorded_ones_or_both(own: Path, parts: tuple[str, ...], kind: type) -> None:
    file = written(own, *parts, SMALL)
    answer = hwsearch("train", file, "--runs-dir", own / "runs", "--processes", 1)
    assert answer.code == 0, answer.stderr
    workspace = Workspace(own / "runs", load_experiment(file))
    pool = load_pool(build_pool(workspace, 1, lambda done, total: None))
    assert len(pool) == 4
    speech = () if kind is RecordedExamples else None
    if speech is not None:
        examples = training_examples(workspace, Split.TRAIN, speech, 0.5, "pool", 1, lambda done, total: None)
        assert isinstance(examples, kind)
        wanted = examples.example(0, 2)
        np.testing.assert_allclose(pool.mixtures[2].float().numpy(), wanted.mixture, atol=1e-3)
        assert float(pool.doa_deg[2]) == wanted.doa_deg


def _replace_a_recording(speech: Source, split: Split, seed: int) -> None:
    first = speech.speech[split][0]
    path = first.root / first.paths[0]
    sf.write(path, babble(0.8, seed, sf.info(path).samplerate), sf.info(path).samplerate)


def test_a_base_knows_the_speech_that_it_was_trained_on(own: Path) -> None:
    file = written(own, FOLDER, SMALL)
    assert hwsearch("train", file, "--runs-dir", own / "runs", "--processes", 1).code == 0
    workspace = Workspace(own / "runs", load_experiment(file))
    speech = read_corpora(workspace.experiment.data, workspace.experiment.seed, workspace.corpora_folder)
    _replace_a_recording(speech, Split.TEST, 321)
    assert hwsearch("run", file, "--runs-dir", own / "runs", "--dry-run").code == 0
    before = workspace.base_path.read_bytes()
    _replace_a_recording(speech, Split.TRAIN, 322)
    for command in (("run", "--dry-run"), ("search",)):
        said = refusal(hwsearch(*command, file, "--runs-dir", own / "runs"))
        assert said.startswith(
            f"{workspace.base_path}: trained on other recordings than those that data.corpora holds now; wanted "
        )
    said = refusal(hwsearch("train", file, "--runs-dir", own / "runs", "--processes", 1))
    assert "checkpoint of another experiment, or of other recordings (" in said
    assert workspace.base_path.read_bytes() == before


COMMANDS = [("data", "build"), ("run", "--dry-run"), ("train",)]


def _listed(folder: Path, line: str) -> None:
    (folder / "mixtures.csv").write_text(f"mixture,target,doa_deg,split\n{line}\n")


WRONG: dict[str, tuple[tuple[str, ...], Callable[[Path], object], str]] = {
    "empty folder": (
        (FOLDER,),
        lambda own: shutil.rmtree(own / "my speech") or (own / "my speech").mkdir(),
        "no WAV or FLAC file",
    ),
    "no folder": ((FOLDER,), lambda own: shutil.rmtree(own / "my speech"), "no such folder; wanted a folder of WAV"),
    "one speaker": (
        (FOLDER,),
        lambda own: [shutil.rmtree(path) for path in (own / "my speech").iterdir() if path.is_dir() and path.name != "4711"],
        "speakers: 1; wanted at least 6, 2 in each of train, validation, test",
    ),
    "broken speech": (
        (FOLDER,),
        lambda own: [path.write_bytes(b"RIFF") for path in (own / "my speech").rglob("take*")],
        "not readable as audio",
    ),
    "no target": ((RECORDED,), lambda own: _listed(own, "test/mix 0.wav,,10,test"), "no target; 'hwsearch separate' needs none"),
    "NaN direction": (
        (RECORDED,),
        lambda own: _listed(own, "test/mix 0.wav,test/tär 0.wav,nan,test"),
        "doa_deg is 'nan'; wanted 0 to",
    ),
    "channels": (
        (RECORDED,),
        lambda own: sf.write(own / "train" / "mix 0.wav", np.ones((24000, 2)), 16000),
        "2 channels; data.array 'linear6' has 6 microphones",
    ),
    "lengths": ((RECORDED,), lambda own: sf.write(own / "train" / "tär 0.wav", babble(1.0, 1, 16000), 16000), "wanted as many"),
    "levels": ((FOLDER, NOISE.replace("[5, 20]", "[20, 5]")), lambda own: None, "snr_db [20.0, 5.0] must rise"),
    "no rooms": (
        (FOLDER.replace("count = { train = 1,", 'recorded = "rirs.csv"\ncount = {'),),
        lambda own: None,
        "rirs.csv: no such",
    ),
    "lhotse": ((FOLDER.replace('"folder"', '"lhotse"'),), lambda own: None, "no manifest of recordings in it"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_data_are_refused_in_one_line_by_every_command(own: Path, name: str) -> None:
    parts, change, message = WRONG[name]
    file = written(own, *parts, SMALL)
    change(own)
    for command in COMMANDS:
        line = refusal(hwsearch(*command, file, "--runs-dir", own / "runs"))
        assert message in line, command
        assert not (own / "runs").exists()


def test_a_mixture_whose_rate_is_right_needs_no_note(tmp_path: Path) -> None:
    recorded(tmp_path, rate=RATE)
    answer = hwsearch("data", "build", written(tmp_path, RECORDED), "--runs-dir", tmp_path / "runs", "--processes", 1)
    assert answer.code == 0
    assert "resampled" not in answer.stderr
