"""The steps of the main job, each a function of an experiment's workspace: what the command line calls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hwsearch.data.build import DataSet, build_data
from hwsearch.data.dataset import Mixture, load_mixture, manifest_hash, open_dataset
from hwsearch.errors import UserError
from hwsearch.evaluation import Audio, System, UtteranceScores, evaluate, make_recogniser
from hwsearch.executor import Executor, LocalExecutor, RayExecutor
from hwsearch.experiment import Split
from hwsearch.export.candidate import Format, export_candidate
from hwsearch.export.verify import VerificationReport
from hwsearch.front.candidates import DROP, CandidateTable, read_candidates
from hwsearch.front.query import query
from hwsearch.search.costing import make_cost
from hwsearch.search.driver import SearchProgress, SearchSummary, run_search
from hwsearch.search.objectives import QUALITY
from hwsearch.search.record import read_record
from hwsearch.search.scoring import ScorerFactory
from hwsearch.search.space import build_space
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.base import base_digest
from hwsearch.separator.fast import FastNetwork
from hwsearch.separator.prepare import PreparedBase, load_checked_base, prepare_base
from hwsearch.separator.separator import MaskFunction, Separator
from hwsearch.workspace import Workspace, open_run

VERIFICATION_MIXTURES = 4
"""Test mixtures on which an exported file is compared with the Brevitas network."""

Progress = Callable[[int, int], None]


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
    experiment = open_run(folder)
    workspace = Workspace(folder.parent, experiment)
    if workspace.folder.resolve() != folder.resolve():
        raise UserError(f"{folder}: renamed; wanted the name it was made with, '{experiment.name}'")
    return workspace


def read_run(folder: Path) -> Run:
    """Open a run folder whose search has begun.

    Raises:
        UserError: not a run folder, or a damaged record.
    """
    workspace = open_workspace(folder)
    return Run(workspace, read_candidates(folder))


def build(workspace: Workspace, processes: int, progress: Progress) -> DataSet:
    """Build what is missing of the experiment's data."""
    return build_data(workspace.experiment, workspace.data_folder, workspace.corpora_folder, processes, progress)


def prepare(workspace: Workspace) -> PreparedBase:
    """The experiment's base, folded and calibrated."""
    return prepare_base(workspace.experiment, workspace.base_path, workspace.data_folder, workspace.folder / "calibration.json")


def provenance(workspace: Workspace) -> Mapping[str, str]:
    """What candidates depend on besides the experiment: hashes of base and validation mixtures."""
    return {
        "base_sha256": base_digest(workspace.base_path),
        "validation_sha256": manifest_hash(workspace.data_folder, Split.VALIDATION),
    }


def search(
    workspace: Workspace,
    workers: int,
    ray_address: str | None,
    on_progress: Callable[[SearchProgress], None],
) -> SearchSummary:
    """Search, or go on searching; with no workers candidates are scored in this process, without Ray.

    Raises:
        UserError: unusable base, data or record, or another experiment's folder.
    """
    experiment = workspace.experiment
    workspace.claim()
    space = build_space(experiment.search, experiment.separator)
    cost = make_cost(experiment)
    prepare(workspace)
    factory = ScorerFactory(
        experiment,
        workspace.base_path.resolve(),
        workspace.data_folder.resolve(),
        (workspace.folder / "calibration.json").resolve(),
    )
    with _executor(factory, workers, ray_address, experiment.search.max_attempts) as executor:
        return run_search(
            experiment,
            space,
            executor,
            cost,
            workspace.folder,
            on_progress,
            provenance=provenance(workspace),
        )


def choose(table: CandidateTable, max_drop_db: float) -> int:
    """The smallest candidate of the front within `max_drop_db` of full precision, or else the best-sounding one.

    Raises:
        UserError: no candidate is scored.
    """
    front = query(table)
    if len(front) == 0:
        raise UserError("the search has scored no candidate; wanted at least one to choose from")
    near = front.take(front.columns[DROP] <= max_drop_db)
    if len(near):
        return int(near.candidate[near.columns["size_bytes"].argmin()])
    return int(front.candidate[front.columns[QUALITY].argmax()])


def export(run: Run, candidate: int, graph_format: Format, output: Path) -> VerificationReport:
    """Export a candidate, verified on test mixtures before the folder appears.

    Raises:
        UserError: no such candidate, a base or data other than the search's, or a file that does not compute what
            the Brevitas network does.
    """
    workspace = run.workspace
    allocation = run.allocation(candidate)
    check_provenance(workspace)
    prepared = prepare(workspace)
    mixtures = [
        (torch.from_numpy(sound), mixture.target.doa_deg)
        for mixture in _evaluation_mixtures(workspace)[:VERIFICATION_MIXTURES]
        for sound, _ in [load_mixture(workspace.data_folder, mixture)]
    ]
    return export_candidate(
        prepared.separator,
        allocation,
        prepared.calibration,
        prepared.quantization,
        mixtures,
        output,
        graph_format,
        prepared.base_sha256,
    )


def check_provenance(workspace: Workspace) -> None:
    """Refuse a base or data that are not those the candidates were scored with.

    Raises:
        UserError: which of the two differs.
    """
    header, _ = read_record(workspace.folder)
    now = provenance(workspace)
    for name, path in (("base_sha256", workspace.base_path), ("validation_sha256", workspace.data_folder)):
        if header.provenance.get(name) != now[name]:
            raise UserError(f"{path}: changed since the search in {workspace.folder}; wanted the one it was made with")


def float_system(separator: Separator) -> System:
    """The full-precision base as something to evaluate."""
    return _system(separator, separator.network)


def candidate_system(prepared: PreparedBase, allocation: BitAllocation) -> System:
    """A candidate as something to evaluate."""
    network = FastNetwork(prepared.folded, prepared.calibration, prepared.quantization)
    return _system(prepared.separator, network.mask_function(allocation))


def load_float_base(workspace: Workspace) -> Separator:
    """The experiment's base in full precision."""
    return load_checked_base(workspace.experiment, workspace.base_path)


def evaluate_system(system: System, workspace: Workspace, progress: Progress) -> list[UtteranceScores]:
    """Score a system on the test mixtures.

    Raises:
        UserError: the data was not built, or the recogniser cannot be made.
    """
    mixtures = open_dataset(workspace.data_folder, Split.TEST)
    recogniser = make_recogniser(workspace.experiment.evaluation, mixtures)
    return evaluate(system, workspace.data_folder, mixtures, recogniser, progress)


def _system(separator: Separator, mask_function: MaskFunction) -> System:
    def separate(sound: Audio, doa_deg: float) -> Audio:
        with torch.no_grad():
            estimate = separator.separate(torch.from_numpy(sound)[None], torch.tensor([doa_deg]), mask_function)
        result: Audio = estimate[0].numpy()
        return result

    return separate


def _evaluation_mixtures(workspace: Workspace) -> Sequence[Mixture]:
    """Test mixtures, or those of validation where the experiment makes none."""
    split = Split.TEST if Split.TEST in workspace.experiment.data.mixtures.count else Split.VALIDATION
    return open_dataset(workspace.data_folder, split)


def _executor(
    factory: ScorerFactory, workers: int, ray_address: str | None, max_attempts: int
) -> Executor[BitAllocation, Mapping[str, float]]:
    if workers == 0:
        return LocalExecutor(factory)
    return RayExecutor(factory, workers, max_attempts=max_attempts, ray_address=ray_address)
