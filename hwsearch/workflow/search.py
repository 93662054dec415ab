"""The search with all that comes before it: data, base, sensitivities and the differentiable search."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hwsearch.executor import Executor, check_workers, open_executor, ray_session
from hwsearch.search.costs import CostBook
from hwsearch.search.driver import Task, run_search
from hwsearch.search.driver_account import DriverAccount, Step, driver_account
from hwsearch.search.exact.problem import allocation_problem
from hwsearch.search.experiment_space import experiment_space
from hwsearch.search.identity import search_digest
from hwsearch.search.log import Line, describe, events_logged, search_log
from hwsearch.search.nas.expected_cost import nas_cost
from hwsearch.search.nas.result import NasResult
from hwsearch.search.nas.sweep import NAS_FILE, NasFactory, ensure_nas
from hwsearch.search.plan import make_plan, trainings, wanted_priors, wants_nas
from hwsearch.search.progress import SearchProgress, SearchSummary
from hwsearch.search.proposer import Plan
from hwsearch.search.record import FolderLock, has_begun, read_record
from hwsearch.search.scoring import ScorerFactory, ScoringJob, first_fidelity
from hwsearch.search.space import Point, SearchSpace
from hwsearch.search.structure_losses import STRUCTURE_FILE, StructureLosses, ensure_structure_losses
from hwsearch.search.studies.address import StorageAddress
from hwsearch.sensitivity.estimate import ensure
from hwsearch.separator.configuration import Configuration
from hwsearch.training.pool import build_pool
from hwsearch.workflow.caller import DEFAULTS, SILENT, Listener, Progress, Resources
from hwsearch.workflow.checks import check, claim, provenance, structure_key
from hwsearch.workflow.shared import ensure_shared
from hwsearch.workflow.training import build, needs_training, prepare, train
from hwsearch.workspace import Workspace

logger = logging.getLogger(__name__)


def check_storage(workspace: Workspace, storage: StorageAddress) -> int | None:
    """Check the storage of a shared study; return the number of trials in the study, or None if it does not exist yet.

    Raises:
        UserError: the server cannot be reached or refuses, its driver is not installed, or the study belongs to another search.
    """
    from hwsearch.search.studies.published_study import check_study

    header = read_record(workspace.folder)[0] if has_begun(workspace.folder) else None
    return check_study(storage, workspace.experiment.name, search_digest(workspace.experiment), header)


def search(
    workspace: Workspace,
    resources: Resources = DEFAULTS,
    listener: Listener = SILENT,
    storage: StorageAddress | None = None,
    *,
    may_train: bool = False,
) -> SearchSummary:
    """Build the data, train a missing base if that is allowed, and search. The same call continues an interrupted search.

    Args:
        workspace: the experiment and its folders.
        resources: processes and workers to use.
        listener: hears of every step.
        storage: the address of a shared study.
        may_train: whether to train a missing base.

    Raises:
        UserError: the search is refused before anything is done, or a step fails.
    """
    check_workers(resources.workers, resources.ray_address, workspace.experiment.workers)
    check(workspace, may_train=may_train)
    if storage is not None:
        check_storage(workspace, storage)
    with FolderLock(workspace.folder) as lock, driver_account(workspace.folder) as account:
        account.step(Step.DATA)
        build(workspace, resources.processes, Recorded(listener, account))
        if may_train and needs_training(workspace):
            account.step(Step.BASE)
            train(workspace, resources.processes, Recorded(listener, account))
        account.step(Step.PREPARATION)
        start = time.monotonic()
        with search_log(workspace.folder) as log, events_logged(log, listener.said):
            heard = Recorded(listener, account, log, workspace.experiment.search.objectives)
            summary = _search(workspace, resources, heard, storage, lock, start)
            account.end(summary.how, summary.reason)
            log(str(summary))
            if summary.shared is not None:
                log(summary.shared)
    return summary


class Recorded(Listener):
    """Passes on what it hears, and writes it to the driver's account and the search's log."""

    def __init__(
        self, listener: Listener, account: DriverAccount, log: Line | None = None, objectives: Sequence[str] = ()
    ) -> None:
        self._listener = listener
        self._account = account
        self._log = log
        self._objectives = objectives
        self._begun: set[str] = set()

    def advanced(self, what: str, done: int, total: int) -> None:
        if what in _STEPS:
            self._account.step(Step(what), done, total)
        if what not in self._begun and self._log is not None:
            self._log(f"{what}: {done}/{total}")
        self._begun.add(what)
        self._listener.advanced(what, done, total)

    def scored(self, progress: SearchProgress) -> None:
        self._account.step(Step.CANDIDATES)
        if self._log is not None:
            self._log(describe(progress, self._objectives))
        self._listener.scored(progress)

    def said(self, line: str) -> None:
        self._listener.said(line)


_STEPS = frozenset(step.value for step in Step)


def _search(
    workspace: Workspace,
    resources: Resources,
    listener: Listener,
    storage: StorageAddress | None,
    lock: FolderLock,
    start: float,
) -> SearchSummary:
    experiment = workspace.experiment
    claim(workspace)
    space = experiment_space(experiment)
    costs = CostBook(experiment, space)
    prepare(workspace, experiment.search.weight_bits)
    with ray_session(resources.workers, experiment.workers):
        wants_pool = bool(trainings(experiment))
        pool = build_pool(workspace, resources.processes, listener.progress(Step.POOL.value)) if wants_pool else None
        if experiment.search.uses_shared and pool is not None:
            ensure_shared(workspace, pool, listener)
        plan = _plan(workspace, space, costs, pool, resources, listener)
        with open_scorers(workspace, pool, resources) as executor:
            return run_search(
                Task(experiment, space, costs.charge, workspace.folder, provenance(workspace)),
                executor,
                plan,
                listener.scored,
                elapsed=lambda: time.monotonic() - start,
                storage=storage,
                lock=lock,
            )


def open_scorers(workspace: Workspace, pool: Path | None, resources: Resources) -> Executor[ScoringJob, Mapping[str, float]]:
    """Make the executor that scores candidates of an experiment, and trains them if there is a pool of training mixtures."""
    experiment = workspace.experiment
    return open_executor(
        ScorerFactory.of(workspace, pool),
        resources.workers,
        max_attempts=experiment.search.max_attempts,
        ray_address=resources.ray_address,
        each=experiment.workers,
    )


def _plan(
    workspace: Workspace, space: SearchSpace, costs: CostBook, pool: Path | None, resources: Resources, listener: Listener
) -> Plan:
    """Make the seeds and the proposer, after the sensitivities and the differentiable search that they need."""
    experiment = workspace.experiment
    # If no site is free, there is one candidate, and nothing to estimate.
    priors = wanted_priors(experiment) if space.free else ()
    tables = (
        ensure(
            workspace,
            list(priors),
            space.free_sites,
            pool=pool,
            workers=resources.workers,
            ray_address=resources.ray_address,
            progress=listener.progress(Step.SENSITIVITIES.value),
        )
        if priors
        else {}
    )
    structure = _structure_losses(workspace, space, pool, resources, listener.progress(Step.STRUCTURE.value))
    wants_points = wants_nas(experiment) and bool(space.free)
    nas = _nas_points(workspace, space, pool, resources, listener.progress(Step.NAS.value)) if wants_points else []
    plan = make_plan(experiment, space, costs, {prior: tables[prior] for prior in priors}, nas, structure)
    if experiment.search.trials < len(plan.seeds):
        logger.warning("search.trials is %d: of %d seeds the first ones are scored", experiment.search.trials, len(plan.seeds))
    return plan


def _structure_losses(
    workspace: Workspace, space: SearchSpace, pool: Path | None, resources: Resources, progress: Progress
) -> StructureLosses:
    """Measure what leaving each option out costs, if there are any."""
    if not space.options:
        return {}
    path, key = workspace.folder / STRUCTURE_FILE, structure_key(workspace)
    fidelity = first_fidelity(workspace.experiment)
    return ensure_structure_losses(space, fidelity, path, key, lambda: open_scorers(workspace, pool, resources), progress)


def _nas_points(
    workspace: Workspace, space: SearchSpace, pool: Path | None, resources: Resources, progress: Progress
) -> list[Point]:
    """Run the differentiable search; return its points without repeats, from the largest weight of the cost to the smallest."""
    if pool is None:
        raise ValueError("the differentiable search wants training mixtures")
    experiment = workspace.experiment
    zeros = {site: dict.fromkeys(widths, 0.0) for site, widths in space.free_sites}
    factory = NasFactory(
        experiment,
        workspace.base_path.resolve(),
        workspace.data_folder.resolve(),
        workspace.calibration_path.resolve(),
        pool.resolve(),
        problem=allocation_problem(space, zeros, ()),
        cost=nas_cost(experiment, space.widths),
    )

    def make_executor(factory: Callable[[], Callable[[float], NasResult]]) -> Executor[float, NasResult]:
        return open_executor(
            factory,
            resources.workers,
            max_attempts=experiment.search.max_attempts,
            ray_address=resources.ray_address,
            each=experiment.workers.one_core,
        )

    results = ensure_nas(factory, workspace.folder / NAS_FILE, make_executor, progress)
    found = [allocation for result in results for allocation in (result.allocation, result.halfway)]
    return list(dict.fromkeys(space.encode(Configuration(allocation)) for allocation in found))
