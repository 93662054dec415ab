"""What a search costs beside scoring: how many scorers one driver keeps busy, and what grows with the number of trials.

    OMP_NUM_THREADS=1 python experiments/scaling.py throughput   # 1, 2 and 1,000 scorers that only wait, and 1 and 2 on Ray
    OMP_NUM_THREADS=1 python experiments/scaling.py overhead     # the driver's time per candidate, part by part
    OMP_NUM_THREADS=1 python experiments/scaling.py resume       # from the command to the first job
    OMP_NUM_THREADS=1 python experiments/scaling.py quality      # what proposing many at once costs the front
    OMP_NUM_THREADS=1 python experiments/scaling.py storages     # of finished trials; PostgreSQL where HWSEARCH_STORAGE names it
    python experiments/scaling.py quickstart                     # two workers against one, on two free cores

The search has 224 free sites, the default sampler, the real cost of a separator and a target, and its record on the disk. Each
command writes its part of `scaling.json` and `scaling.md`.
"""

import argparse
import heapq
import os
import shutil
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from platform import machine
from types import TracebackType
from typing import Any, Self

import numpy as np
import optuna

from hwsearch.executor import Executor, Outcome, RayExecutor
from hwsearch.experiment import Experiment, Fidelity, load_experiment, parse_experiment
from hwsearch.files.reading import read_json
from hwsearch.files.writing import atomic_write_json, atomic_write_text
from hwsearch.metrics.statistics import mean_interval, paired_permutation_test
from hwsearch.search.costs import CostBook
from hwsearch.search.driver import Task, run_search
from hwsearch.search.objectives import QUALITY, QUALITY_AND_SIZE, SIZE
from hwsearch.search.pareto import hypervolume
from hwsearch.search.posterior.engine import PosteriorEngine
from hwsearch.search.proposer import Plan
from hwsearch.search.record import RECORD_FILE, Header, Record, Scored, now, read_record, versions_here
from hwsearch.search.samplers.posterior import PosteriorProposer
from hwsearch.search.scoring import ScoringJob
from hwsearch.search.space import Point, SearchSpace, build_space, ends_seeds, uniform_seeds
from hwsearch.search.studies.address import STORAGE_VARIABLE, parse_address
from hwsearch.search.studies.mirror import MIRROR_FILE, StudyMirror
from hwsearch.search.studies.published_study import open_study
from hwsearch.separator.untrained import untrained_sites
from hwsearch.workspace import Workspace

HERE = Path(__file__).parent
SITES = 224
BEHIND = (0, 1_000, 10_000)
RESUMED = (0, 100, 1_000, 3_000, 10_000)
MANY = 1_000
MANY_SECONDS = 10.0
"""What a candidate takes where a thousand are scored at a time."""
SPREAD = 0.2
"""Candidates take up to this share more or less, or a thousand would finish at one instant, wave after wave."""
STORED = 200
"""Trials written to each storage."""

Job = ScoringJob
Metrics = Mapping[str, float]


class Problem:
    """A separator of some 230 sites of which 224 are free, and qualities that nobody has to score."""

    def __init__(self) -> None:
        content = {
            "name": "scaling",
            "seed": 0,
            "data": {
                "corpora": [{"kind": "espeak", "splits": {"train": 0.5, "validation": 0.5}}],
                "rooms": {"count": {"train": 1}},
                "mixtures": {"count": {"train": 1}},
            },
            "separator": {"X": 8, "R": 4},
            "search": {"activation_bits": [4, 6, 8], "targets": ["ethos-u55-128"], "trials": 10 * BEHIND[-1]},
        }
        whole = parse_experiment(content, "scaling")
        sites = [site for site, _ in build_space(whole.search, untrained_sites(whole)).free]
        content["search"] |= {"fixed": dict.fromkeys(sites[SITES:], 8)}  # type: ignore[operator]
        self.experiment: Experiment = parse_experiment(content, source="scaling")
        self.space: SearchSpace = build_space(self.experiment.search, untrained_sites(self.experiment))
        self.book = CostBook(self.experiment, self.space)
        rng = np.random.default_rng(0)
        counts = np.array(self.space.shape)
        self.valid = np.arange(counts.max()) < counts[:, None]
        bits = np.array([[*widths, *[32] * (counts.max() - len(widths))] for _, widths in self.space.free], np.float64)
        self.prior = np.where(self.valid, np.exp(rng.normal(0.0, 1.5, (SITES, 1))) * 4.0**-bits, 0.0)
        self.prior *= 3.0 / self.prior[:, 0].sum()
        self.true = self.prior * np.exp(rng.normal(0.0, 0.7, (SITES, 1)))
        self._name_of_row = {name: row for row, (name, _) in enumerate(self.space.free)}

    def quality(self, point: Point) -> float:
        """Noise powers add; neighbours that are both narrow lose a little more, or less."""
        loss = self.true[np.arange(SITES), list(point)]
        pairs = np.sqrt(loss[:-1] * loss[1:]) * np.where(np.arange(SITES - 1) % 2, 0.3, -0.2)
        return 12.0 - 10.0 * float(np.log10(1.0 + loss.sum() + pairs.sum()))

    def metrics(self, job: Job) -> Metrics:
        """Metrics as a scorer gives them."""
        if job.configuration.allocation.by_site["input_proj.weight"] == 32:
            return {QUALITY: 12.0, "utterances": 48.0}
        return {QUALITY: self.quality(self.space.encode(job.configuration)), "utterances": 48.0}

    def proposer(self, seed: int = 0) -> PosteriorProposer:
        """The default sampler."""
        deviation = 0.4 * self.prior + 1e-4
        return PosteriorProposer(PosteriorEngine(self.prior, deviation, self.valid, [self.book.known(SIZE)], []), seed)

    def search(
        self, folder: Path, executor: Executor[Job, Metrics], trials: int, proposer: PosteriorProposer | None = None
    ) -> None:
        """Search, or go on searching, until there are so many trials or the executor has had enough."""
        search = self.experiment.search.model_copy(update={"trials": trials})
        experiment = self.experiment.model_copy(update={"search": search})
        seeds = uniform_seeds(self.space) + ends_seeds(self.space)
        run_search(
            Task(experiment, self.space, self.book.charge, folder), executor, Plan(tuple(seeds), proposer or self.proposer())
        )


class WaitingExecutor:
    """So many workers that only wait, on one clock, without threads: a job begins when a worker is free and the driver looks."""

    def __init__(self, problem: Problem, workers: int, seconds: float, window: tuple[float, float]) -> None:
        """Make the workers.

        Args:
            problem: knows the results.
            workers: how many.
            seconds: what a job takes on average.
            window: seconds since the first job between which work is counted; behind it the search is interrupted.
        """
        self._problem = problem
        self._workers = workers
        self._seconds = seconds
        self._window = window
        self._rng = np.random.default_rng(1)
        self._running: list[tuple[float, int, float]] = []
        self._queue: deque[int] = deque()
        self._jobs: dict[int, Job] = {}
        self._began: float | None = None
        self._marks: tuple[float, float] | None = None
        self.busy_seconds = 0.0
        """Seconds that all workers together were busy within the window."""
        self.finished = 0
        """Jobs finished within the window."""
        self.processor_seconds = 0.0
        """Processor time of this process within the window."""
        self.wall_seconds = 0.0

    @property
    def capacity(self) -> int:
        """Jobs in flight, as many as the executor on Ray takes."""
        return 1 if self._workers == 1 else self._workers + (self._workers + 7) // 8

    @property
    def ready(self) -> int:
        """Jobs that are over; whoever looks is about to take them, so their workers get new ones."""
        now = time.monotonic()
        return sum(due <= now for due, _, _ in self._running)

    def submit(self, key: int, argument: Job) -> None:
        """Queue a job."""
        self._began = self._began or time.monotonic()
        self._jobs[key] = argument
        self._queue.append(key)
        self._dispatch()

    def next_outcome(self) -> Outcome[Metrics]:
        """Wait for the job that is due next."""
        if not self._running:
            raise LookupError("no job is in flight")
        due, key, seconds = self._running[0]
        time.sleep(max(0.0, due - time.monotonic()))
        self._count()
        heapq.heappop(self._running)
        self._dispatch()
        job = self._jobs.pop(key)
        return Outcome(key, self._problem.metrics(job), None, attempts=1, seconds=seconds, worker="waiting")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._running.clear()

    def _dispatch(self) -> None:
        while self._queue and len(self._running) < self._workers:
            seconds = self._seconds * float(self._rng.uniform(1.0 - SPREAD, 1.0 + SPREAD))
            begin = time.monotonic()
            heapq.heappush(self._running, (begin + seconds, self._queue.popleft(), seconds))
            if self._began is not None:
                first, last = self._began + self._window[0], self._began + self._window[1]
                self.busy_seconds += max(0.0, min(begin + seconds, last) - max(begin, first))

    def _count(self) -> None:
        since = time.monotonic() - (self._began or 0.0)
        if since >= self._window[0] and self._marks is None:
            self._marks = time.monotonic(), time.process_time()
        self.finished += self._window[0] <= since < self._window[1]
        if since >= self._window[1] and self._marks is not None:
            self.wall_seconds = time.monotonic() - self._marks[0]
            self.processor_seconds = time.process_time() - self._marks[1]
            raise KeyboardInterrupt


class InstantExecutor:
    """So many in flight that all take no time, first in first out."""

    def __init__(self, problem: Problem, capacity: int, stop_at_first: bool = False) -> None:  # noqa: FBT001, FBT002
        self._problem = problem
        self._queue: deque[tuple[int, Job]] = deque()
        self._stop = stop_at_first
        self.capacity = capacity
        self.ready = 0
        self.first: float | None = None
        """When the first job came, `time.perf_counter`."""

    def submit(self, key: int, argument: Job) -> None:
        """Queue a job."""
        self.first = self.first or time.perf_counter()
        if self._stop:
            raise KeyboardInterrupt
        self._queue.append((key, argument))

    def next_outcome(self) -> Outcome[Metrics]:
        """The oldest job's."""
        key, job = self._queue.popleft()
        return Outcome(key, self._problem.metrics(job), None, attempts=1, seconds=0.0, worker="instant")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._queue.clear()


def with_trials(problem: Problem, work: Path, trials: int) -> Path:
    """A run folder with so many finished trials and nothing in flight, made once."""
    folder = work / f"behind-{trials}"
    if trials and not (folder / "complete").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        smaller = [count for count in (*BEHIND, *RESUMED) if 0 < count < trials]
        if smaller:
            shutil.copytree(with_trials(problem, work, max(smaller)), folder)
            (folder / "complete").unlink()
        problem.search(folder, InstantExecutor(problem, MANY), trials)
        (folder / "complete").touch()
    return folder


@contextmanager
def copied(folder: Path, work: Path) -> Iterator[Path]:
    """A copy to search in."""
    target = work / "measured"
    shutil.rmtree(target, ignore_errors=True)
    if folder.is_dir():
        shutil.copytree(folder, target)
    yield target
    shutil.rmtree(target, ignore_errors=True)


def throughput(problem: Problem, work: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Share of the scorers' time that they are busy."""
    rows = []
    for behind in options.behind:
        for workers in options.scorers:
            seconds, window = (MANY_SECONDS, (20.0, 80.0)) if workers > 100 else (1.0, (2.0, 22.0))
            with copied(with_trials(problem, work, behind), work) as folder:
                executor = WaitingExecutor(problem, workers, seconds, window)
                problem.search(folder, executor, 10 * BEHIND[-1])
            length = window[1] - window[0]
            row = {
                "scorers": workers,
                "on": "clock",
                "seconds_each": seconds,
                "trials_behind": behind,
                "busy": executor.busy_seconds / (workers * length),
                "candidates_per_second": executor.finished / length,
                "driver_processor_share": executor.processor_seconds / executor.wall_seconds,
            }
            rows.append(row)
            print(row, flush=True)
    for workers in options.ray:
        with copied(work / "none", work) as folder:
            rows.append(on_ray(problem, folder, workers, 0.2))
            print(rows[-1], flush=True)
    return rows


def waiting_scorer(seconds: float) -> Callable[[Job], Metrics]:
    """A scorer for Ray's workers that waits."""
    return partial(_wait, seconds)


def _wait(seconds: float, job: Job) -> Metrics:
    time.sleep(seconds)
    return {QUALITY: 12.0 - 0.001 * sum(32 - bits for _, bits in job.configuration.allocation.widths), "utterances": 48.0}


def on_ray(problem: Problem, folder: Path, workers: int, seconds: float) -> dict[str, Any]:
    """Measure the throughput on real workers, between the first candidate and the last."""
    trials = 60 * workers
    with RayExecutor(partial(waiting_scorer, seconds), workers) as executor:
        problem.search(folder, executor, trials)
    scored = [event for event in read_record(folder)[1] if isinstance(event, Scored)]
    ends = [datetime.fromisoformat(event.time).timestamp() for event in scored[workers:]]
    length = ends[-1] - ends[0]
    return {
        "scorers": workers,
        "on": "Ray",
        "seconds_each": seconds,
        "trials_behind": 0,
        "busy": sum(event.seconds for event in scored[workers + 1 :]) / (workers * length),
        "candidates_per_second": (len(ends) - 1) / length,
    }


class Timers:
    """Seconds spent in the parts of the driver."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def around(self, *parts: tuple[str, object, str]) -> Iterator[None]:
        """Time calls of methods: name of the part, owner, attribute."""
        kept = [(owner, attribute, getattr(owner, attribute)) for _, owner, attribute in parts]
        for (part, owner, attribute), (_, _, function) in zip(parts, kept, strict=True):
            setattr(owner, attribute, self._timed(part, function))
        try:
            yield
        finally:
            for owner, attribute, function in kept:
                setattr(owner, attribute, function)

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds[part] += time.perf_counter() - start

        return timed


def overhead(problem: Problem, work: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds of the driver per candidate, with scorers that take no time."""
    rows = []
    for behind in options.behind:
        for in_flight, count in ((1, 200), (2, 200), (MANY, 3 * MANY)):
            timers = Timers()
            marks: dict[str, float] = {}
            executor = InstantExecutor(problem, in_flight)
            answer = executor.next_outcome

            def next_outcome(
                executor: InstantExecutor = executor,
                timers: Timers = timers,
                marks: dict[str, float] = marks,
                answer: Callable[[], Outcome[Metrics]] = answer,
            ) -> Outcome[Metrics]:
                """Start counting when the scorers are all busy for the first time."""
                if not marks:
                    timers.seconds.clear()
                    marks.update(wall=time.perf_counter(), processor=time.process_time(), pending=len(executor._queue))  # noqa: SLF001
                return answer()

            parts = [
                ("propose", PosteriorProposer, "ask"),
                ("learn", PosteriorProposer, "tell"),
                ("record", Record, "extend"),
                ("fsync", os, "fsync"),
                ("mirror", StudyMirror, "add"),
                ("cost", problem.book, "charge"),
                ("scorer", executor, "next_outcome"),
            ]
            executor.next_outcome = next_outcome  # type: ignore[method-assign]
            with copied(with_trials(problem, work, behind), work) as folder, timers.around(*parts):
                problem.search(folder, executor, behind + in_flight + count)
                wall, processor = time.perf_counter() - marks["wall"], time.process_time() - marks["processor"]
                done = count + in_flight
            spent = {name: 1e3 * timers.seconds[name] / done for name, *_ in parts}
            total = 1e3 * wall / done - spent["scorer"]
            row = {
                "in_flight": in_flight,
                "trials_behind": behind,
                "total_ms": total,
                "processor_ms": 1e3 * processor / done - spent["scorer"],
                "propose_ms": spent["propose"],
                "learn_ms": spent["learn"],
                "record_ms": spent["record"],
                "of_record_fsync_ms": spent["fsync"],
                "mirror_ms": spent["mirror"],
                "cost_ms": spent["cost"],
                "rest_ms": total - sum(spent[name] for name in ("propose", "learn", "record", "mirror", "cost")),
            }
            rows.append(row)
            print(row, flush=True)
    return rows


def resume(problem: Problem, work: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds from the start of a driver, imports done, to its first job."""
    rows = []
    for trials in RESUMED:
        if trials > max(options.behind):
            continue
        with copied(with_trials(problem, work, trials), work) as folder:
            parts = [
                ("learn", PosteriorProposer, "tell"),
                ("mirror", StudyMirror, "_line"),  # what makes it takes in the record on its way
            ]
            timers = Timers()
            executor = InstantExecutor(problem, 1, stop_at_first=True)
            proposer = problem.proposer()
            start = time.perf_counter()
            with timers.around(*parts):
                problem.search(folder, executor, trials + 10, proposer)
            total = (executor.first or start) - start
            size, mirror_size = ((folder / name).stat().st_size for name in (RECORD_FILE, MIRROR_FILE))
        row = {
            "trials": trials,
            "seconds": total,
            "learn_s": timers.seconds["learn"],
            "mirror_s": timers.seconds["mirror"],
            "rest_s": total - timers.seconds["learn"] - timers.seconds["mirror"],
            "record_mb": size / 1e6,
            "mirror_mb": mirror_size / 1e6,
        }
        rows.append(row)
        print(row, flush=True)
    return rows


def quality(problem: Problem, work: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Hypervolume after as many candidates with proposals one by one and several at once, as many in flight; paired by seed."""
    del work
    rows: list[dict[str, Any]] = []
    one_by_one: list[float] = []
    trials, in_flight = 1_500, 500
    for at_once in (1, in_flight // 32):
        found = []
        for seed in range(options.seeds):
            proposer = problem.proposer(seed)
            engine = proposer._engine  # noqa: SLF001 (the same search, without a driver)
            engine.refer(12.0)
            waiting: deque[Point] = deque()
            behind: deque[Point] = deque()
            points = [seed.point for seed in uniform_seeds(problem.space) + ends_seeds(problem.space)]
            for number in range(trials):
                if number < len(points):
                    point = points[number]
                else:
                    if not behind:
                        behind.extend(engine.propose_several(at_once, np.random.default_rng([seed, number])))
                    point = behind.popleft()
                    points.append(point)
                engine.start(point)
                waiting.append(point)
                if len(waiting) == in_flight:
                    done = waiting.popleft()
                    engine.finish(done, problem.quality(done))
            sizes = problem.book.known(SIZE).charge(np.array(points))
            values = np.stack([[problem.quality(point) for point in points], sizes], axis=1)
            directions = [objective.direction for objective in QUALITY_AND_SIZE]
            ends = np.array([[0] * SITES, [count - 1 for count in problem.space.shape]])
            least, largest = problem.book.known(SIZE).charge(ends).tolist()
            found.append(hypervolume(values, directions, (0.0, largest)) / (12.0 * (largest - least)))
            print(at_once, seed, found[-1], flush=True)
        row = {"proposed_at_once": at_once, "in_flight": in_flight, "trials": trials, "seeds": len(found)}
        row |= {"hypervolume": float(np.mean(found)), "lowest": min(found), "highest": max(found)}
        one_by_one = one_by_one or found
        more = mean_interval(np.subtract(found, one_by_one))
        test = paired_permutation_test(found, one_by_one, seed=0)
        rows.append(row | {"more": more.value, "more_low": more.low, "more_high": more.high, "p": test.p_value})
    return rows


def storages(problem: Problem, work: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds to store a finished trial."""
    del options
    rng = np.random.default_rng(0)
    points = [tuple(row) for row in rng.integers(problem.space.shape, size=(STORED, SITES)).tolist()]
    results = [
        Scored(
            candidate=number,
            strategy="random",
            seed=0,
            allocation=problem.space.decode(point).allocation.to_json(),
            metrics={QUALITY: problem.quality(point)},
            costs={SIZE: 1e5},
            fidelity=Fidelity.POST_TRAINING,
            seconds=1.0,
            worker="none",
            attempts=1,
            time=now(),
        )
        for number, point in enumerate(points, start=1)
    ]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = [name for name, _ in problem.space.free]
    distributions = {name: optuna.distributions.CategoricalDistribution(widths) for name, widths in problem.space.free}
    trials = [
        optuna.trial.create_trial(
            values=[result.metrics[QUALITY], 1e5],
            params={name: distributions[name].choices[index] for name, index in zip(names, point, strict=True)},
            distributions=distributions,
            user_attrs={"candidate": result.candidate, "fidelity": Fidelity.POST_TRAINING.value},
        )
        for result, point in zip(results, points, strict=True)
    ]
    directions = ["maximize", "minimize"]
    memory = optuna.create_study(directions=directions)
    work.mkdir(parents=True, exist_ok=True)
    header = Header(
        name=f"scaling-{time.time_ns()}",
        experiment="",
        provenance={},
        seed=0,
        objectives=QUALITY_AND_SIZE,
        widths=dict(problem.space.widths),
        fixed=(),
        versions=versions_here(),
        time=now(),
    )
    mirror = StudyMirror(work / "mirror.log", header, [])
    journal_path = work / f"journal-{os.getpid()}.log"
    journal = optuna.create_study(
        storage=optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal_path))),
        directions=directions,
    )
    found: list[tuple[str, Callable[[int], object]]] = [
        ("in memory, Optuna's", lambda number: memory.add_trial(trials[number])),
        ("mirror in the run folder", lambda number: mirror.add(results[number], points[number])),
        ("journal file, Optuna's", lambda number: journal.add_trial(trials[number])),
    ]
    rows = []
    address = os.environ.get(STORAGE_VARIABLE)
    if address is None:
        print(f"{STORAGE_VARIABLE} is not set: PostgreSQL is left out", flush=True)
    with ExitStack() as opened:
        if address is not None:
            study = opened.enter_context(open_study(parse_address(address), work, header))
            found.append(("PostgreSQL, shared study", lambda number: study.add(results[number], points[number])))
        for name, store in found:
            start = time.perf_counter()
            for number in range(STORED):
                store(number)
            rows.append({"storage": name, "trials": STORED, "ms_per_trial": 1e3 * (time.perf_counter() - start) / STORED})
            print(rows[-1], flush=True)
    journal_path.unlink()
    return rows


def quickstart(problem: Problem, work: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The quickstart's search with one worker and with two in turn, each in its own run folder; medians. Wants two free cores."""
    del problem
    path = HERE / "quickstart.toml"
    workspace = Workspace(work / "quickstart-shared", load_experiment(path))
    command = [str(Path(sys.executable).with_name("hwsearch")), "search", str(path)]
    shutil.rmtree(workspace.folder, ignore_errors=True)
    runs: dict[int, list[dict[str, float]]] = {workers: [] for workers in options.workers}
    for _ in range(options.repeats):
        for workers, measured in runs.items():
            measured.append(_search_once(command, workspace, work / f"quickstart-{workers}", workers))
            print(workers, measured[-1], flush=True)
    single = np.array([row["scoring_s"] for row in runs[options.workers[0]]])
    rows: list[dict[str, Any]] = []
    for workers, measured in runs.items():
        shares = np.array([row["scoring_s"] for row in measured]) / single
        row = {"workers": workers, "repeats": len(measured)}
        row |= {name: float(np.median([each[name] for each in measured])) for name in measured[0]}
        row |= {"of_one_worker": float(np.median(shares)), "lowest": float(shares.min()), "highest": float(shares.max())}
        rows.append(row)
    return rows


def _search_once(command: list[str], workspace: Workspace, runs: Path, workers: int) -> dict[str, float]:
    shutil.rmtree(runs, ignore_errors=True)
    started = time.perf_counter()
    subprocess.run([*command, "--runs-dir", str(runs), "--workers", str(workers)], check=True)  # noqa: S603
    scored = [event for event in read_record(Workspace(runs, workspace.experiment).folder)[1] if isinstance(event, Scored)]
    ends = [datetime.fromisoformat(event.time).timestamp() for event in scored]
    return {
        "candidates": len(scored),
        "scoring_s": ends[-1] - (ends[0] - scored[0].seconds),
        "sum_of_candidates_s": sum(event.seconds for event in scored),
        "whole_command_s": time.perf_counter() - started,
    }


PARTS: dict[str, tuple[str, Callable[[Problem, Path, argparse.Namespace], list[dict[str, Any]]]]] = {
    "throughput": ("Share of the scorers' time that they are busy", throughput),
    "overhead": ("The driver's time per candidate", overhead),
    "resume": ("From the start of a driver to its first job", resume),
    "quality": ("Proposing several at once: share of the rectangle that the front dominates", quality),
    "storages": ("Time to store a finished trial", storages),
    "quickstart": ("The quickstart's search with one worker and with two", quickstart),
}


def write(results: Path, part: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace a part of the results, and write all of them as tables."""
    path = results / "scaling.json"
    content = read_json(path, "results") if path.is_file() else {}
    made_by = {
        "command": f"OMP_NUM_THREADS=1 python experiments/scaling.py {part}",
        "sites": SITES,
        "cores": os.cpu_count(),
        "machine": machine(),
        "load_average": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("hwsearch", "optuna", "ray", "numpy")},
    }
    content[part] = {"made_by": made_by, "rows": list(rows)}
    atomic_write_json(path, content)
    lines = []
    for name, (title, _) in PARTS.items():
        if name in content:
            lines += [f"## {title}", "", _table(content[name]["rows"]), ""]
    atomic_write_text(results / "scaling.md", "\n".join(lines))


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name)) for name in columns] for row in rows]
    lines = [[name.replace("_", " ") for name in columns], ["---"] * len(columns), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value or "")


def main() -> None:
    """Measure a part and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="on the disk whose fsync is to count")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--behind", type=int, nargs="+", default=list(BEHIND), help="numbers of trials behind the driver")
    parser.add_argument("--scorers", type=int, nargs="*", default=[1, 2, MANY], help="that only wait")
    parser.add_argument("--ray", type=int, nargs="*", default=[1, 2], help="workers on Ray")
    parser.add_argument("--seeds", type=int, default=10, help="of the comparison of fronts")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="of the quickstart")
    parser.add_argument("--repeats", type=int, default=5, help="of the quickstart")
    options = parser.parse_args()
    work = options.runs_dir.resolve() / "scaling"
    work.mkdir(parents=True, exist_ok=True)
    options.results.mkdir(parents=True, exist_ok=True)
    _, measure = PARTS[options.part]
    rows = measure(Problem(), work, options)
    write(options.results, options.part, rows)


if __name__ == "__main__":
    main()
