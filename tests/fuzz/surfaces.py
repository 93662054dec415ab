"""What hwsearch reads: where it stands on the bench, valid files to start from, and the commands that read them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hypothesis import strategies as st

from hw_models.target import BUILT_IN
from tests.fuzz.bases import bases
from tests.fuzz.bench import Bench, Case
from tests.fuzz.edits import csv_cells, foreign, raw_bytes, text_lines
from tests.fuzz.models import models
from tests.fuzz.sealed import sealed_array, sealed_json_values, sealed_lines
from tests.fuzz.sounds import recordings
from tests.fuzz.things import Thing
from tests.fuzz.values import json_lines, json_values, toml_values

EXPERIMENTS: Final = tuple(path.read_bytes() for path in sorted((Path(__file__).parents[2] / "experiments").glob("*.toml")))
TARGETS: Final = tuple(path.read_bytes() for path in sorted(Path(str(BUILT_IN)).glob("*.toml")))

READ_RUN: Final = (
    "status runs/tiny",
    "status runs/tiny --format json",
    "pareto runs/tiny",
    "pareto runs/tiny --all --format csv",
    "pareto runs/tiny --format json --where size_bytes<=120000 --sort size_bytes:desc",
    "pareto runs/tiny --plot out/front.png",
    "cost ethos-u55-128 --run runs/tiny --candidate 3",
    "finetune runs/tiny --candidate 3 --workers 0",
    "report runs/tiny --output out/report.html",
)
USE_RUN: Final = (
    "evaluate runs/tiny --candidate 3",
    "export runs/tiny --candidate 3 --output out/export",
    "search tiny.toml --runs-dir runs --dry-run",
)
SEARCH: Final = "search tiny.toml --runs-dir runs --workers 0 --processes 1"
SENSITIVITY: Final = "sensitivity tiny.toml --runs-dir runs --workers 0 --processes 1"
BUILD_TINY: Final = "data build tiny.toml --runs-dir runs --processes 1"
BUILD_CORPUS: Final = "data build corpus.toml --runs-dir corpus-runs --processes 1"
BUILD_LIBRI: Final = "data build libri.toml --runs-dir libri-runs --processes 1"
NEW: Final = "files/experiment.toml --runs-dir new-runs"
SEPARATE: Final = "--input files/recording.wav --doa 60 --output out/target.wav"
FIGURES: Final = "report runs/tiny --output out/report.html --figures files/figures.json"
CALIBRATE: Final = "--measurements files/measured.json --output out/new.toml"


@dataclass(frozen=True)
class Surface:
    """A kind of file.

    Attributes:
        path: where it stands on the bench; `*` for a name that is not known.
        edit: from a valid one's bytes to damaged ones.
        commands: that read it; the first accepts the one that stands there.
        more: other valid ones.
    """

    path: str
    edit: Callable[[bytes], st.SearchStrategy[Thing]]
    commands: tuple[str, ...]
    more: tuple[bytes, ...] = ()

    def cases(self, bench: Bench) -> st.SearchStrategy[Case]:
        """Damaged files of this kind, each with a command that reads it."""
        (path,) = bench.copy.glob(self.path)
        valid = (path.read_bytes(), *self.more)
        damaged, torn = (st.sampled_from(valid).flatmap(edit) for edit in (self.edit, raw_bytes))
        others = [other.read_bytes() for surface in SURFACES.values() for other in bench.copy.glob(surface.path)]
        kinds = (damaged, damaged, damaged, torn, foreign(others))
        things = st.integers(0, len(kinds) - 1).flatmap(kinds.__getitem__)
        commands = st.sampled_from([tuple(command.split(" ")) for command in self.commands])
        return st.builds(Case, commands, st.just(str(path.relative_to(bench.copy))), things)

    def case_of(self, bench: Bench, thing: Thing | None = None) -> Case:
        """The first command on a thing, or on the file that stands there."""
        (path,) = bench.copy.glob(self.path)
        return Case(tuple(self.commands[0].split(" ")), str(path.relative_to(bench.copy)), thing)


SURFACES: Final = {
    "experiment": Surface(
        "files/experiment.toml",
        toml_values,
        (
            f"run {NEW} --dry-run",
            f"run {NEW} --dry-run",
            f"search {NEW} --dry-run",
            f"search {NEW} --workers 0 --processes 1",
            f"train {NEW} --processes 1",
            f"train-shared {NEW} --processes 1",
            f"sensitivity {NEW} --workers 0 --processes 1",
            f"evaluate {NEW} --processes 1",
            f"data build {NEW} --processes 1",
            "cost cortex-m7-cmsis-nn --experiment files/experiment.toml",
        ),
        EXPERIMENTS,
    ),
    "target": Surface(
        "files/chip.toml",
        toml_values,
        (
            "cost files/chip.toml",
            "targets files/chip.toml",
            "cost files/chip.toml --streaming --weight-bits 4",
            f"calibrate files/chip.toml {CALIBRATE}",
        ),
        TARGETS,
    ),
    "measurements": Surface(
        "files/measured.json",
        json_values,
        (
            f"calibrate systolic-weight-stationary {CALIBRATE}",
            f"calibrate cortex-m7-cmsis-nn {CALIBRATE}",
            f"calibrate nvidia-t4 {CALIBRATE}",
        ),
    ),
    "figures": Surface("files/figures.json", json_values, ("evaluate runs/tiny --against files/figures.json", FIGURES)),
    "record": Surface("runs/tiny/record.jsonl", sealed_lines, (*READ_RUN, *USE_RUN, SEARCH)),
    "drivers": Surface("runs/tiny/drivers.jsonl", json_lines, (*READ_RUN[:2], SEARCH)),
    "lock": Surface("runs/tiny/search.lock", raw_bytes, ("status runs/tiny",)),
    "run": Surface("runs/tiny/experiment.json", sealed_json_values, (*READ_RUN, *USE_RUN)),
    "calibration": Surface("runs/tiny/calibration.json", sealed_json_values, USE_RUN),
    "sensitivities": Surface("runs/tiny/sensitivity/kl.json", sealed_json_values, (USE_RUN[-1], SEARCH, READ_RUN[-1])),
    "key of sensitivities": Surface("runs/tiny/sensitivity/key.json", sealed_json_values, (SEARCH, SENSITIVITY)),
    "journal of sensitivities": Surface("runs/tiny/sensitivity/jobs.jsonl", sealed_lines, (SEARCH, SENSITIVITY)),
    "base": Surface(
        "files/base.safetensors",
        bases,
        ("run own-base.toml --runs-dir new-runs --dry-run", "evaluate own-base.toml --runs-dir new-runs --processes 1"),
    ),
    "test manifest": Surface(
        "runs/data/*/test/manifest.jsonl",
        json_lines,
        ("evaluate runs/tiny --processes 1", "export runs/tiny --candidate 3 --output out/export", BUILD_TINY),
    ),
    "validation manifest": Surface("runs/data/*/validation/manifest.jsonl", json_lines, (*USE_RUN, BUILD_TINY)),
    "name of the data": Surface("runs/data/*/data.json", json_values, (BUILD_TINY, "evaluate runs/tiny")),
    "mixture": Surface("runs/data/*/test/00000-mixture.wav", recordings, ("evaluate runs/tiny --processes 1", BUILD_TINY)),
    "CSV corpus": Surface("corpus/corpus.csv", csv_cells, (BUILD_CORPUS, "run corpus.toml --runs-dir corpus-runs --dry-run")),
    "transcripts": Surface("libri/a/1/0-1.trans.txt", text_lines, (BUILD_LIBRI,)),
    "recording of a corpus": Surface("corpus/a-1.wav", recordings, (BUILD_CORPUS,)),
    "room": Surface("corpus-runs/data/*/rooms/test/room-00000.npy", sealed_array, (BUILD_CORPUS,)),
    "recording": Surface("files/recording.wav", recordings, (f"separate files/model.onnx {SEPARATE}",)),
    "model": Surface(
        "files/model.onnx", models, (f"separate files/model.onnx {SEPARATE}", "evaluate runs/tiny --model files/model.onnx")
    ),
}
"""Every kind of file, by name."""
