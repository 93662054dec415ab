"""A dry run: what a search would do and cost. It writes nothing into the folders of the search."""

import math
import os
import resource
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hwsearch.data.dataset import manifest_path
from hwsearch.executor import Outcome
from hwsearch.experiment import Experiment, Fidelity, Split
from hwsearch.extensions import QUALITY_METRICS, STRATEGIES
from hwsearch.process.device import is_there
from hwsearch.results.status import SearchStatus, read_tally
from hwsearch.search.costs import CostBook
from hwsearch.search.elastic_seeds import STRUCTURE
from hwsearch.search.experiment_space import experiment_space
from hwsearch.search.identity import search_header
from hwsearch.search.outcomes import InFlight, finite, settled
from hwsearch.search.plan import make_plan, trainings, wanted_priors, wants_nas
from hwsearch.search.proposer import Candidate
from hwsearch.search.record import Asked, has_begun, lock_holder, now
from hwsearch.search.scoring import ScorerFactory, ScoringJob, first_fidelity, later_rungs
from hwsearch.search.space import (
    ALWAYS_PROMOTED,
    SearchSpace,
    Seed,
    ends_seeds,
    uniform_seeds,
    uniform_weights,
)
from hwsearch.search.stopping import first_judged, stall_said
from hwsearch.search.structure_losses import STRUCTURE_FILE, StructureLosses, kept_structure_losses
from hwsearch.search.structure_seeds import structure_seeds
from hwsearch.search.studies.address import StorageAddress
from hwsearch.search.studies.mirror import StudyMirror
from hwsearch.sensitivity.estimate import kept_tables
from hwsearch.separator.prepare import cache_files
from hwsearch.training.pool import pool_path
from hwsearch.training.qat import JUDGED
from hwsearch.workflow.checks import check_plan, structure_key
from hwsearch.workflow.search import check_storage
from hwsearch.workflow.shared import uniform_structures
from hwsearch.workflow.training import needs_training
from hwsearch.workflow.training_time import time_training
from hwsearch.workspace import Workspace

_TIMED = 2
"""Number of candidates that are timed."""

RAY_BYTES = 0.6e9
"""Memory of Ray's own processes on a machine, without the dashboard."""


@dataclass(frozen=True)
class RungPlan:
    """The candidates that are scored at one fidelity."""

    fidelity: Fidelity
    candidates: int
    """Number of candidates. It is an upper bound at fidelities that candidates are promoted to."""
    done: int
    """Number of them that the record holds already."""
    seconds_each: float | None
    """Seconds for one of them on one worker; None if nothing could be measured."""


@dataclass(frozen=True)
class Measured:
    """What scoring costs on this machine."""

    start_seconds: float
    """Seconds in which a worker loads base and mixtures and quantizes the weights at all widths."""
    seconds_each: float
    """Seconds for a later candidate at the first fidelity."""
    step_seconds: float | None
    """Seconds for a step of the training of a candidate; None if the search trains nothing."""
    record_bytes: float
    """Bytes of a candidate in the record and its mirror."""
    memory_bytes: float
    """Largest memory of a process that scores."""
    shared_seconds: float = 0.0
    """Seconds for the training of the shared network; 0 if it is there or not wanted."""


@dataclass(frozen=True)
class DryRun:
    """What a search would do."""

    seeds: Mapping[str, int]
    """Number of seeds from each origin, in the order of scoring. Equal seeds are scored once."""
    exact: bool
    """Whether the seeds are known. Otherwise the numbers are upper bounds."""
    proposer: str
    rungs: tuple[RungPlan, ...]
    workers: int
    measured: Measured | None
    missing: tuple[str, ...]
    """What must be made first. The estimates do not cover it."""
    seconds: float | None
    """Seconds from the first candidate to the last; None if nothing could be measured."""
    disk_bytes: float | None
    """Bytes of the record, its mirror and the trained weights."""
    memory_bytes: float | None
    """Memory of all workers and Ray."""
    hours: float | None
    """`search.hours`."""
    scored_in_hours: tuple[int, ...]
    """Number of candidates at each rung that fit into the hours, those that are done included; empty if there are no hours, or
    nothing could be measured."""
    stall: str | None
    """When a stall of the hypervolume ends the search, in words; None if it never does."""
    storage: str | None
    """What the shared study gets, in words."""
    data: tuple[str, ...]
    """What is said of the data, such as which recordings are resampled."""


def dry_run(workspace: Workspace, workers: int, storage: StorageAddress | None = None, *, may_train: bool) -> DryRun:
    """Plan a search. If base and data exist, estimate its cost by scoring the full-precision network and some seeds.

    Args:
        workspace: the experiment and its folders, in which nothing changes.
        workers: number of workers on this machine; with 0 this process scores. Those beyond the number of processors do not
            count.
        storage: the address of a shared study, which is checked as the search does.
        may_train: whether the command would train a missing base.

    Raises:
        UserError: the search would be refused.
    """
    data = check_plan(workspace, may_train=may_train)
    held = None if storage is None else check_storage(workspace, storage)
    experiment = workspace.experiment
    space = experiment_space(experiment)
    seeds, exact = _seeds(workspace, space)
    missing = _missing(workspace, space, exact=exact)
    ready = not needs_training(workspace) and manifest_path(workspace.data_folder, Split.VALIDATION).is_file()
    measured = _measure(workspace, space) if ready and is_there(experiment.workers.device) else None
    status = _status(workspace)
    rungs = _rungs(experiment, seeds, measured, status)
    at_once = max(1, min(workers, os.cpu_count() or 1))
    todo = [(max(0, rung.candidates - rung.done), rung) for rung in rungs]
    return DryRun(
        seeds=dict(Counter(seed.strategy for seed in seeds)) if exact else _most_seeds(experiment, space, seeds),
        exact=exact,
        proposer=_proposer(experiment),
        rungs=rungs,
        workers=workers,
        measured=measured,
        missing=missing,
        seconds=_seconds(todo, measured, at_once),
        disk_bytes=None if measured is None else _disk(workspace, todo, measured),
        memory_bytes=None if measured is None else max(1, workers) * measured.memory_bytes + (RAY_BYTES if workers else 0),
        hours=experiment.search.hours,
        scored_in_hours=scored_in(experiment.search.hours, todo, measured, at_once),
        stall=_stall(experiment, len(seeds) if exact else None),
        storage=None if storage is None else _gets(f"study '{experiment.name}' in {storage}", held, status),
        data=data,
    )


def _status(workspace: Workspace) -> SearchStatus | None:
    """The state of the search; None if it has not begun."""
    if not has_begun(workspace.folder):
        return None
    tally = read_tally(workspace.folder, workspace.experiment)
    return tally.status(workspace.folder, lock_holder(workspace.folder), datetime.now(UTC))


def scored_in(
    hours: float | None, todo: Sequence[tuple[int, RungPlan]], measured: Measured | None, at_once: int
) -> tuple[int, ...]:
    """The number of candidates at each rung that fit into the hours on so many workers, those that are done included."""
    if hours is None or measured is None:
        return ()
    found: list[int] = []
    left = max(0.0, 3600 * hours - measured.shared_seconds - measured.start_seconds)
    for count, rung in todo:
        each = (rung.seconds_each or 0.0) / at_once
        room = count if left and each * count <= left else int(left / each) if each else 0
        found.append(rung.done + room)
        # A rung begins when the one before is done.
        left = left - each * count if room == count else 0.0
    return tuple(found)


def _stall(experiment: Experiment, seeds: int | None) -> str | None:
    """The rule of `search.stall_candidates`, and when it can end a search at the earliest if the number of seeds is known."""
    search = experiment.search
    if search.stall_candidates is None:
        return None
    rule = f"no more are asked for once {stall_said(search.stall_growth, search.stall_candidates)}"
    if not STRATEGIES.load(search.strategy).samples:
        seeds = 0  # the strategy is its seeds, and growth is judged among them
    if seeds is None:
        return f"{rule}, seeds not counted; then promotions follow"
    earliest = first_judged(search.stall_candidates, seeds)
    if earliest >= search.trials:
        return f"{rule}; its trials end it before, since that is looked at from candidate {earliest} on"
    return f"{rule}, after {earliest} at the earliest; then promotions follow"


def _gets(study: str, held: int | None, status: SearchStatus | None) -> str:
    results = 0 if status is None else sum(rung.scored + rung.failed for rung in status.rungs)
    behind = f"the {results} results of the record, then every one of the search" if results else "every result of the search"
    if held is None:
        return f"{study} is not there yet; it gets {behind}"
    return f"{study} holds {held} trials; it gets what it lacks of {behind}"


def _seeds(workspace: Workspace, space: SearchSpace) -> tuple[tuple[Seed, ...], bool]:
    """The seeds that are known, and whether these are all: seeds of priors follow from sensitivities."""
    experiment = workspace.experiment
    wanted = wanted_priors(experiment) if space.free else ()
    tables = {table.method: table for table in kept_tables(workspace, space.free_sites)}
    nas = wants_nas(experiment) and bool(space.free)
    losses = _structure_losses(workspace, space) if space.options else {}
    if nas or losses is None or any(prior not in tables for prior in wanted):
        some = {name: dict.fromkeys(values[:-1], 0.0) for name, values in space.options}  # their number depends on no loss
        return tuple(uniform_seeds(space) + ends_seeds(space) + structure_seeds(space, some)), False
    costs = CostBook(experiment, space)
    plan = make_plan(experiment, space, costs, {prior: tables[prior] for prior in wanted}, structure_losses=losses)
    return plan.seeds, True


def _structure_losses(workspace: Workspace, space: SearchSpace) -> StructureLosses | None:
    """Return the losses of options that an earlier search has measured; None if there are none."""
    path = workspace.folder / STRUCTURE_FILE
    return kept_structure_losses(space, path, structure_key(workspace)) if path.is_file() else None


def _most_seeds(experiment: Experiment, space: SearchSpace, known: tuple[Seed, ...]) -> dict[str, int]:
    found = dict(Counter(seed.strategy for seed in known))
    search, fronts, within = experiment.search, 1, 0
    if space.options:  # a front against every cost, and the optimum within the limits
        fronts = sum(column not in QUALITY_METRICS for column in search.objectives)
        within = int(bool(search.limits))
    if wants_nas(experiment):
        found["nas"] = 2 * len(experiment.nas.cost_weights)
    whole = not STRATEGIES.load(experiment.search.strategy).samples
    for prior in (STRUCTURE,) if space.options and not space.free else wanted_priors(experiment):
        found[prior] = search.trials - sum(found.values()) if whole else fronts * search.seed_sizes + within
    return found


def _proposer(experiment: Experiment) -> str:
    if not STRATEGIES.load(experiment.search.strategy).samples:
        return f"none: strategy '{experiment.search.strategy}' is its seeds alone"
    return f"sampler '{experiment.search.sampler}'"


def _missing(workspace: Workspace, space: SearchSpace, *, exact: bool) -> tuple[str, ...]:
    experiment = workspace.experiment
    found = []
    if not manifest_path(workspace.data_folder, Split.VALIDATION).is_file():
        found.append(f"rooms and mixtures in {workspace.data_folder}, which the command makes")
    if needs_training(workspace):
        found.append(f"the base {workspace.base_path}, which the command trains")
    elif trainings(experiment) and not pool_path(workspace).is_file():
        found.append("training mixtures, which the command makes")
    if experiment.search.uses_shared and not workspace.shared_path.is_file():
        found.append("the shared network, which the command trains")
    if not is_there(experiment.workers.device):
        found.append("a CUDA device on this machine, which scoring is measured on")
    if not exact:
        there = {table.method for table in kept_tables(workspace, space.free_sites)}
        priors = ", ".join(prior for prior in (wanted_priors(experiment) if space.free else ()) if prior not in there)
        first = [f"sensitivities ({priors})"] if priors else []
        if space.options and not (workspace.folder / STRUCTURE_FILE).is_file():
            first.append("the losses of what may be left out")
        if wants_nas(experiment):
            first.append("the differentiable search")
        found.append(f"{' and '.join(first)}, which the search begins with")
    return tuple(found)


def _rungs(
    experiment: Experiment, seeds: tuple[Seed, ...], measured: Measured | None, status: SearchStatus | None
) -> tuple[RungPlan, ...]:
    search, first = experiment.search, first_fidelity(experiment)
    done = {} if status is None else {rung.fidelity: rung.scored for rung in status.rungs}
    always = sum(seed.strategy in ALWAYS_PROMOTED for seed in seeds)
    each = None if measured is None else measured.seconds_each
    plans = [RungPlan(first, search.trials, done.get(first, 0), each)]
    for rung in later_rungs(experiment):
        most = min(rung.keep + always, plans[-1].candidates)
        seconds = _seconds_each(experiment, rung.fidelity, measured)
        plans.append(RungPlan(rung.fidelity, most, done.get(rung.fidelity, 0), seconds))
    return tuple(plans)


def _seconds_each(experiment: Experiment, fidelity: Fidelity, measured: Measured | None) -> float | None:
    """Seconds for a candidate at a fidelity after the first."""
    steps = experiment.qat.steps_at(fidelity)
    if measured is None:
        return None
    if fidelity.on_subset:
        return measured.seconds_each
    validation = experiment.data.fixed_count(Split.VALIDATION)
    scoring = measured.seconds_each * validation / min(experiment.search.validation_mixtures, validation)
    judged = len(JUDGED) if fidelity is Fidelity.FULL_QAT else 0
    return (1 + judged) * scoring + steps * (measured.step_seconds or 0.0)


def _seconds(todo: Sequence[tuple[int, RungPlan]], measured: Measured | None, at_once: int) -> float | None:
    """Seconds from the first candidate to the last; None if nothing could be measured."""
    if measured is None:
        return None
    scoring = sum(count * (rung.seconds_each or 0.0) for count, rung in todo)
    return measured.start_seconds + scoring / at_once if scoring else 0.0


def _measure(workspace: Workspace, space: SearchSpace) -> Measured:
    """Score the full-precision network and some seeds, and train a few steps if the search trains, in a temporary folder."""
    experiment = workspace.experiment
    # The shared network, which may be missing, is as fast.
    fidelity = Fidelity.SUBSET if first_fidelity(experiment).on_subset else Fidelity.POST_TRAINING
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calibration = folder / "calibration.json"
        for kept, copy in zip(cache_files(workspace.calibration_path), cache_files(calibration), strict=True):
            if kept.is_file():
                shutil.copyfile(kept, copy)
        start = time.perf_counter()
        score = ScorerFactory(experiment, workspace.base_path, workspace.data_folder, calibration)()
        points = [seed.point for seed in uniform_seeds(space)]
        # A worker's start includes what it does once: it loads mixtures, and quantizes each site's weights at each width.
        for configuration in (space.full_precision, *map(space.decode, points)):
            score(ScoringJob(configuration, fidelity))
        started = time.perf_counter() - start
        mixed = [seed.point for seed in ends_seeds(space)] or points
        jobs = [ScoringJob(space.decode(point), fidelity) for point in mixed[:_TIMED]]
        start = time.perf_counter()
        metrics = [score(job) for job in jobs][-1]
        each = (time.perf_counter() - start) / len(jobs)
        training = time_training(workspace, space, calibration) if trainings(experiment) else None
        size = _entry_bytes(experiment, space, jobs[-1], metrics, folder / "mirror")
    peak = 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if training is None:
        return Measured(started, each, None, size, peak)
    return Measured(started, each, training.candidate, size, peak, _shared_seconds(workspace, space, training.shared, each))


def _shared_seconds(workspace: Workspace, space: SearchSpace, step_seconds: float, score_seconds: float) -> float:
    """Seconds for the training of the shared network, and for its reports of the quality of uniform allocations."""
    if not workspace.experiment.search.uses_shared or workspace.shared_path.is_file():
        return 0.0
    config = workspace.experiment.shared
    reports = 1 + math.ceil(config.steps / config.report_steps)
    reported = len(uniform_weights(space)) + len(uniform_structures(dict(space.options)))
    return config.steps * step_seconds + reports * reported * score_seconds


def _entry_bytes(
    experiment: Experiment, space: SearchSpace, job: ScoringJob, metrics: Mapping[str, float], mirror: Path
) -> float:
    """Bytes of a scored candidate in the record and in its mirror, which is written for this."""
    candidate = Candidate(1, space.encode(job.configuration), "uniform", {})
    charged = CostBook(experiment, space).charge([job.configuration])[0]
    costs = {name: finite(value) for name, value in charged.items()}
    outcome = Outcome(1, metrics, None, attempts=1, seconds=1.0, worker="worker:1000000")
    asked = Asked(candidate=1, strategy=candidate.strategy, point=candidate.point, state={}, time=now())
    scored = settled(InFlight(candidate, job), outcome, costs, (), experiment.seed, None)
    header = search_header(experiment, space, {})
    sizes = []
    for finished in ((), ((scored, candidate.point),)):
        StudyMirror(mirror, header, finished)
        sizes.append(mirror.stat().st_size)
    return len(asked.model_dump_json()) + len(scored.model_dump_json()) + 2 + sizes[1] - sizes[0]


def _disk(workspace: Workspace, todo: Sequence[tuple[int, RungPlan]], measured: Measured) -> float:
    """Bytes of the entries of all rungs, and of trained weights, which are as large as the base."""
    trained = sum(count for count, rung in todo if rung.fidelity.trained)
    return sum(count for count, _ in todo) * measured.record_bytes + trained * workspace.base_path.stat().st_size
