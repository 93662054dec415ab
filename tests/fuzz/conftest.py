"""The bench: a tiny run and its data, a corpus of files, a recording, a model, and one of every other file, made once."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from hw_models.target import BUILT_IN
from hwsearch.separator.base import EMBEDDED_BASE
from tests.fuzz.bench import Bench
from tests.test_cli_hardware import measurements_of
from tests.tiny import Tiny, hwsearch, write_tiny

CORPUS = """\
name = "corpus"
base = "embedded"

[[data.corpora]]
kind = "csv"
root = "corpus/corpus.csv"
splits = { test = 1.0 }

[data.rooms]
count = { test = 1 }
t60_max_s = 0.1

[data.mixtures]
count = { test = 2 }
seconds = 0.5
"""

LIBRI = CORPUS.replace("corpus/corpus.csv", "libri").replace('"corpus"', '"libri"').replace('"csv"', '"librispeech"')


@pytest.fixture(scope="session")
def bench(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The bench, on which nothing else works."""
    folder = tmp_path_factory.mktemp("fuzz") / "bench"
    shutil.copytree(tiny.runs, folder / "runs")
    _write_corpus(folder)
    files = folder / "files"
    files.mkdir()
    write_tiny(folder / "tiny.toml")
    write_tiny(files / "experiment.toml")
    write_tiny(folder / "own-base.toml", ('base = "embedded"', 'base = "files/base.safetensors"'))
    shutil.copy(EMBEDDED_BASE, files / "base.safetensors")
    shutil.copy(tiny.model, files / "model.onnx")
    (files / "chip.toml").write_bytes((BUILT_IN / "bitfusion.toml").read_bytes())
    content = {"source": "a board", "measurements": measurements_of("systolic-weight-stationary", 2.0)}
    (files / "measured.json").write_text(json.dumps(content))
    evaluated = hwsearch("evaluate", folder / "runs" / "tiny", "--output", files / "figures.json", "--processes", 1)
    assert evaluated.code == 0, evaluated.stderr
    sound, rate = sf.read(tiny.recording(), dtype="float32")
    sf.write(files / "recording.wav", sound[:2000], rate, subtype="PCM_16")
    return Bench.around(folder)


def _write_corpus(folder: Path) -> None:
    """Four speakers with a recording each, as two kinds of corpora, and of each the room of the test split, but no mixtures."""
    (folder / "corpus").mkdir()
    lines = ["path,speaker,transcript"]
    for number, speaker in enumerate("abcd"):
        noise = np.random.default_rng(number).normal(scale=0.1, size=6000)
        sf.write(folder / "corpus" / f"{speaker}-1.wav", noise, 8000, subtype="PCM_16")
        lines.append(f"{speaker}-1.wav,{speaker},words of {speaker}")
    (folder / "corpus" / "corpus.csv").write_text("\n".join(lines) + "\n")
    for number, speaker in enumerate("abcd"):
        chapter = folder / "libri" / speaker / "1"
        chapter.mkdir(parents=True)
        shutil.copy(folder / "corpus" / f"{speaker}-1.wav", chapter / f"{number}-1-1.wav")
        (chapter / f"{number}-1.trans.txt").write_text(f"{number}-1-1 WORDS OF {speaker}\n")
    for name, text in (("corpus", CORPUS), ("libri", LIBRI)):
        (folder / f"{name}.toml").write_text(text)
        built = hwsearch("data", "build", folder / f"{name}.toml", "--runs-dir", folder / f"{name}-runs", "--processes", 1)
        assert built.code == 0, built.stderr
        (mixtures,) = (folder / f"{name}-runs" / "data").glob("*/test")
        shutil.rmtree(mixtures)
