"""The folders and files of an experiment."""

from dataclasses import dataclass
from pathlib import Path

from hwsearch.errors import UserError
from hwsearch.experiment import EXPERIMENT_FILE, Experiment, parse_experiment
from hwsearch.files.reading import read_json
from hwsearch.files.seals import read_sealed_cache, write_sealed_json
from hwsearch.separator.base import EMBEDDED_BASE


@dataclass(frozen=True)
class Workspace:
    """An experiment, and its paths below `runs`, the folder of all runs."""

    runs: Path
    experiment: Experiment

    @property
    def folder(self) -> Path:
        """The run folder, with record, study, plots and exports."""
        return self.runs / self.experiment.name

    @property
    def data_folder(self) -> Path:
        """The data set. Experiments with the same section `data` and the same seed share it."""
        return self.runs / "data" / self.experiment.data_digest()[:16]

    @property
    def corpora_folder(self) -> Path:
        """Synthesised speech. All experiments share it."""
        return self.runs / "corpora"

    @property
    def base_path(self) -> Path:
        """The base that the search quantizes."""
        if self.experiment.base == "embedded":
            return EMBEDDED_BASE
        if self.experiment.base is not None:
            return Path(self.experiment.base)
        return self.folder / "base.safetensors"

    @property
    def calibration_path(self) -> Path:
        """The activation ranges of the base, and the scales of its weights."""
        return self.folder / "calibration.json"

    @property
    def shared_path(self) -> Path:
        """The shared network (`hwsearch train-shared`)."""
        return self.folder / "shared-network.safetensors"

    @property
    def plot_path(self) -> Path:
        """The picture of the front that the main job draws."""
        return self.folder / "front.png"

    @property
    def report_path(self) -> Path:
        """The page that tells what the search found."""
        return self.folder / "report.html"

    def describe(self) -> None:
        """Write the experiment into the run folder."""
        write_sealed_json(self.folder / EXPERIMENT_FILE, self.experiment.model_dump(mode="json"))


def open_run(folder: Path) -> Experiment:
    """Read the experiment of a run folder.

    Raises:
        UserError: it is no run folder, or its `experiment.json` has changed since it was written.
    """
    path, what = folder / EXPERIMENT_FILE, "the experiment of a run"
    if not path.is_file():
        raise UserError(f"{folder}: not a run folder (no {EXPERIMENT_FILE} in it); wanted one made by 'hwsearch'")
    content = read_sealed_cache(path, what, "start the experiment's search once more and it is written anew")
    # Earlier versions wrote it without a digest. The record notices a change, too.
    return parse_experiment(read_json(path, what) if content is None else content, source=str(path))
