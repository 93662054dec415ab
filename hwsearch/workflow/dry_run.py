"""What a search would run and cost, found out without writing anything into its folders."""

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
from hwsearch.experiment import Experiment, Fidelity, Split
from hwsearch.extensions import STRATEGIES
from hwsearch.process.device import is_there, open_device
from hwsearch.results.status import SearchStatus, read_tally
from hwsearch.search.costs import CostBook
from hwsearch.search.identity import search_header
from hwsearch.search.outcomes import finite
from hwsearch.search.plan import make_plan, trainings, wanted_priors, wants_nas
from hwsearch.search.proposer import Candidate, Result
from hwsearch.search.record import Asked, Scored, has_begun, lock_holder, now
from hwsearch.search.scoring import ScorerFactory, ScoringJob, first_fidelity
from hwsearch.search.space import ALWAYS_PROMOTED, Seed, build_space, ends_seeds, uniform_seeds
from hwsearch.search.stopping import first_judged, stall_said
from hwsearch.search.studies.address import StorageAddress
from hwsearch.search.studies.mirror import StudyMirror
from hwsearch.sensitivity.estimate import kept_tables
from hwsearch.separator.allocation import uniform
from hwsearch.separator.prepare import prepare_base
from hwsearch.separator.untrained import untrained_sites
from hwsearch.training.pool import load_pool, pool_path
from hwsearch.training.qat import train_quantized
from hwsearch.workflow.checks import check_plan
from hwsearch.workflow.search import check_storage
from hwsearch.workflow.training import needs_training
from hwsearch.workspace import Workspace

_TRAINED_STEPS = 4
"""Steps of training that are timed; the first, which is slower, is left out."""

_TIMED = 2
"""Candidates that are timed, whose weights are quantized by then."""

RAY_BYTES = 0.6e9
"""Ray's own processes on a machine, without its dashboard."""


@dataclass(frozen=True)
class RungPlan:
    """Candidates that a rung scores."""

    fidelity: Fidelity
    candidates: int
    """At most, of rungs that are promoted to."""
    done: int
    """How many of these the record holds already."""
    seconds_each: float | None
    """On one worker; None where it could not be measured."""


@dataclass(frozen=True)
class Measured:
    """What scoring on this machine costs."""

    start_seconds: float
    """Until a worker has base and mixtures loaded, and the weights quantized at all widths."""
    seconds_each: float
    """A candidate at the first fidelity, later."""
    step_seconds: float | None
    """A step of training; None where no training mixtures are there or none are needed."""
    record_bytes: float
    """A candidate in the record and its mirror."""
    memory_bytes: float
    """A process that scores, at its largest."""


@dataclass(frozen=True)
class DryRun:
    """What a search would do."""

    seeds: Mapping[str, int]
    """How many seeds come from each origin, in the order of scoring. A rung scores equal seeds once."""
    exact: bool
    """Whether the seeds are known; else those of priors are the most there can be."""
    proposer: str
    rungs: tuple[RungPlan, ...]
    workers: int
    measured: Measured | None
    missing: tuple[str, ...]
    """What is not there yet and comes first; its time is in no estimate."""
    seconds: float | None
    """From the first candidate to the last; None where a rung could not be measured."""
    disk_bytes: float | None
    """Record, mirror and trained weights."""
    memory_bytes: float | None
    """All workers, and Ray."""
    hours: float | None
    """`search.hours`."""
    scored_in_hours: tuple[int, ...]
    """Candidates that the hours have room for at each rung, those done among them; fewer rungs than there are where one that
    comes next could not be measured."""
    stall: str | None
    """The rule by which the hypervolume's stall ends the search."""
    storage: str | None
    """What the shared study gets."""


def dry_run(workspace: Workspace, workers: int, storage: StorageAddress | None = None, *, may_train: bool) -> DryRun:
    """Plan a search and measure what it would cost, by scoring full precision and some seeds where base and data are there.

    Args:
        workspace: of the experiment; nothing in it changes.
        workers: on this machine; with none this process scores. More workers than processors count as so many.
        storage: of a shared study; whether it can be had is looked at as the search does.
        may_train: whether a base that is not there yet would be trained.

    Raises:
        UserError: what the search would refuse.
    """
    check_plan(workspace, may_train=may_train)
    held = None if storage is None else check_storage(workspace, storage)
    experiment = workspace.experiment
    seeds, exact = _seeds(workspace)
    missing = _missing(workspace, exact=exact)
    ready = not needs_training(workspace) and manifest_path(workspace.data_folder, Split.VALIDATION).is_file()
    measured = _measure(workspace) if ready and is_there(experiment.workers.device) else None
    now_there = _status(workspace)
    rungs = _rungs(workspace, seeds, measured, now_there)
    at_once = max(1, min(workers, os.cpu_count() or 1))
    todo = [(max(0, rung.candidates - rung.done), rung) for rung in rungs]
    unknown = measured is None or any(rung.seconds_each is None for count, rung in todo if count)
    return DryRun(
        seeds=dict(Counter(seed.strategy for seed in seeds)) if exact else _most_seeds(experiment, seeds),
        exact=exact,
        proposer=_proposer(experiment),
        rungs=rungs,
        workers=workers,
        measured=measured,
        missing=missing,
        seconds=None if measured is None or unknown else _seconds(todo, measured, at_once),
        disk_bytes=None if measured is None else _disk(workspace, todo, measured),
        memory_bytes=None if measured is None else max(1, workers) * measured.memory_bytes + (RAY_BYTES if workers else 0),
        hours=experiment.search.hours,
        scored_in_hours=scored_in(experiment.search.hours, todo, measured, at_once),
        stall=_stall(experiment, len(seeds) if exact else None),
        storage=None if storage is None else _gets(f"study '{experiment.name}' in {storage}", held, now_there),
    )


def _status(workspace: Workspace) -> SearchStatus | None:
    """Where the search stands; None: it has not begun."""
    if not has_begun(workspace.folder):
        return None
    tally = read_tally(workspace.folder, workspace.experiment)
    return tally.status(workspace.folder, lock_holder(workspace.folder), datetime.now(UTC))


def scored_in(
    hours: float | None, todo: Sequence[tuple[int, RungPlan]], measured: Measured | None, at_once: int
) -> tuple[int, ...]:
    """Candidates that hours have room for at each rung on so many workers, those done among them.

    Ends before the first rung that the hours come to and that could not be measured.
    """
    if hours is None or measured is None:
        return ()
    found: list[int] = []
    left = max(0.0, 3600 * hours - measured.start_seconds)
    for count, rung in todo:
        if count and left and rung.seconds_each is None:
            break
        each = (rung.seconds_each or 0.0) / at_once
        room = count if left and each * count <= left else int(left / each) if each else 0
        found.append(rung.done + room)
        # Rungs follow one another: what the hours end is the last one.
        left = left - each * count if room == count else 0.0
    return tuple(found)


def _stall(experiment: Experiment, seeds: int | None) -> str | None:
    """The rule, and when it ends a search of so many seeds at the earliest; None: they are not known yet."""
    search = experiment.search
    if search.stall_candidates is None:
        return None
    rule = f"no more are asked for once {stall_said(search.stall_growth, search.stall_candidates)}"
    if not STRATEGIES.load(search.strategy).samples:
        seeds = 0  # growth is judged among them
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


def _seeds(workspace: Workspace) -> tuple[tuple[Seed, ...], bool]:
    """The seeds, and whether they are all of them: those of priors need sensitivities."""
    experiment = workspace.experiment
    space = build_space(experiment.search, untrained_sites(experiment))
    wanted = wanted_priors(experiment) if space.free else ()
    tables = {table.method: table for table in kept_tables(workspace, space.free_sites)}
    nas = wants_nas(experiment) and bool(space.free)
    if nas or any(prior not in tables for prior in wanted):
        return tuple(uniform_seeds(space) + ends_seeds(space)), False
    plan = make_plan(experiment, space, CostBook(experiment, space), {prior: tables[prior] for prior in wanted})
    return plan.seeds, True


def _most_seeds(experiment: Experiment, known: tuple[Seed, ...]) -> dict[str, int]:
    found = dict(Counter(seed.strategy for seed in known))
    if wants_nas(experiment):
        found["nas"] = 2 * len(experiment.nas.cost_weights)
    whole = not STRATEGIES.load(experiment.search.strategy).samples
    for prior in wanted_priors(experiment):
        found[prior] = experiment.search.trials - sum(found.values()) if whole else experiment.search.seed_sizes
    return found


def _proposer(experiment: Experiment) -> str:
    if not STRATEGIES.load(experiment.search.strategy).samples:
        return f"none: strategy '{experiment.search.strategy}' is its seeds alone"
    return f"sampler '{experiment.search.sampler}'"


def _missing(workspace: Workspace, *, exact: bool) -> tuple[str, ...]:
    experiment = workspace.experiment
    found = []
    if not manifest_path(workspace.data_folder, Split.VALIDATION).is_file():
        found.append(f"rooms and mixtures in {workspace.data_folder}, which the command makes")
    if needs_training(workspace):
        found.append(f"the base {workspace.base_path}, which the command trains")
    elif trainings(experiment) and not pool_path(workspace).is_file():
        found.append("training mixtures, which the command makes")
    if not is_there(experiment.workers.device):
        found.append("a CUDA device on this machine, which scoring is measured on")
    if not exact:
        priors = ", ".join(wanted_priors(experiment))
        first = [f"sensitivities ({priors})"] if priors else []
        if wants_nas(experiment):
            first.append("the differentiable search")
        found.append(f"{' and '.join(first)}, which the search begins with")
    return tuple(found)


def _rungs(
    workspace: Workspace, seeds: tuple[Seed, ...], measured: Measured | None, status: SearchStatus | None
) -> tuple[RungPlan, ...]:
    experiment = workspace.experiment
    search, first = experiment.search, first_fidelity(experiment)
    done = {} if status is None else {rung.fidelity: rung.scored for rung in status.rungs}
    validation = experiment.data.mixtures.count[Split.VALIDATION]
    whole = validation / min(search.validation_mixtures, validation)
    always = sum(seed.strategy in ALWAYS_PROMOTED for seed in seeds)
    each = None if measured is None else measured.seconds_each
    plans = [RungPlan(first, search.trials, done.get(first, 0), each)]
    for promotion in search.promotions:
        if promotion.fidelity is first:
            continue
        seconds = None if measured is None else _seconds_each(experiment, promotion.fidelity, whole, measured)
        most = min(promotion.keep + always, plans[-1].candidates)
        plans.append(RungPlan(promotion.fidelity, most, done.get(promotion.fidelity, 0), seconds))
    return tuple(plans)


def _seconds_each(experiment: Experiment, fidelity: Fidelity, whole: float, measured: Measured) -> float | None:
    """A candidate at a rung above the first, on all mixtures, which are `whole` times those of the first."""
    scoring = measured.seconds_each * whole
    if not fidelity.trained:
        return scoring
    if measured.step_seconds is None:
        return None
    steps = experiment.qat.steps if fidelity is Fidelity.SHORT_QAT else experiment.qat.full_steps
    return scoring + steps * measured.step_seconds


def _seconds(todo: list[tuple[int, RungPlan]], measured: Measured, at_once: int) -> float:
    """From the first candidate to the last, on so many workers; 0 where none is left to score."""
    scoring = sum(count * (rung.seconds_each or 0.0) for count, rung in todo)
    return measured.start_seconds + scoring / at_once if scoring else 0.0


def _measure(workspace: Workspace) -> Measured:
    """Score full precision and some seeds, and train a few steps where that is to come, all beside the run folder."""
    experiment = workspace.experiment
    space = build_space(experiment.search, untrained_sites(experiment))
    fidelity = first_fidelity(experiment)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calibration = folder / "calibration.json"
        if workspace.calibration_path.is_file():
            shutil.copyfile(workspace.calibration_path, calibration)
        start = time.perf_counter()
        score = ScorerFactory(experiment, workspace.base_path, workspace.data_folder, calibration)()
        points = [seed.point for seed in uniform_seeds(space)]
        # What a worker does once counts as its start: it loads mixtures, and quantizes each site's weights at each width.
        score(ScoringJob(space.full_precision, fidelity))
        for point in points:
            score(ScoringJob(space.decode(point), fidelity))
        started = time.perf_counter() - start
        mixed = [seed.point for seed in ends_seeds(space)] or points
        jobs = [ScoringJob(space.decode(point), fidelity) for point in mixed[:_TIMED]]
        start = time.perf_counter()
        metrics = [score(job) for job in jobs][-1]
        each = (time.perf_counter() - start) / len(jobs)
        steps = _step_seconds(workspace, calibration) if trainings(experiment) and pool_path(workspace).is_file() else None
        candidate = Candidate(1, points[-1], "uniform", {})
        costs = CostBook(experiment, space).charge([jobs[-1].allocation])[0]
        size = _entry_bytes(workspace, candidate, Result(candidate, metrics, costs), fidelity, folder)
    peak = 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Measured(started, each, steps, size, peak)


def _step_seconds(workspace: Workspace, calibration: Path) -> float:
    experiment = workspace.experiment
    device = open_device(experiment.workers.device)
    base = prepare_base(experiment, workspace.base_path, workspace.data_folder, calibration).on(device)
    search = experiment.search
    allocation = uniform(base.sites, max(search.weight_bits), max(search.activation_bits), search.widest_trunk)
    times: list[float] = []
    train_quantized(
        base,
        allocation,
        load_pool(pool_path(workspace)),
        experiment.qat,
        _TRAINED_STEPS,
        experiment.seed,
        on_step=lambda *_: times.append(time.perf_counter()),
    )
    return (times[-1] - times[0]) / (len(times) - 1)


def _entry_bytes(workspace: Workspace, candidate: Candidate, result: Result, fidelity: Fidelity, folder: Path) -> float:
    """A scored candidate in the record and in its mirror."""
    experiment = workspace.experiment
    space = build_space(experiment.search, untrained_sites(experiment))
    asked = Asked(candidate=1, strategy=candidate.strategy, point=candidate.point, state={}, time=now())
    scored = Scored(
        candidate=1,
        strategy=candidate.strategy,
        seed=experiment.seed,
        allocation=space.decode(candidate.point).to_json(),
        metrics=dict(result.metrics or {}),
        costs={name: None if value is None else finite(value) for name, value in result.costs.items()},
        fidelity=fidelity,
        seconds=1.0,
        worker="worker:1000000",
        attempts=1,
        time=now(),
    )
    header = search_header(experiment, space, {})
    sizes = []
    for finished in ((), ((scored, candidate.point),)):
        StudyMirror(folder / "mirror", header, finished)
        sizes.append((folder / "mirror").stat().st_size)
    return len(asked.model_dump_json()) + len(scored.model_dump_json()) + 2 + sizes[1] - sizes[0]


def _disk(workspace: Workspace, todo: list[tuple[int, RungPlan]], measured: Measured) -> float:
    """Entries for every rung; trained weights are as large as the base."""
    trained = sum(count for count, rung in todo if rung.fidelity.trained)
    return sum(count for count, _ in todo) * measured.record_bytes + trained * workspace.base_path.stat().st_size
