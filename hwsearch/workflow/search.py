"""The search as a step of the main job: sensitivities, the differentiable search, candidates, promotions."""

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from hwsearch.executor import Executor, open_executor, ray_session
from hwsearch.pipeline import Progress, calibration_path, claim, prepare, provenance
from hwsearch.search.costing import make_cost
from hwsearch.search.driver import run_search
from hwsearch.search.folder_lock import FolderLock
from hwsearch.search.identity import search_digest
from hwsearch.search.known_costs import CostBook
from hwsearch.search.nas.expected_cost import nas_cost
from hwsearch.search.nas.result import NasResult
from hwsearch.search.nas.sweep import NAS_FILE, NasFactory, ensure_nas
from hwsearch.search.priors import prior_problem
from hwsearch.search.progress import SearchProgress, SearchSummary
from hwsearch.search.record import has_begun, read_record
from hwsearch.search.scoring import ScorerFactory
from hwsearch.search.space import Point, SearchSpace, build_space
from hwsearch.search.strategy import make_plan, trainings, wanted_priors, wants_nas
from hwsearch.search.studies.address import StorageAddress
from hwsearch.search.studies.shared_study import check_shared_study
from hwsearch.sensitivity.estimate import ensure
from hwsearch.sensitivity.table import Method
from hwsearch.separator.untrained import untrained_sites
from hwsearch.training.pool import build_pool
from hwsearch.workspace import Workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchReports:
    """Whom a search tells of its progress, step by step; each is called with what is done and all of it."""

    on_pool: Progress
    """Training mixtures, where a fidelity or a prior trains."""
    on_sensitivity: Progress
    """Effort of the sensitivities that were missing."""
    on_nas: Progress
    """Weights of the cost in the differentiable search."""
    on_candidates: Callable[[SearchProgress], None]


def check_storage(workspace: Workspace, storage: StorageAddress) -> int | None:
    """Refuse, before hours go into data and sensitivities, a storage that the search would refuse.

    Returns:
        Trials that the search's study there holds; None: there is no such study yet.

    Raises:
        UserError: the server cannot be reached or refuses, its driver is not installed, or the study there is another search's.
    """
    header = read_record(workspace.folder)[0] if has_begun(workspace.folder) else None
    return check_shared_study(storage, workspace.experiment.name, search_digest(workspace.experiment), header)


def search(
    workspace: Workspace,
    processes: int,
    workers: int,
    ray_address: str | None,
    reports: SearchReports,
    storage: StorageAddress | None = None,
    lock: FolderLock | None = None,
) -> SearchSummary:
    """Search, or go on searching: sensitivities and differentiable search first, then candidates.

    Args:
        workspace: of the experiment; its data are built and its base is there.
        processes: that make training mixtures.
        workers: on Ray; with none everything runs in this process, without Ray.
        ray_address: a cluster to join.
        reports: told of progress.
        storage: of a shared study.
        lock: of the run folder, where the caller has it.

    Raises:
        UserError: unusable base, data, sensitivities or record, or another experiment's folder.
    """
    start = time.monotonic()
    experiment = workspace.experiment
    with FolderLock(workspace.folder) if lock is None else nullcontext(lock) as held:
        claim(workspace)
        space = build_space(experiment.search, untrained_sites(experiment))
        costs = CostBook(experiment, space)
        prepare(workspace, experiment.search.weight_bits)
        with ray_session(workers, experiment.workers):
            # Where no site is free there is one candidate, and nothing to estimate.
            priors = wanted_priors(experiment) if space.free else ()
            pool = build_pool(workspace, processes, reports.on_pool) if trainings(experiment) else None
            tables = (
                ensure(
                    workspace,
                    [prior.value for prior in priors],
                    space.free_sites,
                    pool=pool,
                    workers=workers,
                    ray_address=ray_address,
                    progress=reports.on_sensitivity,
                )
                if priors
                else {}
            )
            wants_points = wants_nas(experiment) and bool(space.free)
            nas = _nas_points(workspace, space, pool, workers, ray_address, reports.on_nas) if wants_points else []
            plan = make_plan(experiment, space, costs, {prior: tables[Method(prior.value)] for prior in priors}, nas)
            if experiment.search.trials < len(plan.seeds):
                logger.warning(
                    "search.trials is %d: of %d seeds the first ones are scored", experiment.search.trials, len(plan.seeds)
                )
            factory = ScorerFactory(
                experiment,
                workspace.base_path.resolve(),
                workspace.data_folder.resolve(),
                calibration_path(workspace).resolve(),
                None if pool is None else pool.resolve(),
            )
            with open_executor(
                factory,
                workers,
                max_attempts=experiment.search.max_attempts,
                ray_address=ray_address,
                each=experiment.workers,
            ) as executor:
                return run_search(
                    experiment,
                    space,
                    executor,
                    make_cost(experiment),
                    workspace.folder,
                    reports.on_candidates,
                    seeds=plan.seeds,
                    proposer=plan.proposer,
                    provenance=provenance(workspace),
                    elapsed=lambda: time.monotonic() - start,
                    storage=storage,
                    lock=held,
                )


def _nas_points(
    workspace: Workspace, space: SearchSpace, pool: Path | None, workers: int, ray_address: str | None, progress: Progress
) -> list[Point]:
    """What the differentiable search finds, from the largest weight of the cost to the smallest, without repeats."""
    if pool is None:
        raise ValueError("the differentiable search wants training mixtures")
    experiment = workspace.experiment
    zeros = {site: dict.fromkeys(widths, 0.0) for site, widths in space.free_sites}
    factory = NasFactory(
        experiment,
        workspace.base_path.resolve(),
        workspace.data_folder.resolve(),
        calibration_path(workspace).resolve(),
        pool.resolve(),
        prior_problem(space, zeros, ()),
        nas_cost(experiment, space.widths),
    )

    def make_executor(factory: Callable[[], Callable[[float], NasResult]]) -> Executor[float, NasResult]:
        return open_executor(factory, workers, max_attempts=experiment.search.max_attempts, ray_address=ray_address)

    results = ensure_nas(factory, workspace.folder / NAS_FILE, make_executor, progress)
    found = [allocation for result in results for allocation in (result.allocation, result.halfway)]
    return list(dict.fromkeys(space.encode(allocation) for allocation in found))
