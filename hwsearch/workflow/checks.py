"""Checks before a search, and of whether a run folder still holds what was searched."""

from collections.abc import Mapping
from contextlib import suppress

from hwsearch.data.build import check_data
from hwsearch.data.dataset import manifest_hash
from hwsearch.errors import UserError
from hwsearch.experiment import Experiment, ModuleConfig, Split
from hwsearch.export.finn.limits import check_operations, check_slopes, check_widths
from hwsearch.export.folder import EXPORT_FOLDER, check_output
from hwsearch.extensions import QUALITY_METRICS
from hwsearch.files.reading import digest, file_digest
from hwsearch.files.writing import check_writable
from hwsearch.metrics.evaluation import check_recogniser
from hwsearch.network.structure import structure
from hwsearch.search.costs import CostBook, target_digests
from hwsearch.search.experiment_space import experiment_space
from hwsearch.search.identity import search_digest
from hwsearch.search.nas.expected_cost import nas_cost
from hwsearch.search.plan import check_strategy, trainings, wants_nas
from hwsearch.search.record import RECORD_FILE, check_unlocked, has_begun, read_record
from hwsearch.search.space import SearchSpace, ends_seeds, uniform_seeds
from hwsearch.sensitivity.recoverability import check_trainable
from hwsearch.separator.base import base_digest
from hwsearch.separator.traced import traced
from hwsearch.separator.untrained import untrained_network
from hwsearch.training.full_precision import check_training
from hwsearch.workflow.training import check_trained_on, load_float_base, needs_training
from hwsearch.workspace import Workspace, open_run

BASE, VALIDATION, SHARED = "base_sha256", "validation_sha256", "shared_sha256"
"""Keys of the base, of the validation mixtures and of the shared network in a record's provenance."""

_CHANGED = "changed since the search in {}; wanted the one it was made with"


def provenance(workspace: Workspace) -> Mapping[str, str]:
    """Hash what candidates depend on besides the experiment: the base, the validation mixtures and the targets."""
    return {**_provenance_without_data(workspace), VALIDATION: manifest_hash(workspace.data_folder, Split.VALIDATION)}


def structure_key(workspace: Workspace) -> str:
    """Hash what the losses of options of structure depend on."""
    return digest({"search": search_digest(workspace.experiment), "provenance": dict(provenance(workspace))})


def _provenance_without_data(workspace: Workspace) -> dict[str, str]:
    experiment = workspace.experiment
    targets = {f"target[{name}]": content for name, content in target_digests(experiment).items()}
    own = isinstance(experiment.separator, ModuleConfig)  # its code may change under its weights
    network = {"network": digest(structure(untrained_network(experiment).graph))} if own else {}
    shared = {SHARED: file_digest(workspace.shared_path)} if _has_shared(workspace) else {}
    return {BASE: base_digest(workspace.base_path), **network, **targets, **shared}


def _has_shared(workspace: Workspace) -> bool:
    return workspace.experiment.search.uses_shared and workspace.shared_path.is_file()


def check(workspace: Workspace, *, may_train: bool) -> None:
    """Check the plan of a search (`check_plan`), and bind the run folder to its experiment.

    Raises:
        UserError: `check_plan` refuses the search, or a driver searches there with an experiment that differs in any key. That
            experiment stays in the folder, for commands that read it meanwhile.
    """
    check_plan(workspace, may_train=may_train)
    with suppress(UserError):  # if there is none that can be read, it is written anew
        if open_run(workspace.folder) == workspace.experiment:
            return
    check_unlocked(workspace.folder)
    workspace.describe()


def check_plan(workspace: Workspace, *, may_train: bool) -> tuple[str, ...]:
    """Refuse a search that cannot succeed, before hours go into it. Nothing is written.

    Args:
        workspace: the experiment and its folders.
        may_train: whether this is the main job, which trains a missing base, draws the front, exports and reports.

    Returns:
        Lines for people about the data, such as which recordings are resampled.

    Raises:
        UserError: the run folder, base, a target, a pattern of sites, an objective, a limit or the cost of the differentiable
            search cannot be used, or there are no mixtures to score on or to train on. With `quantization.tied_adds`, also: FINN
            does not take the network or a width.
    """
    experiment = workspace.experiment
    space = experiment_space(experiment)
    _check_finn(experiment, space)
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
    if not experiment.data.fixed_count(Split.VALIDATION):
        raise UserError(f"experiment '{experiment.name}' makes no validation mixtures; wanted data.mixtures.count.validation")
    _check_base(workspace, may_train=may_train)
    check_claim(workspace)
    if may_train:
        for path in (workspace.plot_path, workspace.report_path):
            check_writable(path)
        check_output(workspace.folder / EXPORT_FOLDER)
    return check_data(experiment, workspace.data_folder, workspace.corpora_folder).notes


def _check_finn(experiment: Experiment, space: SearchSpace) -> None:
    """Refuse a network or widths that FINN does not take, if the scales of its sums are tied."""
    if experiment.quantization.tied_adds:
        network = untrained_network(experiment)
        check_operations(network.graph)
        check_widths(network.sites, dict(space.widths))


def _check_base(workspace: Workspace, *, may_train: bool) -> None:
    """Refuse a base that cannot be trained or loaded, was trained on other speech, or does not suit FINN if sums are tied."""
    if may_train and needs_training(workspace):
        check_training(workspace)
        return
    base = load_float_base(workspace)
    check_trained_on(workspace)
    if workspace.experiment.quantization.tied_adds:
        check_slopes(traced(base))


def _check_metric(experiment: Experiment, name: str) -> None:
    """Refuse a metric that counts words if no recogniser is set."""
    if QUALITY_METRICS.load(name).words:
        if experiment.evaluation.recogniser == "none":
            raise UserError(f"search.objectives: '{name}' counts words; wanted an evaluation.recogniser other than 'none'")
        check_recogniser(experiment.evaluation)


def claim(workspace: Workspace) -> None:
    """Bind the run folder, which the caller has locked, to the experiment if `check_claim` allows it."""
    check_claim(workspace)
    workspace.describe()


def check_claim(workspace: Workspace) -> None:
    """Refuse a run folder that cannot be bound to the experiment. Nothing is written.

    Until a search has begun there, any experiment may take the folder. Then only keys may change that no candidate depends on:
    the budgets, the export and the evaluation.

    Raises:
        UserError: the folder or its record is something else, or it holds the search of an experiment that differs.
    """
    for folder in (workspace.runs, workspace.folder):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file; wanted a folder for the run: another name, or another --runs-dir")
    record = workspace.folder / RECORD_FILE
    if record.exists() and not record.is_file():
        raise UserError(f"{record}: no file; wanted the record of a search, or nothing there")
    if not has_begun(workspace.folder):
        return
    # The record counts, not `experiment.json`, which another command may have written before the search began.
    header, _ = read_record(workspace.folder)
    if header.experiment != search_digest(workspace.experiment):
        held = f"the experiment '{header.name}'"
        if header.name == workspace.experiment.name:
            named = " or from the recordings that it names" if workspace.experiment.data.names_recordings else ""
            held = f"an experiment '{header.name}' that differs from the file given{named}"
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
    """Raise `UserError` if the experiment, the base or the data are not those that the candidates were scored with."""
    check_searched(workspace)
    header, _ = read_record(workspace.folder)
    if header.provenance.get(VALIDATION) != manifest_hash(workspace.data_folder, Split.VALIDATION):
        raise UserError(f"{workspace.data_folder}: {_CHANGED.format(workspace.folder)}")


def check_searched(workspace: Workspace) -> None:
    """Raise `UserError` if the experiment or the base is not the one that the candidates were scored with."""
    header, _ = read_record(workspace.folder)
    if header.experiment != search_digest(workspace.experiment):
        raise UserError(
            f"{workspace.folder}: its candidates were scored with another experiment than the one given; wanted the run folder "
            "itself, or the file as it was"
        )
    if header.provenance.get(BASE) != base_digest(workspace.base_path):
        raise UserError(f"{workspace.base_path}: {_CHANGED.format(workspace.folder)}")
    if _has_shared(workspace) and header.provenance.get(SHARED) != file_digest(workspace.shared_path):
        raise UserError(f"{workspace.shared_path}: {_CHANGED.format(workspace.folder)}")
