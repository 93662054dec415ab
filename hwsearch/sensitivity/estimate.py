"""Sensitivity tables of an experiment: missing entries are estimated, on workers if there are any, and kept."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsearch.data.dataset import manifest_hash, open_dataset
from hwsearch.errors import UserError
from hwsearch.executor import Executor, open_executor, run_jobs
from hwsearch.experiment import Experiment, Split
from hwsearch.extensions import SENSITIVITIES
from hwsearch.files.reading import digest, file_digest
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
from hwsearch.sensitivity.methods import Kind
from hwsearch.sensitivity.recoverability import check_trainable
from hwsearch.sensitivity.scores import noise_ratio
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
"""Called with the effort of the jobs that are done, and of all."""


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
    """Refuse an experiment that `ensure` would refuse, before any work.

    Raises:
        UserError: a site or width cannot be quantized, there are no validation mixtures, or recoverability has nothing to train
            on.
    """
    check_candidates(untrained_sites(experiment).all, candidates)
    if not experiment.data.fixed_count(Split.VALIDATION):
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

    The result of every job is kept as soon as it is done. So the same call goes on after Ctrl-C or a kill, and a method, site or
    width that is added later costs only its own jobs. Tables depend neither on the number of workers nor on interruptions.

    Args:
        workspace: the experiment's workspace, with its data built.
        methods: names of known methods.
        candidates: sites and widths, such as `SearchSpace.free_sites`.
        pool: training examples, for methods that train (`needs_pool`).
        workers: number of Ray workers; with 0, jobs run in this process without Ray.
        ray_address: a running cluster instead of a local one.
        progress: told of the jobs that were missing.

    Raises:
        UserError: `check_sensitivity` refuses the experiment, the base or data set is unusable, the kept sensitivities depend on
            other inputs, a loss is not finite, or the workers of a job keep dying. The message says which.
    """
    experiment = workspace.experiment
    check_sensitivity(experiment, methods, candidates)
    if needs_pool(methods) and pool is None:
        raise ValueError("recoverability wants training examples")
    base = prepare_base(
        experiment, workspace.base_path, workspace.data_folder, workspace.calibration_path, experiment.search.weight_bits
    )
    validation = open_dataset(workspace.data_folder, Split.VALIDATION)[: experiment.sensitivity.mixtures]
    mixtures = [mixture.id for mixture in validation]
    folder = sensitivity_folder(workspace)
    with open_journal(folder, _parts(workspace, methods, base, len(mixtures), pool)) as journal:
        results = Results()
        for result in journal.results:
            _check_samples(result, methods, len(mixtures), folder)
            results.add(result)
        jobs = missing_jobs(methods, candidates, mixtures, results)
        if jobs:
            progress(0, sum(job.effort for job in jobs))
            with open_executor(
                WorkFactory.of(workspace, pool),
                min(workers, len(jobs)),
                max_attempts=experiment.search.max_attempts,
                ray_address=ray_address,
                each=experiment.workers.one_core,
            ) as executor:
                run_and_keep(executor, jobs, journal, results, progress)
        tables = {method: make_table(method, candidates, mixtures, results) for method in methods}
        for method, table in tables.items():
            write_sealed_json(table_path(workspace, method), table.to_json())
    return tables


def _check_samples(result: Result, methods: Sequence[str], mixtures: int, folder: Path) -> None:
    """Refuse a kept result that a method needs if it holds samples of another number of mixtures."""
    wanted = any(result.kind in kinds_of(method) for method in methods)
    if wanted and result.samples and len(result.samples) != mixtures:
        raise UserError(
            f"{folder / JOBS_FILE}: '{result.kind}' of '{result.subject}' holds samples of {len(result.samples)} mixtures; "
            f"wanted {mixtures}: delete {folder} and the sensitivities are made again"
        )


def make_table(method: str, candidates: Candidates, mixtures: Sequence[str], results: Results) -> SensitivityTable:
    """Make the table of a method from the results of all its jobs. Traces and trainings cover all mixtures."""
    sites, widths = [site for site, _ in candidates], all_widths(candidates)

    def of_mixtures(quantity: str) -> list[NDArray[np.float64]]:
        return [results.of_mixture(quantity, mixture, candidates) for mixture in mixtures]

    match method:
        case "curvature" | "average-curvature":
            errors = of_mixtures(SQUARED_ERROR if method == "curvature" else MEAN_SQUARED_ERROR)
            return curvature_table(method, sites, widths, [Trace(results.traces[site]) for site in sites], errors)
        case "recoverability":
            values = np.stack(of_mixtures("output-noise-ratio"))
            for row, (site, tried) in enumerate(candidates):
                for bits in tried:
                    if bits < TRAINED_BELOW_BITS:
                        lost_db = results.trained[FULL_PRECISION, None] - results.trained[site, bits]
                        values[:, row, widths.index(bits)] = noise_ratio(lost_db)
            return over_mixtures(method, sites, widths, values)
        case _:
            return over_mixtures(method, sites, widths, of_mixtures(method))


def kept_tables(workspace: Workspace, candidates: Candidates) -> list[SensitivityTable]:
    """Return the kept tables, of any method, that have exactly these sites and widths.

    Raises:
        UserError: a table is broken.
    """
    shape = tuple(site for site, _ in candidates), all_widths(candidates)
    paths = [path for path in (table_path(workspace, method) for method in SENSITIVITIES) if path.is_file()]
    tables = map(read_table, paths)
    return [table for table in tables if (table.sites, table.widths) == shape]


def read_table(path: Path) -> SensitivityTable:
    """Read a table that `ensure` wrote.

    Raises:
        UserError: there is no such file, or the table is broken.
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
    """Run jobs, and keep their results as they arrive.

    Raises:
        UserError: a job raised one, which ends the others at once; or a job failed otherwise, which is raised after all others
            are done.
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
    """Return the inputs and settings that the jobs of these methods depend on."""
    experiment, config = workspace.experiment, workspace.experiment.sensitivity
    kinds = {kind for method in methods for kind in kinds_of(method)}
    parts: dict[str, Any] = {
        "base": base.base_sha256,
        "validation set": manifest_hash(workspace.data_folder, Split.VALIDATION),
        "[quantization]": experiment.quantization.model_dump(mode="json"),
        "calibration": digest(base.calibration.to_json()),
    }
    if experiment.search.uses_shared:
        parts["shared network"] = file_digest(workspace.shared_path)
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
