"""Where things lie: the folder of an experiment's run, its data, its base."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwsearch.data.rooms import rooms_folder
from hwsearch.errors import UserError
from hwsearch.experiment import Experiment, Split, parse_experiment
from hwsearch.files.reading import read_json
from hwsearch.files.seals import read_sealed_cache, write_sealed_json
from hwsearch.separator.base import EMBEDDED_BASE


@dataclass(frozen=True)
class Workspace:
    """The paths of one experiment below the folder of all runs.

    Attributes:
        runs: folder of all runs.
        experiment: what is run.
    """

    runs: Path
    experiment: Experiment

    @property
    def folder(self) -> Path:
        """The run folder: record, study, plots, exports."""
        return self.runs / self.experiment.name

    @property
    def data_folder(self) -> Path:
        """The data set; experiments with the same data section and seed share it."""
        return self.runs / "data" / self.experiment.data_digest()[:16]

    @property
    def corpora_folder(self) -> Path:
        """Synthesised speech, shared by all experiments."""
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
    def plot_path(self) -> Path:
        """The picture of the front that the main job draws."""
        return self.folder / "front.png"

    def rooms_folder(self, split: Split) -> Path:
        """A split's impulse responses."""
        return rooms_folder(self.data_folder, split)

    def describe(self) -> None:
        """Write into the run folder which experiment it belongs to."""
        write_sealed_json(self.folder / "experiment.json", self.experiment.model_dump(mode="json"))


def open_run(folder: Path) -> Experiment:
    """The experiment a run folder belongs to.

    Raises:
        UserError: not a run folder.
    """
    path = folder / "experiment.json"
    if not path.is_file():
        raise UserError(f"{folder}: not a run folder (no experiment.json in it); wanted one made by 'hwsearch'")
    return parse_experiment(read_binding(path), source=str(path))


def read_binding(path: Path) -> Any:
    """What a run folder's `experiment.json` holds.

    Earlier versions wrote it without a digest, and it is read nevertheless: the record knows the experiment as well.

    Raises:
        UserError: it is not there, or not as it was written.
    """
    what = "the experiment of a run"
    sealed = read_sealed_cache(path, what, "start the experiment's search once more and it is written anew")
    return read_json(path, what) if sealed is None else sealed
