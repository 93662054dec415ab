"""A microphone array of the user's own, from the experiment file to a separated recording."""

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from hwsearch.data.arrays import microphone_array
from hwsearch.data.dataset import format_mixture, open_dataset, parse_mixture
from hwsearch.experiment import Split
from hwsearch.export.runtime import OnnxSeparator
from hwsearch.workflow.runs import open_workspace
from tests.tiny import SPOKEN, TRAINED, hwsearch, read_events, refusal

NETWORK = TRAINED.replace("hop_length", 'ipd = "cos_sin"\nhop_length')

EXPERIMENT = f"""\
name = "mine"
seed = 3

[data]
array = {{ positions_cm = [[0, 0], [6, 0], [3, 5, ]], pairs = [[0, 1], [2, 0]] }}

{SPOKEN}{NETWORK}[search]
priors = ["output-noise-ratio"]
trials = 14
validation_mixtures = 2
weight_bits = [4, 8]
targets = ["x86-onnxruntime"]

[export]
max_drop_db = 60.0

[evaluation]
recogniser = "none"
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.toml").write_text(EXPERIMENT)
    answer = hwsearch("run", folder / "mine.toml", "--runs-dir", folder / "runs", "--workers", "0", "--processes", "1")
    assert answer.code == 0, answer.stderr
    return folder / "runs" / "mine"


def test_the_data_hold_a_channel_for_each_microphone_and_say_where_they_are(run: Path) -> None:
    workspace = open_workspace(run)
    for mixture in open_dataset(workspace.data_folder, Split.TEST):
        assert mixture.microphones == sf.info(workspace.data_folder / mixture.mixture_path).channels == 3
        assert parse_mixture(format_mixture(mixture)) == mixture
        assert mixture.array == microphone_array(workspace.experiment.data.array).setting


def test_the_exported_model_knows_the_array_and_separates_a_recording(run: Path, tmp_path: Path) -> None:
    model = run / "export" / "model.onnx"
    separator = OnnxSeparator(model, 1)
    array = separator.description.microphones
    np.testing.assert_allclose(100 * (array.places - array.places[0]), [[0, 0, 0], [6, 0, 0], [3, 5, 0]], atol=1e-9)
    assert array.pairs == ((0, 1), (2, 0))
    recording = min(run.parent.glob("data/*/test/*mixture.wav"))
    answer = hwsearch("separate", model, "--input", recording, "--doa", 300, "--output", tmp_path / "out.wav")
    assert answer.code == 0, answer.stderr
    assert np.abs(sf.read(tmp_path / "out.wav")[0]).max() > 0
    said = refusal(hwsearch("separate", model, "--input", recording, "--doa", 360.5, "--output", tmp_path / "out.wav"))
    assert said == "direction 360.5 degrees; wanted 0 to 360"
    assert model.stat().st_size in {event["costs"]["size_bytes"] for event in read_events(run)}


@pytest.mark.parametrize(
    ("before", "after"), [("[6, 0]", "[7, 0]"), ("[2, 0]]", "[1, 2]]"), ("array = {", 'array = "linear4"  # {')]
)
def test_a_base_for_another_array_is_refused(run: Path, tmp_path: Path, before: str, after: str) -> None:
    file = tmp_path / "other.toml"
    content = EXPERIMENT.replace('name = "mine"', f'name = "other"\nbase = "{run / "base.safetensors"}"')
    file.write_text(content.replace(before, after))
    said = refusal(hwsearch("search", file, "--runs-dir", run.parent, "--dry-run"))
    assert "the base has array { positions_cm = [[0, 0], [6, 0], [3, 5]], pairs = [[0, 1], [2, 0]] }; the experiment" in said


def test_a_model_for_another_array_is_not_evaluated(run: Path, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text(EXPERIMENT.replace("[6, 0]", "[7, 0]"))
    answer = hwsearch("evaluate", tmp_path / "other.toml", "--runs-dir", run.parent, "--model", run / "export" / "model.onnx")
    assert "made for 8000 Hz and { positions_cm = [[0, 0], [6, 0], [3, 5]]" in answer.stderr
