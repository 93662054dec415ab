"""A run folder opened for reading: its experiment, its candidates, and what they depend on."""

from dataclasses import dataclass
from pathlib import Path

from hwsearch.errors import UserError
from hwsearch.experiment import Fidelity
from hwsearch.results.candidates import CandidateTable, read_candidates
from hwsearch.search.trained_weights import TRAINED_FOLDER
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.trained import TrainedState, load_trained
from hwsearch.workspace import Workspace, open_run


@dataclass(frozen=True, eq=False)
class Run:
    """A run folder opened for reading.

    Attributes:
        workspace: the experiment and its paths.
        table: every scored candidate.
    """

    workspace: Workspace
    table: CandidateTable

    def row(self, candidate: int) -> int:
        """The table's row of a candidate.

        Raises:
            UserError: no such candidate, or one that failed.
        """
        if candidate in self.table.failures:
            raise UserError(
                f"{self.workspace.folder}: candidate {candidate} failed ({self.table.failures[candidate]}); "
                "wanted one that was scored"
            )
        rows = [row for row, number in enumerate(self.table.candidate.tolist()) if number == candidate]
        if not rows:
            raise UserError(
                f"{self.workspace.folder}: no candidate {candidate}; 'hwsearch pareto {self.workspace.folder}' lists them"
            )
        return rows[0]

    def allocation(self, candidate: int) -> BitAllocation:
        """The bit allocation of a candidate."""
        return self.table.allocation(self.row(candidate))


def open_workspace(folder: Path) -> Workspace:
    """The workspace that a run folder belongs to.

    Raises:
        UserError: not a run folder, or one that was renamed.
    """
    if folder.name in {"", ".."}:
        folder = folder.resolve()
    experiment = open_run(folder)
    workspace = Workspace(folder.parent, experiment)
    if workspace.folder.resolve() != folder.resolve():
        raise UserError(f"{folder}: renamed; wanted the name it was made with, '{experiment.name}'")
    return workspace


def read_run(folder: Path, fidelity: Fidelity | None = None) -> Run:
    """Open a run folder whose search has begun; its candidates as scored at a fidelity, by default the highest it used.

    Raises:
        UserError: not a run folder, a damaged record, or nothing scored at the fidelity asked for.
    """
    workspace = open_workspace(folder)
    return Run(workspace, read_candidates(folder, fidelity))


def trained_state(run: Run, prepared: PreparedBase, candidate: int) -> TrainedState | None:
    """The trained weights of a candidate at the fidelity of the run's table; None where it was not trained.

    Raises:
        UserError: no such candidate, or weights that are missing or damaged.
    """
    allocation = run.allocation(candidate)
    if candidate not in run.table.weights:
        return None
    return load_trained(run.workspace.folder / TRAINED_FOLDER / run.table.weights[candidate], prepared, allocation)
