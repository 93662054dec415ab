"""The steps of the main job, each a function of an experiment's workspace: what the command line calls."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hwsearch.data.build import DataSet, build_data, check_data
from hwsearch.data.dataset import Mixture, load_mixture, manifest_hash, open_dataset
from hwsearch.errors import UserError
from hwsearch.evaluation import Audio, System, UtteranceScores, evaluate, make_recogniser
from hwsearch.experiment import Fidelity, ModuleConfig, Split
from hwsearch.export.folder import EXPORT_FOLDER, Format, check_output
from hwsearch.files import check_writable, digest
from hwsearch.front.candidates import DROP, CandidateTable, read_candidates
from hwsearch.front.query import Condition, query
from hwsearch.network.store import structure
from hwsearch.search.costing import make_cost, target_digests
from hwsearch.search.folder_lock import check_unlocked
from hwsearch.search.identity import search_digest
from hwsearch.search.known_costs import CostBook
from hwsearch.search.nas.expected_cost import nas_cost
from hwsearch.search.objectives import QUALITY
from hwsearch.search.record import RECORD_FILE, has_begun, read_record
from hwsearch.search.space import build_space, ends_seeds, uniform_seeds
from hwsearch.search.strategy import check_strategy, trainings, wants_nas
from hwsearch.search.trained_weights import TRAINED_FOLDER
from hwsearch.sensitivity.recoverability import check_trainable
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.base import base_digest, load_base
from hwsearch.separator.fast import FastNetwork
from hwsearch.separator.prepare import PreparedBase, load_checked_base, prepare_base
from hwsearch.separator.separator import MaskFunction, Separator
from hwsearch.separator.trained import TrainedState, load_trained, trained_mask_function
from hwsearch.separator.untrained import untrained_network, untrained_sites
from hwsearch.training.base import check_training, training_digest
from hwsearch.workspace import Workspace, open_run, read_binding

if TYPE_CHECKING:
    from hwsearch.export.verify import VerificationReport

VERIFICATION_MIXTURES = 4
"""Test mixtures on which an exported file is compared with the Brevitas network."""

PLOT_FILE = "front.png"
"""The picture of a search in its run folder."""

BASE, VALIDATION = "base_sha256", "validation_sha256"
"""Names of the base and of the validation mixtures in a record's provenance."""

_CHANGED = "changed since the search in {}; wanted the one it was made with"

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


def build(workspace: Workspace, processes: int, progress: Progress) -> DataSet:
    """Build what is missing of the experiment's data."""
    return build_data(workspace.experiment, workspace.data_folder, workspace.corpora_folder, processes, progress)


def prepare(workspace: Workspace, widths: Iterable[int] = ()) -> PreparedBase:
    """The experiment's base, folded and calibrated; the scales of its weights at some widths are kept with the calibration."""
    return prepare_base(workspace.experiment, workspace.base_path, workspace.data_folder, calibration_path(workspace), widths)


def provenance(workspace: Workspace) -> Mapping[str, str]:
    """What candidates depend on besides the experiment: hashes of base, validation mixtures and targets."""
    return {**_provenance_without_data(workspace), VALIDATION: manifest_hash(workspace.data_folder, Split.VALIDATION)}


def _provenance_without_data(workspace: Workspace) -> dict[str, str]:
    experiment = workspace.experiment
    targets = {f"target[{name}]": content for name, content in target_digests(experiment).items()}
    own = isinstance(experiment.separator, ModuleConfig)  # its code may change under its weights
    network = {"network": digest(structure(untrained_network(experiment).graph))} if own else {}
    return {BASE: base_digest(workspace.base_path), **network, **targets}


def check(workspace: Workspace, *, may_train: bool) -> None:
    """Refuse, before hours go into its data, what the search would refuse (`check_plan`); then bind the run folder.

    Raises:
        UserError: as `check_plan`, or a driver is searching there whose experiment is not this one to the letter: whoever looks
            at a search that runs sees what its driver was given.
    """
    check_plan(workspace, may_train=may_train)
    with suppress(UserError):  # where nothing is said, or nothing readable, it is said anew
        if read_binding(workspace.folder / "experiment.json") == workspace.experiment.model_dump(mode="json"):
            return
    check_unlocked(workspace.folder)
    workspace.describe()


def check_plan(workspace: Workspace, *, may_train: bool) -> None:
    """Refuse what the search would refuse; writes nothing.

    Args:
        workspace: of the experiment.
        may_train: whether this is the main job: it trains a base that is not there yet, draws the front and exports.

    Raises:
        UserError: an unusable run folder, base, target, pattern of sites, objective, limit or cost of the differentiable
            search, no mixtures to score on, or none to train on where something trains.
    """
    experiment = workspace.experiment
    space = build_space(experiment.search, untrained_sites(experiment))
    make_cost(experiment)
    costs = CostBook(experiment, space)
    for column in experiment.search.objectives:
        if column != QUALITY:
            costs.known(column)
    costs.check_limits(experiment.search.limits)
    least = len(uniform_seeds(space) + ends_seeds(space))
    if experiment.search.trials < least:
        raise UserError(
            f"search.trials is {experiment.search.trials}; uniform allocations and 'ends at 8 bits' alone, which are always "
            f"scored, are {least}: wanted at least as many"
        )
    if space.free:
        check_strategy(experiment)
    if wants_nas(experiment):
        nas_cost(experiment, space.widths)
    for why in trainings(experiment):
        check_trainable(experiment, why)
    if Split.VALIDATION not in experiment.data.mixtures.count:
        raise UserError(f"experiment '{experiment.name}' makes no validation mixtures; wanted data.mixtures.count.validation")
    if may_train and needs_training(workspace):
        check_training(workspace)
    else:
        load_float_base(workspace)
    check_claim(workspace)
    if may_train:
        check_writable(workspace.folder / PLOT_FILE)
        check_output(workspace.folder / EXPORT_FOLDER)
    check_data(experiment, workspace.data_folder, workspace.corpora_folder)


def needs_training(workspace: Workspace) -> bool:
    """Whether the experiment trains its own base and has not done so yet."""
    return workspace.experiment.base is None and not workspace.base_path.is_file()


def claim(workspace: Workspace) -> None:
    """Bind the run folder to the experiment, where `check_claim` allows it; the caller holds the folder."""
    check_claim(workspace)
    workspace.describe()


def check_claim(workspace: Workspace) -> None:
    """Refuse a run folder that cannot be bound to the experiment; writes nothing.

    Until a search has begun there, the folder follows the experiment file. From then on only that may change which no
    candidate depends on: how many are wanted, the export, the evaluation.

    Raises:
        UserError: a file is in the folder's place, its record is no file, or it holds the search of an experiment that differs.
    """
    for folder in (workspace.runs, workspace.folder):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file; wanted a folder for the run: another name, or another --runs-dir")
    record = workspace.folder / RECORD_FILE
    if record.exists() and not record.is_file():
        raise UserError(f"{record}: no file; wanted the record of a search, or nothing there")
    if not has_begun(workspace.folder):
        return
    # The record's own word: another command may have bound the folder while the first one still estimated sensitivities.
    header, _ = read_record(workspace.folder)
    if header.experiment != search_digest(workspace.experiment):
        held = f"the experiment '{header.name}'"
        if header.name == workspace.experiment.name:
            held = f"an experiment '{header.name}' that differs from the file given"
        raise UserError(
            f"{workspace.folder}: holds the search of {held}; wanted the same content, another name, or another --runs-dir"
        )
    before = {name: value for name, value in header.provenance.items() if name != VALIDATION}
    here = _provenance_without_data(workspace)
    for name in sorted(before.keys() | here.keys()):
        if before.get(name) != here.get(name):
            raise UserError(
                f"{workspace.folder}: its search was made with another {name}; wanted that one, another name, or another "
                "--runs-dir"
            )


def within_limits(limits: Mapping[str, float]) -> list[Condition]:
    """`search.limits` as conditions on candidates."""
    return [Condition(column, "<=", limit) for column, limit in limits.items()]


def choose(table: CandidateTable, max_drop_db: float, limits: Mapping[str, float]) -> int:
    """The smallest candidate of the front within `max_drop_db` of full precision, or else the best-sounding one.

    Only candidates within `limits` (largest values by column) are considered.

    Raises:
        UserError: no candidate is scored, or none within the limits.
    """
    if len(table) == 0:
        raise UserError("the search has scored no candidate; wanted at least one to choose from")
    front = query(table, within_limits(limits))
    if len(front) == 0:
        wanted = ", ".join(f"{column} <= {limit:.10g}" for column, limit in limits.items())
        raise UserError(
            f"none of {len(table)} candidates is within search.limits ({wanted}); wanted more trials or higher limits"
        )
    near = front.take(front.columns[DROP] <= max_drop_db)
    if len(near):
        return int(near.candidate[near.columns["size_bytes"].argmin()])
    return int(front.candidate[front.columns[QUALITY].argmax()])


def chosen_candidate(run: Run) -> int | None:
    """The candidate that the main job exports; None while none is within `search.limits`.

    It is chosen by the scores of the highest fidelity, whatever fidelity the run was opened at.
    """
    experiment = run.workspace.experiment
    table = read_candidates(run.workspace.folder)
    if len(query(table, within_limits(experiment.search.limits))) == 0:
        return None
    return choose(table, experiment.export.max_drop_db, experiment.search.limits)


def export(run: Run, candidate: int, graph_format: Format, output: Path) -> "VerificationReport":
    """Export a candidate, verified on test mixtures before the folder appears.

    Raises:
        UserError: an output that may not be written, no such candidate, a base or data other than the search's, or a file that
            does not compute what the Brevitas network does.
    """
    check_output(output)
    # Brevitas and the exporters take as long to load as all the rest; only this needs them.
    from hwsearch.export.candidate import export_candidate, export_trained

    workspace = run.workspace
    allocation = run.allocation(candidate)
    check_provenance(workspace)
    prepared = prepare(workspace)
    mixtures = [
        (torch.from_numpy(sound), mixture.target.doa_deg)
        for mixture in _evaluation_mixtures(workspace)[:VERIFICATION_MIXTURES]
        for sound, _ in [load_mixture(workspace.data_folder, mixture)]
    ]
    state = trained_state(run, prepared, candidate)
    if state is not None:
        return export_trained(prepared, state, run.table.fidelity, mixtures, output, graph_format)
    return export_candidate(prepared, allocation, mixtures, output, graph_format)


def check_provenance(workspace: Workspace) -> None:
    """Refuse a base or data that are not those the candidates were scored with.

    Raises:
        UserError: which of the two differs.
    """
    check_searched(workspace)
    header, _ = read_record(workspace.folder)
    if header.provenance.get(VALIDATION) != manifest_hash(workspace.data_folder, Split.VALIDATION):
        raise UserError(f"{workspace.data_folder}: {_CHANGED.format(workspace.folder)}")


def check_searched(workspace: Workspace) -> None:
    """Refuse an experiment or a base that are not those the candidates were scored with.

    Raises:
        UserError: which of the two differs.
    """
    header, _ = read_record(workspace.folder)
    if header.experiment != search_digest(workspace.experiment):
        raise UserError(
            f"{workspace.folder}: its candidates were scored with another experiment than the one given; wanted the run folder "
            "itself, or the file as it was"
        )
    if header.provenance.get(BASE) != base_digest(workspace.base_path):
        raise UserError(f"{workspace.base_path}: {_CHANGED.format(workspace.folder)}")


def float_system(separator: Separator) -> System:
    """The full-precision base as something to evaluate."""
    return _system(separator, separator.network)


def trained_state(run: Run, prepared: PreparedBase, candidate: int) -> TrainedState | None:
    """The trained weights of a candidate at the fidelity of the run's table; None where it was not trained.

    Raises:
        UserError: no such candidate, or weights that are missing or damaged.
    """
    allocation = run.allocation(candidate)
    if candidate not in run.table.weights:
        return None
    return load_trained(run.workspace.folder / TRAINED_FOLDER / run.table.weights[candidate], prepared, allocation)


def candidate_system(prepared: PreparedBase, allocation: BitAllocation, state: TrainedState | None = None) -> System:
    """A candidate as something to evaluate, post-training or as training has left it."""
    if state is not None:
        return _system(prepared.separator, trained_mask_function(prepared, state))
    network = FastNetwork(prepared.graph, prepared.calibration, prepared.quantization, scales=prepared.scales)
    return _system(prepared.separator, network.mask_function(allocation))


def load_float_base(workspace: Workspace) -> Separator:
    """The experiment's base in full precision.

    Raises:
        UserError: no base there, one that does not fit the experiment, or one trained with other settings.
    """
    experiment, path = workspace.experiment, workspace.base_path
    separator = load_checked_base(experiment, path)
    if experiment.base is None and load_base(path, experiment.separator)[1].made_by.get("training_digest") != training_digest(
        experiment
    ):
        raise UserError(
            f"{path}: trained by an experiment '{experiment.name}' whose data, separator or training differ from the file given; "
            "wanted the same content, another name, or another --runs-dir"
        )
    return separator


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


def calibration_path(workspace: Workspace) -> Path:
    """Where the activation ranges of the base are kept."""
    return workspace.folder / "calibration.json"
