"""Run folders, opened for reading."""

from dataclasses import dataclass
from pathlib import Path

from hwsearch.errors import UserError
from hwsearch.experiment import Fidelity
from hwsearch.results.candidates import CandidateTable, read_candidates
from hwsearch.search.kept_networks import narrowed_base
from hwsearch.search.trained_weights import TRAINED_FOLDER
from hwsearch.separator.configuration import Configuration
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

    def configuration(self, candidate: int) -> Configuration:
        """Return the configuration of a candidate."""
        return self.table.configuration(self.row(candidate))


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


@dataclass(frozen=True, eq=False)
class OpenedCandidate:
    """A candidate with its weights.

    Attributes:
        base: what the candidate keeps of the base.
        configuration: of the candidate.
        state: its trained weights, its own or those of the shared network; None if it was not trained.
    """

    base: PreparedBase
    configuration: Configuration
    state: TrainedState | None


def open_candidate(run: Run, prepared: PreparedBase, candidate: int) -> OpenedCandidate:
    """Load a candidate with the weights that it has at the fidelity of the run.

    Raises:
        UserError: there is no such candidate, or its weights are missing or damaged.
    """
    configuration, fidelity = run.configuration(candidate), run.table.fidelity
    allocation, structure, shared = configuration.allocation, configuration.kept, None
    if fidelity.on_shared or (structure and run.workspace.experiment.search.uses_shared):
        shared = load_shared(run.workspace.shared_path, prepared, {})
    base, state = narrowed_base(prepared, shared, structure), None
    if fidelity.on_shared and shared is not None:
        state = (shared.narrowed(prepared, structure) if structure else shared).at(allocation)
    elif candidate in run.table.weights:
        state = load_trained(run.workspace.folder / TRAINED_FOLDER / run.table.weights[candidate], base, allocation)
    return OpenedCandidate(base, configuration, state)
