"""Sensitivity tables of an experiment. Missing entries are estimated, on workers if there are any, and kept."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsearch.data.dataset import manifest_hash, open_dataset
from hwsearch.errors import UserError
from hwsearch.executor import Executor, LocalExecutor, RayExecutor, run_jobs
from hwsearch.experiment import Experiment, Split
from hwsearch.extensions import SENSITIVITIES
from hwsearch.files.reading import digest
from hwsearch.files.seals import read_sealed_json, write_sealed_json
from hwsearch.sensitivity.cache import JOBS_FILE, ResultJournal, open_journal
from hwsearch.sensitivity.choices import Candidates, all_widths, check_candidates
from hwsearch.sensitivity.curvature import Trace, curvature_table
from hwsearch.sensitivity.jobs import (
    FULL_PRECISION,
    MEAN_SQUARED_ERROR,
    SQUARED_ERROR,
    TRAINED_BELOW_BITS,
    Job,
    Result,
    Results,
    kinds_of,
    missing_jobs,
)
from hwsearch.sensitivity.kinds import Kind
from hwsearch.sensitivity.recoverability import check_trainable, lost_noise_ratio
from hwsearch.sensitivity.table import SensitivityTable, over_mixtures
from hwsearch.sensitivity.work import WorkFactory
from hwsearch.separator.prepare import PreparedBase, prepare_base
from hwsearch.separator.untrained import untrained_sites
from hwsearch.workspace import Workspace

DEFAULT_METHODS = (
    "measured-noise-ratio",
    "output-noise-ratio",
    "kl",
    "curvature",
    "average-curvature",
    "gradient",
    "fisher",
)
"""Methods that need no training, without their variants."""

Progress = Callable[[int, int], None]


def sensitivity_folder(workspace: Workspace) -> Path:
    """Return the folder of an experiment's sensitivities."""
    return workspace.folder / "sensitivity"


def table_path(workspace: Workspace, method: str) -> Path:
    """Return the path of a method's table."""
    return sensitivity_folder(workspace) / f"{method}.json"


def parse_methods(names: Sequence[str]) -> tuple[str, ...]:
    """Check the names of methods, and drop repeated ones.

    Raises:
        UserError: a name is unknown.
    """
    for name in names:
        if name not in SENSITIVITIES:
            raise UserError(f"unknown method '{name}'; wanted one of {', '.join(SENSITIVITIES)}")
    return tuple(dict.fromkeys(names))


def needs_pool(methods: Sequence[str]) -> bool:
    """Whether any of the methods needs training examples."""
    return any(Kind.TRAINING in kinds_of(method) for method in methods)


def check_sensitivity(experiment: Experiment, methods: Sequence[str], candidates: Candidates) -> None:
    """Refuse, before any work, an experiment that `ensure` would refuse.

    Raises:
        UserError: a site or width cannot be quantized, there are no validation mixtures, or recoverability has nothing to train
            on.
    """
    check_candidates(untrained_sites(experiment).all, candidates)
    if Split.VALIDATION not in experiment.data.mixtures.count:
        raise UserError(f"experiment '{experiment.name}' makes no validation mixtures; wanted data.mixtures.count.validation")
    if needs_pool(methods):
        check_trainable(experiment)


def ensure(
    workspace: Workspace,
    methods: Sequence[str],
    candidates: Candidates,
    *,
    pool: Path | None = None,
    workers: int = 0,
    ray_address: str | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[str, SensitivityTable]:
    """Return the tables of an experiment by method, after estimating the missing ones.

    The result of every job is kept as soon as it is done. So after Ctrl-C or a kill the same call goes on, and a method, site or
    width that is added later costs only its own jobs. Tables depend neither on the number of workers nor on interruptions.

    Args:
        workspace: of the experiment; its data are built.
        methods: names, such as those of `search.priors`.
        candidates: sites and widths, such as `SearchSpace.free_sites`.
        pool: training examples, for methods that train (`needs_pool`).
        workers: Ray workers; with none, jobs run in this process without Ray.
        ray_address: a running cluster instead of a local one.
        progress: called with (done, total) effort of the jobs that were missing.

    Raises:
        UserError: a method is unknown, `check_sensitivity` refuses the experiment, the base or data set is unusable, the kept
            sensitivities depend on other inputs (names which), a loss is no number (names mixture or site), or the workers of a
            job keep dying.
    """
    experiment = workspace.experiment
    wanted = parse_methods(methods)
    check_sensitivity(experiment, wanted, candidates)
    if needs_pool(wanted) and pool is None:
        raise ValueError("recoverability wants training examples")
    base = prepare_base(
        experiment, workspace.base_path, workspace.data_folder, workspace.calibration_path, experiment.search.weight_bits
    )
    validation = open_dataset(workspace.data_folder, Split.VALIDATION)[: experiment.sensitivity.mixtures]
    mixtures = [mixture.id for mixture in validation]
    factory = WorkFactory(
        experiment,
        workspace.base_path.resolve(),
        workspace.data_folder.resolve(),
        workspace.calibration_path.resolve(),
        None if pool is None else pool.resolve(),
    )
    with open_journal(sensitivity_folder(workspace), _parts(workspace, wanted, base, len(mixtures), pool)) as journal:
        results = Results()
        for result in journal.results:
            _check_samples(result, wanted, len(mixtures), sensitivity_folder(workspace))
            results.add(result)
        jobs = missing_jobs(wanted, candidates, mixtures, results)
        if jobs:
            progress(0, sum(job.effort for job in jobs))
            with _executor(factory, min(workers, len(jobs)), ray_address) as executor:
                run_and_keep(executor, jobs, journal, results, progress)
        tables = {method: make_table(method, candidates, mixtures, results) for method in wanted}
        for method, table in tables.items():
            write_sealed_json(table_path(workspace, method), table.to_json())
    return tables


def _check_samples(result: Result, methods: Sequence[str], mixtures: int, folder: Path) -> None:
    """Refuse a kept result whose number of mixtures differs from the one that its method needs.

    Raises:
        UserError: the numbers differ. The message names the result.
    """
    wanted = any(result.kind in kinds_of(method) for method in methods)
    if wanted and result.samples and len(result.samples) != mixtures:
        raise UserError(
            f"{folder / JOBS_FILE}: '{result.kind}' of '{result.subject}' holds samples of {len(result.samples)} mixtures; "
            f"wanted {mixtures}: delete {folder} and the sensitivities are made again"
        )


def make_table(method: str, candidates: Candidates, mixtures: Sequence[str], results: Results) -> SensitivityTable:
    """Make the table of a method from the results of all its jobs.

    Args:
        method: name of the method.
        candidates: sites and widths.
        mixtures: ids. Traces and trainings cover all of them.
        results: all results that the method needs.
    """
    sites, widths = [site for site, _ in candidates], all_widths(candidates)

    def of_mixtures(quantity: str) -> list[NDArray[np.float64]]:
        return [results.of_mixture(quantity, mixture, candidates) for mixture in mixtures]

    match method:
        case "curvature" | "average-curvature":
            errors = of_mixtures(SQUARED_ERROR if method == "curvature" else MEAN_SQUARED_ERROR)
            traces = {site: Trace(results.traces[site]) for site in sites}
            return curvature_table(sites, widths, traces, errors, method)
        case "recoverability":
            values = np.stack(of_mixtures("output-noise-ratio"))
            for row, (site, tried) in enumerate(candidates):
                for bits in tried:
                    if bits < TRAINED_BELOW_BITS:
                        full_precision, quantized = results.trained[FULL_PRECISION, None], results.trained[site, bits]
                        values[:, row, widths.index(bits)] = lost_noise_ratio(full_precision, quantized)
            return over_mixtures(method, sites, widths, values)
        case _:
            return over_mixtures(method, sites, widths, of_mixtures(method))


def kept_tables(workspace: Workspace, candidates: Candidates) -> list[SensitivityTable]:
    """Return the kept tables, of any method, that have exactly these sites and widths.

    Raises:
        UserError: a broken table.
    """
    shape = tuple(site for site, _ in candidates), all_widths(candidates)
    paths = [path for path in (table_path(workspace, method) for method in SENSITIVITIES) if path.is_file()]
    tables = map(read_table, paths)
    return [table for table in tables if (table.sites, table.widths) == shape]


def read_table(path: Path) -> SensitivityTable:
    """Read a table that `ensure` wrote.

    Raises:
        UserError: no such file, or a broken table.
    """
    content = read_sealed_json(path, "a sensitivity table", "delete it and it is made again")
    return SensitivityTable.from_json(content, str(path))


def run_and_keep(
    executor: Executor[Job, tuple[Result, ...]],
    jobs: Sequence[Job],
    journal: ResultJournal,
    results: Results,
    progress: Progress,
) -> None:
    """Run jobs, and keep the results of each as they arrive.

    Raises:
        UserError: a job failed, which is raised when all others are done; or a job raised a `UserError`, which is passed on at
            once.
    """
    done, total = 0, sum(job.effort for job in jobs)
    failures = []
    for outcome in run_jobs(executor, jobs):
        job = jobs[outcome.key]
        if outcome.result is None:
            failures.append(f"{job}: {outcome.error}")
        else:
            for result in outcome.result:
                journal.append(result)
                results.add(result)
        done += job.effort
        progress(done, total)
    if failures:
        raise UserError(
            f"sensitivity: {len(failures)} of {len(jobs)} jobs failed, the first: {failures[0]}; the others are kept, and the "
            "same command tries again"
        )


def _parts(workspace: Workspace, methods: Sequence[str], base: PreparedBase, mixtures: int, pool: Path | None) -> dict[str, Any]:
    """Return what the jobs of these methods depend on, apart from the mixture, site or width itself."""
    experiment, config = workspace.experiment, workspace.experiment.sensitivity
    kinds = {kind for method in methods for kind in kinds_of(method)}
    parts: dict[str, Any] = {
        "base": base.base_sha256,
        "validation set": manifest_hash(workspace.data_folder, Split.VALIDATION),
        "[quantization]": experiment.quantization.model_dump(mode="json"),
        "calibration": digest(base.calibration.to_json()),
    }
    if Kind.TRACE in kinds:
        settings = config.model_dump(mode="json", include={"probe", "relative_error", "max_probes"})
        parts["[sensitivity]"] = {"mixtures": mixtures, "seed": experiment.seed, **settings}
    if Kind.TRAINING in kinds and pool is not None:
        parts["[qat]"] = {
            "mixtures": mixtures,
            "seed": experiment.seed,
            "recoverability_steps": config.recoverability_steps,
            "training examples": pool.stem,
            **experiment.qat.model_dump(mode="json", exclude={"steps", "full_steps"}),
        }
    return parts


def _executor(factory: WorkFactory, workers: int, ray_address: str | None) -> Executor[Job, tuple[Result, ...]]:
    if workers == 0:
        return LocalExecutor(factory)
    attempts, each = factory.experiment.search.max_attempts, factory.experiment.workers.one_core
    return RayExecutor(factory, workers, max_attempts=attempts, ray_address=ray_address, each=each)
