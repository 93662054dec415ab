"""What a search would refuse, refused before hours go into it; and whether a run folder still holds what was searched."""

from collections.abc import Mapping
from contextlib import suppress

from hwsearch.data.build import check_data
from hwsearch.data.dataset import manifest_hash
from hwsearch.errors import UserError
from hwsearch.experiment import Experiment, ModuleConfig, Split
from hwsearch.export.folder import EXPORT_FOLDER, check_output
from hwsearch.extensions import QUALITY_METRICS
from hwsearch.files.reading import digest
from hwsearch.files.writing import check_writable
from hwsearch.metrics.evaluation import check_recogniser
from hwsearch.network.store import structure
from hwsearch.search.costs import CostBook, target_digests
from hwsearch.search.identity import search_digest
from hwsearch.search.nas.expected_cost import nas_cost
from hwsearch.search.plan import check_strategy, trainings, wants_nas
from hwsearch.search.record import RECORD_FILE, check_unlocked, has_begun, read_record
from hwsearch.search.space import build_space, ends_seeds, uniform_seeds
from hwsearch.sensitivity.recoverability import check_trainable
from hwsearch.separator.base import base_digest
from hwsearch.separator.untrained import untrained_network, untrained_sites
from hwsearch.training.full_precision import check_training
from hwsearch.workflow.training import load_float_base, needs_training
from hwsearch.workspace import Workspace, read_binding

BASE, VALIDATION = "base_sha256", "validation_sha256"
"""Names of the base and of the validation mixtures in a record's provenance."""

_CHANGED = "changed since the search in {}; wanted the one it was made with"


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
    costs = CostBook(experiment, space)
    for column in experiment.search.objectives:
        if column in QUALITY_METRICS:
            _check_metric(experiment, column)
        else:
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
        check_writable(workspace.plot_path)
        check_output(workspace.folder / EXPORT_FOLDER)
    check_data(experiment, workspace.data_folder, workspace.corpora_folder)


def _check_metric(experiment: Experiment, name: str) -> None:
    """Refuse a metric that counts words where nobody hears them."""
    if QUALITY_METRICS.load(name).words:
        if experiment.evaluation.recogniser == "none":
            raise UserError(f"search.objectives: '{name}' counts words; wanted an evaluation.recogniser other than 'none'")
        check_recogniser(experiment.evaluation)


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
