"""The part that is common to factories of work on a base: the files that the work reads, for whichever machine it runs on."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from hwsearch.data.dataset import dataset_files
from hwsearch.executor.portable import moved_paths
from hwsearch.experiment import Experiment, Split
from hwsearch.process.device import open_device
from hwsearch.separator.networks import code_files, with_code_below
from hwsearch.separator.prepare import PreparedBase, prepare_base, prepared_files
from hwsearch.separator.shared import SharedState, load_shared

if TYPE_CHECKING:
    from hwsearch.workspace import Workspace


@dataclass(frozen=True)
class BaseFactory:
    """A factory of work on a base. It is light, because it holds only paths; to travel they must be absolute.

    Attributes:
        experiment: the experiment.
        base: the base file.
        data_folder: the data set.
        calibration: the calibration's file, which must exist before the first worker starts.
        pool: training examples; None if no job trains.
        shared: the shared network; None if the experiment does not use it.
    """

    experiment: Experiment
    base: Path
    data_folder: Path
    calibration: Path
    pool: Path | None = None
    shared: Path | None = None

    @classmethod
    def of(cls, workspace: "Workspace", pool: Path | None) -> Self:
        """Make the factory for a workspace, with absolute paths."""
        paths = (workspace.base_path.resolve(), workspace.data_folder.resolve(), workspace.calibration_path.resolve())
        shared = workspace.shared_path.resolve() if workspace.experiment.search.uses_shared else None
        return cls(workspace.experiment, *paths, None if pool is None else pool.resolve(), shared)

    def prepared(self) -> PreparedBase:
        """Load the base and put it on the device of the experiment's workers.

        Raises:
            UserError: an unusable base or data set, or a device that this process does not see.
        """
        device = open_device(self.experiment.workers.device)
        return prepare_base(self.experiment, self.base, self.data_folder, self.calibration).on(device)

    def shared_state(self, base: PreparedBase) -> SharedState | None:
        """Load the shared network, if there is one.

        Raises:
            UserError: there is no such file, or it is that of another base.
        """
        return None if self.shared is None else load_shared(self.shared, base, {})

    def files(self) -> Iterable[Path]:
        """Files that the work reads, for workers that do not share a file system with the driver."""
        mixtures = dataset_files(self.data_folder, Split.VALIDATION)
        code = code_files(self.experiment.separator)
        others = (path for path in (self.pool, self.shared) if path is not None)
        return (*prepared_files(self.base, self.calibration), *code, *mixtures, *others)

    def below(self, root: Path) -> Self:
        """Return a copy of the factory that reads its files below another root."""
        return replace(moved_paths(self, root), experiment=with_code_below(self.experiment, root))
