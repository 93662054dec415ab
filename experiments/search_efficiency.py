"""How many evaluations a front costs: the prior-corrected sampler against every sampler of Optuna that takes several objectives.

All optimise the same study: SI-SNR improvement against the bytes of the packed file, over the widths of all weights of the
real-speech base, scored on real speech. Every sampler runs unseeded, and seeded alike: with the uniform allocations, 'ends at 8
bits', and the exact fronts of all priors. Hypervolume is the share of the rectangle between nothing and full precision's quality,
and between the smallest and the largest file.

    python experiments/search_efficiency.py run --workers 2      # hours, most of them in the Gaussian process; continues
    python experiments/search_efficiency.py report               # what has finished, at any time

A report keeps the curves of whole runs in `search_efficiency_curves.json` beside its tables; `run` does not repeat these while
base, mixtures, seeds and sizes are those they were made with.
"""

import argparse
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from before_training import NEAREST
from matplotlib.figure import Figure
from optuna.distributions import IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial
from scipy import stats

from hwsearch.experiment import Experiment, Fidelity, load_experiment, with_search
from hwsearch.files.reading import digest, read_json
from hwsearch.files.writing import atomic_write_bytes, atomic_write_json
from hwsearch.search.costs import CostBook
from hwsearch.search.objectives import PACKED_SIZE, QUALITY, QUALITY_AND_SIZE
from hwsearch.search.pareto import hypervolume
from hwsearch.search.plan import make_plan
from hwsearch.search.posterior.sampler import PriorCorrectedSampler
from hwsearch.search.samplers.posterior import posterior_engine
from hwsearch.search.scoring import ScorerFactory, ScoringJob
from hwsearch.search.space import Point, build_space
from hwsearch.sensitivity.estimate import ensure, read_table, table_path
from hwsearch.separator.untrained import untrained_sites
from hwsearch.workflow.checks import provenance
from hwsearch.workflow.training import build, prepare
from hwsearch.workspace import Workspace

HERE = Path(__file__).parent
EVALUATIONS = 300
ARCHIVE = "search_efficiency_curves.json"
OURS_AT = 100
"""Evaluations of ours that are compared with all of a rival's."""
MARKS = (60, 100, 150, 200, 300)
OURS = "prior-corrected"
FRONT = "prior front"
POPULATION = 20
RIVALS = ("random", "qmc", "nsga2", "nsga3", "tpe", "gp")
GENERATION_KEYS = {"NSGAIISampler:generation": 0, "NSGAIIISampler:generation": 0}
"""Without them genetic samplers never take an added trial as a parent."""


@dataclass(frozen=True)
class Job:
    """One run: a sampler, seeded or not, with a random seed."""

    sampler: str
    seeded: bool
    seed: int

    @property
    def name(self) -> str:
        """Its file's stem."""
        return f"{self.sampler.replace(' ', '-')}-{'seeded' if self.seeded else 'unseeded'}-{self.seed}"


def load(path: Path) -> Experiment:
    """Load the experiment, with the trunk and the rounding of the committed curves, and with a run folder of its own."""
    experiment = with_search(load_experiment(path), {"trunk_bits": [8]})
    quantization = experiment.quantization.model_copy(update=NEAREST)
    return experiment.model_copy(update={"name": f"{experiment.name}-efficiency", "quantization": quantization})


def estimate(workspace: Workspace) -> None:
    """Estimate what is missing of the sensitivities; one process at a time may."""
    experiment = workspace.experiment
    space = build_space(experiment.search, untrained_sites(experiment))
    ensure(workspace, experiment.search.priors, space.free_sites)


class Problem:
    """What is searched: loaded once in each process."""

    def __init__(self, experiment_path: Path, runs: Path) -> None:
        torch.set_num_threads(1)
        self.experiment = load(experiment_path)
        self.workspace = Workspace(runs, self.experiment)
        self.folder = self.workspace.folder / "efficiency"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.space = build_space(self.experiment.search, untrained_sites(self.experiment))
        self.costs = CostBook(self.experiment, self.space)
        self.size = self.costs.known(PACKED_SIZE)
        prepare(self.workspace)
        paths = {prior: table_path(self.workspace, prior) for prior in self.experiment.search.priors}
        self.tables = {prior: read_table(path) for prior, path in paths.items()}
        self.seeds = make_plan(self.experiment, self.space, self.costs, self.tables).seeds
        ends = np.array([[0] * len(self.space.free), [n - 1 for n in self.space.shape]])
        self.least, self.largest = self.size.charge(ends).tolist()
        self._scores: dict[Point | None, float] = {}

    @cached_property
    def digest(self) -> str:
        """Hash of everything that a curve depends on, except its sampler."""
        made_with = {
            "provenance": dict(provenance(self.workspace)),
            "validation_mixtures": self.experiment.search.validation_mixtures,
            "widths": [[name, *widths] for name, widths in self.space.free],
            "seeds": [list(seed.point) for seed in self.seeds],
            "sizes": [self.least, self.largest],
        }
        return digest(made_with)

    @cached_property
    def full_precision(self) -> float:
        """Quality of the base, dB."""
        return self.quality(None)

    def quality(self, point: Point | None) -> float:
        """Scored once per process; the full-precision network for None."""
        if point not in self._scores:
            configuration = self.space.full_precision if point is None else self.space.decode(point)
            self._scores[point] = self._score(ScoringJob(configuration, Fidelity.SUBSET))[QUALITY]
        return self._scores[point]

    def values(self, point: Point) -> tuple[float, float]:
        """Quality and bytes."""
        return self.quality(point), float(self.size.charge(np.array([point]))[0])

    def hypervolume(self, values: list[tuple[float, float]]) -> float:
        """Hypervolume as a share of the rectangle."""
        directions = [objective.direction for objective in QUALITY_AND_SIZE]
        area = hypervolume(np.array(values), directions, (0.0, self.largest))
        return area / (self.full_precision * (self.largest - self.least))

    @cached_property
    def _score(self) -> Callable[[ScoringJob], object]:
        calibration = self.workspace.folder / "calibration.json"
        return ScorerFactory(self.experiment, self.workspace.base_path, self.workspace.data_folder, calibration)()


def make_sampler(problem: Problem, job: Job, done: int) -> BaseSampler:
    """A live sampler; one that continues an interrupted run is seeded by how far it had come."""
    seed = int(np.random.SeedSequence([job.seed, done]).generate_state(1)[0])
    if job.sampler == OURS:
        search = problem.experiment.search
        engine = posterior_engine(
            problem.space, list(problem.tables.values()), problem.costs, search.objectives, {}, search.validation_mixtures
        )
        return PriorCorrectedSampler(problem.space, engine, problem.seeds if job.seeded else (), problem.full_precision, seed)
    rivals: dict[str, Callable[[], BaseSampler]] = {
        "random": lambda: RandomSampler(seed=seed),
        "qmc": lambda: QMCSampler(scramble=True, seed=job.seed),
        "nsga2": lambda: NSGAIISampler(population_size=POPULATION, seed=seed),
        "nsga3": lambda: NSGAIIISampler(population_size=POPULATION, seed=seed),
        "tpe": lambda: TPESampler(multivariate=True, n_startup_trials=POPULATION, seed=seed),
        "gp": lambda: GPSampler(n_startup_trials=POPULATION, deterministic_objective=True, seed=seed),
    }
    return rivals[job.sampler]()


def run_job(problem: Problem, job: Job, evaluations: int) -> None:
    """Run, or go on running, until there are as many evaluations; one line of JSON for each."""
    path = problem.folder / f"{job.name}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    history = [json.loads(line) for line in lines if line.endswith("\n")]
    if job.sampler == "qmc" and len(history) < evaluations:
        history = []  # its sequence lives in the study and begins anew
    distributions = {name: IntDistribution(0, len(widths) - 1) for name, widths in problem.space.free}
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=make_sampler(problem, job, len(history)))

    def add(point: Point, values: tuple[float, float], generation: dict[str, int]) -> None:
        params = dict(zip(distributions, point, strict=True))
        running = create_trial(
            state=TrialState.RUNNING, params=params, distributions=dict(distributions), system_attrs=dict(generation)
        )
        study.add_trial(running)
        study.tell(len(study.trials) - 1, values)

    seeds = [seed.point for seed in problem.seeds] if job.seeded else []
    for number, entry in enumerate(history):
        generation = dict.fromkeys(GENERATION_KEYS, entry["generation"]) if "generation" in entry else {}
        add(tuple(entry["point"]), tuple(entry["values"]), GENERATION_KEYS if number < len(seeds) else generation)
    if history or lines:
        atomic_write_bytes(path, "".join(json.dumps(entry) + "\n" for entry in history).encode())  # without a torn last line
    with path.open("a", encoding="utf-8") as stream:

        def write(point: Point, values: tuple[float, float], attributes: dict[str, object]) -> None:
            generation = [attributes[key] for key in GENERATION_KEYS if key in attributes]
            entry = {"point": point, "values": values} | ({"generation": generation[0]} if generation else {})
            stream.write(json.dumps(entry) + "\n")
            stream.flush()

        for number in range(len(history), evaluations):
            if number < len(seeds):
                values = problem.values(seeds[number])
                add(seeds[number], values, GENERATION_KEYS)
                write(seeds[number], values, {})
                continue
            trial = study.ask(distributions)
            point = tuple(int(trial.params[name]) for name in distributions)
            values = problem.values(point)
            study.tell(trial, values)
            write(point, values, study.trials[trial.number].system_attrs)


def run_front(problem: Problem, job: Job, evaluations: int) -> None:
    """The first prior's exact front at ever finer sizes, after the seeds: what a prior is worth without correction."""
    changes = {"strategy": "kl", "trials": evaluations}
    search = problem.experiment.search.model_copy(update=changes)
    first = problem.experiment.search.priors[0]
    tables = {"kl": problem.tables[first]}
    finer = make_plan(problem.experiment.model_copy(update={"search": search}), problem.space, problem.costs, tables).seeds
    points = list(dict.fromkeys(seed.point for seed in (*problem.seeds, *finer)))[:evaluations]
    lines = [json.dumps({"point": point, "values": problem.values(point)}) for point in points]
    atomic_write_bytes(problem.folder / f"{job.name}.jsonl", ("\n".join(lines) + "\n").encode())


_problem: Problem | None = None


def work(arguments: tuple[Path, Path, Job, int]) -> str:
    """A job in a process of its own, which keeps the problem for the next one."""
    global _problem  # noqa: PLW0603 (once per process, as a pool's initialiser would)
    experiment_path, runs, job, evaluations = arguments
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    _problem = _problem or Problem(experiment_path, runs)
    (run_front if job.sampler == FRONT else run_job)(_problem, job, evaluations)
    return job.name


def jobs(samplers: tuple[str, ...], seeds: int, first: int = 0) -> list[Job]:
    """Ours and the quick ones first, the Gaussian process last."""
    found = [Job(FRONT, seeded=True, seed=0)] if FRONT in samplers else []
    order = [sampler for sampler in (OURS, *RIVALS) if sampler in samplers]
    return found + [Job(sampler, seeded, seed) for sampler, seeded, seed in product(order, (True, False), range(first, seeds))]


Curves = dict[tuple[str, bool], dict[int, list[float]]]
"""Hypervolume after each evaluation, by sampler and whether it was seeded, by random seed."""


def read_archive(problem: Problem, results: Path) -> dict[str, list[float]]:
    """Curves of whole runs that an earlier report has kept, by the job's name; none where they are of another problem."""
    path = results / ARCHIVE
    content = read_json(path, "curves") if path.is_file() else {}
    kept: dict[str, list[float]] = content["curves"] if content.get("problem") == problem.digest else {}
    return kept


def write_archive(problem: Problem, curves: Curves, results: Path) -> None:
    """Keep the curves of whole runs beside those kept before."""
    whole = {
        Job(sampler, seeded, seed).name: [round(value, 6) for value in curve]
        for (sampler, seeded), runs in curves.items()
        for seed, curve in runs.items()
        if len(curve) >= EVALUATIONS
    }
    kept = dict(sorted((read_archive(problem, results) | whole).items()))
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(curve, separators=(',', ':'))}" for name, curve in kept.items())
    text = f'{{\n "problem": {json.dumps(problem.digest)},\n "curves": {{\n{lines}\n }}\n}}\n'
    atomic_write_bytes(results / ARCHIVE, text.encode())


def read_curves(problem: Problem, seeds: int, results: Path) -> Curves:
    """What has been run so far, here or in an earlier report."""
    curves: Curves = {}
    archive = read_archive(problem, results)
    for job in jobs((FRONT, OURS, *RIVALS), seeds):
        path = problem.folder / f"{job.name}.jsonl"
        curve = archive.get(job.name)
        if path.is_file():
            lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
            values = [tuple(json.loads(line)["values"]) for line in lines[:EVALUATIONS]]
            curve = [problem.hypervolume(values[: count + 1]) for count in range(len(values))]
        if curve:
            curves.setdefault((job.sampler, job.seeded), {})[job.seed] = curve
    return curves


def summary(sampler: str, runs: dict[int, list[float]], ours: dict[int, list[float]], *, seeded: bool) -> dict[str, Any]:
    """A sampler's means and 95 % intervals over seeds, and how often ours after 100 evaluations is no worse than its last."""
    row: dict[str, Any] = {"sampler": sampler, "seeded": seeded, "runs": len(runs)}
    for mark in MARKS:
        reached = [curve[mark - 1] for curve in runs.values() if len(curve) >= mark]
        row[f"runs_at_{mark}"] = len(reached)
        row[f"at_{mark}"] = float(np.mean(reached)) if reached else None
        several = len(reached) > 1
        row[f"ci95_at_{mark}"] = float(stats.t.ppf(0.975, len(reached) - 1) * stats.sem(reached)) if several else None
    if sampler != OURS:
        # The prior's front has no seed: it is compared with every one of ours.
        pairs = [(seed, min(runs) if sampler == FRONT else seed) for seed, curve in ours.items() if len(curve) >= OURS_AT]
        pairs = [(seed, other) for seed, other in pairs if len(runs.get(other, [])) >= OURS_AT]
        row["ours_at_100_no_worse_than_its_last"] = sum(ours[seed][OURS_AT - 1] >= runs[other][-1] for seed, other in pairs)
        row["seeds_compared"] = len(pairs)
        row["its_last"] = sorted({len(runs[other]) for _, other in pairs})
    return row


def report(problem: Problem, seeds: int, results: Path) -> None:
    """JSON, Markdown and a plot of what has been run so far."""
    curves = read_curves(problem, seeds, results)
    write_archive(problem, curves, results)
    ours = curves.get((OURS, True), {})
    rows = [summary(sampler, runs, ours, seeded=seeded) for (sampler, seeded), runs in curves.items()]
    made_by = {
        "command": "python experiments/search_efficiency.py run && python experiments/search_efficiency.py report",
        "experiment": problem.experiment.name,
        "validation_mixtures": problem.experiment.search.validation_mixtures,
        "free_sites": len(problem.space.free),
        "seed_allocations": len(problem.seeds),
        "full_precision_db": problem.full_precision,
        "size_bytes": [problem.least, problem.largest],
        "provenance": dict(provenance(problem.workspace)),
        "versions": {name: version(name) for name in ("hwsearch", "optuna", "torch", "numpy")},
    }
    atomic_write_json(results / "search_efficiency.json", {"made_by": made_by, "rows": rows})
    headings = ["sampler", "seeded", "runs", *(f"after {mark}" for mark in MARKS), "ours at 100 no worse than its last"]
    lines = [headings, ["---"] * len(headings), *(_cells(row) for row in rows)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
    atomic_write_bytes(results / "search_efficiency.md", table.encode())
    print(table)
    _plot(curves, results / "search_efficiency.png")


def _cells(row: dict[str, Any]) -> list[str]:
    cells = [row["sampler"], "yes" if row["seeded"] else "no", str(row["runs"])]
    for mark in MARKS:
        mean, error, runs = row[f"at_{mark}"], row[f"ci95_at_{mark}"], row[f"runs_at_{mark}"]
        partial = "" if runs == row["runs"] else f" (n={runs})"
        cells.append("" if mean is None else f"{mean:.4f}" + ("" if error is None else f" ± {error:.4f}") + partial)
    compared = row.get("seeds_compared")
    return [*cells, f"{row['ours_at_100_no_worse_than_its_last']} of {compared}, at {row['its_last']}" if compared else ""]


def _plot(curves: Curves, path: Path) -> None:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for (sampler, seeded), runs in curves.items():
        shortest = min(len(curve) for curve in runs.values())
        mean = np.mean([curve[:shortest] for curve in runs.values()], axis=0)
        style = {"color": f"C{(FRONT, OURS, *RIVALS).index(sampler)}", "linestyle": "-" if seeded else ":"}
        width = 2.4 if sampler == OURS else 1.2
        axes.plot(np.arange(1, shortest + 1), mean, label=f"{sampler}{'' if seeded else ', unseeded'}", linewidth=width, **style)
    axes.set_xlabel("evaluations")
    axes.set_ylabel("hypervolume, share of the rectangle")
    seeded = [curve[MARKS[0] - 1] for runs in curves.values() for curve in runs.values() if len(curve) >= MARKS[0]]
    axes.set_ylim(bottom=min(seeded, default=0.0) - 0.005)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Parse, run or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "report"])
    parser.add_argument("--experiment", type=Path, default=HERE / "comparison.toml")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--evaluations", type=int, default=EVALUATIONS)
    parser.add_argument("--samplers", nargs="+", default=[FRONT, OURS, *RIVALS], choices=[FRONT, OURS, *RIVALS])
    parser.add_argument("--unseeded", choices=["yes", "no", "only"], default="yes", help="runs without seeds, too")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    workspace = Workspace(options.runs_dir, load(options.experiment))
    build(workspace, options.workers)
    estimate(workspace)
    problem = Problem(options.experiment, options.runs_dir)
    if options.action == "report":
        report(problem, options.seeds, options.results)
        return
    kept = read_archive(problem, options.results)
    wanted = [
        job
        for job in jobs(tuple(options.samplers), options.seeds, options.first_seed)
        if (options.unseeded == "yes" or job.seeded is (options.unseeded == "no"))
        and (len(kept.get(job.name, [])) < options.evaluations or (problem.folder / f"{job.name}.jsonl").is_file())
    ]
    arguments = [(options.experiment, options.runs_dir, job, options.evaluations) for job in wanted]
    with ProcessPoolExecutor(options.workers) as pool:
        for number, name in enumerate(pool.map(work, arguments), start=1):
            print(f"{number}/{len(wanted)}: {name}", flush=True)


if __name__ == "__main__":
    main()
