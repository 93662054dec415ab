"""Run folders, opened for reading."""

from dataclasses import dataclass
from pathlib import Path

from hwsearch.errors import UserError
from hwsearch.experiment import Fidelity
from hwsearch.results.candidates import CandidateTable, read_candidates
from hwsearch.search.trained_weights import TRAINED_FOLDER
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.shared import load_shared
from hwsearch.separator.trained import TrainedState, load_trained
from hwsearch.workspace import Workspace, open_run


@dataclass(frozen=True, eq=False)
class Run:
    """A run folder that is open for reading: the experiment with its paths, and the scored candidates."""

    workspace: Workspace
    table: CandidateTable

    def row(self, candidate: int) -> int:
        """Return the table's row of a candidate; raise `UserError` if there is none, or if it failed."""
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
        """Return the bit allocation of a candidate."""
        return self.table.allocation(self.row(candidate))


def open_workspace(folder: Path) -> Workspace:
    """Return the workspace of a run folder; raise `UserError` if it is no run folder or was renamed."""
    if folder.name in {"", ".."}:
        folder = folder.resolve()
    experiment = open_run(folder)
    workspace = Workspace(folder.parent, experiment)
    if workspace.folder.resolve() != folder.resolve():
        raise UserError(f"{folder}: renamed; wanted the name it was made with, '{experiment.name}'")
    return workspace


def read_run(folder: Path, fidelity: Fidelity | None = None) -> Run:
    """Open a run folder with the scores of a fidelity, by default the highest that the search used.

    Raises:
        UserError: it is no run folder, its search has not begun, its record is damaged, or nothing is scored at the fidelity.
    """
    return Run(open_workspace(folder), read_candidates(folder, fidelity))


def trained_state(run: Run, prepared: PreparedBase, candidate: int) -> TrainedState | None:
    """Load the trained weights of a candidate at the fidelity of the run, its own or those of the shared network.

    None if it was not trained.

    Raises:
        UserError: there is no such candidate, or its weights are missing or damaged.
    """
    allocation = run.allocation(candidate)
    if run.table.fidelity.on_shared:
        return load_shared(run.workspace.shared_path, prepared, {}).at(allocation)
    if candidate not in run.table.weights:
        return None
    return load_trained(run.workspace.folder / TRAINED_FOLDER / run.table.weights[candidate], prepared, allocation)
