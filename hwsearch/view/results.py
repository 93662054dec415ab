"""What the user sees: progress bars, tables, and where things were written."""

import math
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.markup import escape
from rich.table import Table

from hw_models.figures import significant
from hwsearch.data.build import check_data
from hwsearch.data.dataset import manifest_hash, open_dataset
from hwsearch.errors import UserError
from hwsearch.evaluation import System, check_comparable, check_recogniser, compare, read_figures, summarise, to_json
from hwsearch.executor import check_workers
from hwsearch.experiment import Experiment, Fidelity, Split, WorkersConfig
from hwsearch.export.folder import EXPORT_FOLDER, GRAPH_FILES
from hwsearch.files import atomic_write_json, file_digest
from hwsearch.front.candidates import DROP, CandidateTable
from hwsearch.front.plot import plot_front
from hwsearch.front.query import Condition, Order, query, to_csv, to_table
from hwsearch.front.query import to_json as table_to_json
from hwsearch.front.rungs import rung_correlations
from hwsearch.interrupts import stop_code
from hwsearch.metrics.statistics import Estimate
from hwsearch.pipeline import (
    PLOT_FILE,
    Run,
    build,
    candidate_system,
    check,
    check_provenance,
    check_searched,
    choose,
    chosen_candidate,
    evaluate_system,
    export,
    float_system,
    load_float_base,
    needs_training,
    prepare,
    read_run,
    trained_state,
    within_limits,
)
from hwsearch.printable import printable
from hwsearch.search.costing import experiment_workload
from hwsearch.search.drivers import DriverAccount, Step, driver_account
from hwsearch.search.exact.costs import size_cost
from hwsearch.search.exact.front import front_at
from hwsearch.search.folder_lock import FolderLock
from hwsearch.search.objectives import DROP_CI95, SIZE, UTTERANCES
from hwsearch.search.priors import prior_problem, separable_loss
from hwsearch.search.progress import SearchSummary
from hwsearch.search.space import SearchSpace, build_space
from hwsearch.search.studies.address import StorageAddress
from hwsearch.search_display import search_display
from hwsearch.searching import check_storage, search
from hwsearch.sensitivity.estimate import (
    DEFAULT_METHODS,
    check_sensitivity,
    ensure,
    kept_tables,
    needs_pool,
    parse_methods,
    sensitivity_folder,
    table_path,
)
from hwsearch.sensitivity.plot import plot_bits, plot_tables
from hwsearch.sensitivity.table import Method, SensitivityTable
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.untrained import untrained_sites
from hwsearch.terminal import Advance, progress_bar, say, tell, wide
from hwsearch.training.base import Reports, train_base, trained_path
from hwsearch.training.checkpoint import TrainingProgress
from hwsearch.workspace import Workspace

if TYPE_CHECKING:
    from hwsearch.export.runtime import OnnxSeparator
    from hwsearch.export.verify import VerificationReport

FRAGILE_SITES = 5
"""Sites listed for each method."""

SIZES_SHOWN = 3
"""Sizes between the smallest and the largest allocation whose bits are drawn."""

FIGURES = (
    ("SI-SNR in, dB", "mixture_si_snr_db", "{:.2f}", 1.0),
    ("SI-SNR, dB", "si_snr_db", "{:.2f}", 1.0),
    ("improvement, dB", "si_snr_improvement_db", "{:.2f}", 1.0),
    ("PESQ in", "mixture_pesq", "{:.2f}", 1.0),
    ("PESQ", "pesq", "{:.2f}", 1.0),
    ("STOI in", "mixture_stoi", "{:.3f}", 1.0),
    ("STOI", "stoi", "{:.3f}", 1.0),
    ("WER in, %", "mixture_wer", "{:.1f}", 100.0),
    ("WER, %", "wer", "{:.1f}", 100.0),
    ("WER clean, %", "target_wer", "{:.1f}", 100.0),
)
"""Columns of the evaluation: heading, figure, format, factor."""


def run_main_job(
    workspace: Workspace, processes: int, workers: int, ray_address: str | None, storage: StorageAddress | None = None
) -> None:
    """Data, base, search, front, export; ends with where things are and what to try next.

    What was found is shown before anything that failed behind the search is said.

    Raises:
        UserError: what the search refuses or stops with; at the very end, what could not be drawn, chosen or exported.
    """
    search_with_progress(workspace, processes, workers, ray_address, storage, may_train=True)
    opened = read_run(workspace.folder)
    where = _fitting(opened)
    print_candidates(query(opened.table, where), "table", where)
    failures: list[str] = []
    for step in (_plot_front, _export_chosen):
        try:
            step(opened)
        except UserError as failure:
            failures.append(str(failure))
    if failures:
        raise UserError("; ".join(failures))


def _fitting(run: Run) -> list[Condition]:
    """`search.limits` as conditions; none where no candidate meets them, so that what was found is shown all the same."""
    where = within_limits(run.workspace.experiment.search.limits)
    return where if len(query(run.table, where)) else []


def _plot_front(run: Run) -> None:
    plot = run.workspace.folder / PLOT_FILE
    plot_run(run, _fitting(run), plot)
    say(f"plot:   {plot}")


def _export_chosen(run: Run) -> None:
    """Choose a candidate, say why and how surely, export it, and say what to try next.

    Raises:
        UserError: there is none to choose, or it cannot be exported.
    """
    experiment, folder = run.workspace.experiment, run.workspace.folder / EXPORT_FOLDER
    chosen = choose(run.table, experiment.export.max_drop_db, experiment.search.limits)
    say(f"chosen: {_why_chosen(run, chosen)}")
    if doubt := _doubt(run, chosen):
        say(f"        {doubt}")
    tell(f"exporting candidate {chosen} and comparing it with the Brevitas network")
    try:
        report = export(run, chosen, "onnx", folder)
    except UserError as error:
        raise UserError(
            f"candidate {chosen} was not exported: {error}; 'hwsearch export {run.workspace.folder} --candidate N --output DIR' "
            "exports another one of the table"
        ) from None
    print_export(report, folder)
    say("next:   " + _next_command(run.workspace, folder))


def build_with_progress(workspace: Workspace, processes: int, account: DriverAccount | None = None) -> None:
    """Build the data, showing how many rooms and mixtures are there, also to who reads the driver's account."""
    with progress_bar(Step.DATA.value) as shown:
        built = build(workspace, processes, _told(shown, account, Step.DATA))
    tell(f"data: {built.folder}")


def train_with_progress(workspace: Workspace, processes: int, account: DriverAccount | None = None) -> TrainingProgress:
    """Train a base, showing rooms, steps and epochs; the steps also to who reads the driver's account."""
    config = workspace.experiment.training
    done_before = 0
    with progress_bar("rooms") as on_rooms, progress_bar("training") as shown:
        advance = _told(shown, account, Step.BASE)

        def on_step(step: int, steps: int, loss: float) -> None:
            del loss
            advance(done_before * steps + step, config.epochs * steps)

        def on_epoch(progress: TrainingProgress) -> None:
            nonlocal done_before
            done_before = progress.epoch
            loss, score = progress.history[-1]
            tell(
                f"epoch {progress.epoch}/{config.epochs}: training loss {loss:.2f} dB, validation SI-SNR improvement "
                f"{score:.2f} dB (best {progress.best_score_db:.2f} in epoch {progress.best_epoch})"
            )

        progress = train_base(workspace, processes, Reports(on_rooms, on_step, on_epoch))
    tell(f"base: {trained_path(workspace)}")
    return progress


def search_with_progress(
    workspace: Workspace,
    processes: int,
    workers: int,
    ray_address: str | None,
    storage: StorageAddress | None = None,
    *,
    may_train: bool,
) -> SearchSummary:
    """Data, the base where it may be trained, and the search, showing how far each is; an interrupted search ends the program
    (`stop_code`). The run folder is held, and the driver's account kept, from the data on.

    Raises:
        UserError: what the search would refuse, before anything is done; what goes wrong later.
    """
    check_workers(workers, ray_address, workspace.experiment.workers)
    check(workspace, may_train=may_train)
    if storage is not None:
        check_storage(workspace, storage)
    with FolderLock(workspace.folder) as lock, driver_account(workspace.folder) as account:
        account.step(Step.DATA)
        build_with_progress(workspace, processes, account)
        if may_train and needs_training(workspace):
            account.step(Step.BASE)
            train_with_progress(workspace, processes, account)
        account.step(Step.PREPARATION)
        with search_display(workspace, account) as (reports, log):
            summary = search(workspace, processes, workers, ray_address, reports, storage, lock)
            account.end_of(summary)
            log(str(summary))
            if summary.shared is not None:
                log(summary.shared)
    tell(str(summary))
    if summary.shared is not None:
        tell(summary.shared)
    if summary.interrupted:
        sys.exit(stop_code())
    for correlation in rung_correlations(workspace.folder):
        tell(str(correlation))
    return summary


def sensitivity_with_progress(
    workspace: Workspace, methods: Sequence[str], processes: int, workers: int, ray_address: str | None, experiment_path: Path
) -> None:
    """Estimate sensitivities and draw them; ends with the sites that lose most, where everything is, and what to try next.

    Raises:
        UserError: an unknown method, an unusable experiment or base, or sensitivities made with something else.
    """
    experiment = workspace.experiment
    wanted = parse_methods(methods) or DEFAULT_METHODS
    space = build_space(experiment.search, untrained_sites(experiment))
    check_sensitivity(experiment, wanted, space.free_sites)
    check_workers(workers, ray_address, WorkersConfig())
    check(workspace, may_train=False)
    build_with_progress(workspace, processes)
    pool = _pool_with_progress(workspace, processes) if needs_pool(wanted) else None
    with progress_bar("sensitivities") as advance:
        tables = ensure(
            workspace, wanted, space.free_sites, pool=pool, workers=workers, ray_address=ray_address, progress=advance
        )
    heat_map, bars = (sensitivity_folder(workspace) / name for name in ("sensitivities.png", "bits.png"))
    plot_tables(kept_tables(workspace, space.free_sites), heat_map, f"sensitivities of {experiment.name}")
    chosen = Method.OUTPUT_NOISE if Method.OUTPUT_NOISE in tables else wanted[0]
    sites = tables[chosen].sites
    plot_bits(_exact_allocations(tables[chosen], space, experiment), sites, bars, f"{experiment.name}: exact for {chosen}")
    wide().print(_most_fragile(list(tables.values())))
    for method in tables:
        say(f"table:  {table_path(workspace, method)}")
    say(f"plot:   {heat_map}")
    say(f"plot:   {bars}")
    program = "hwsearch" if shutil.which("hwsearch") else sys.argv[0]
    say("next:   " + shlex.join([program, "search", str(experiment_path), "--runs-dir", str(workspace.runs)]))


def print_front(
    run: Run, where: Sequence[Condition], order: Order | None, output_format: str, *, everything: bool, plot: Path | None
) -> None:
    """The candidates of a run that meet every condition, or the front of these; with `plot` both as a picture, too.

    Raises:
        UserError: an unknown column, or nothing to draw.
    """
    answer = query(run.table, where, order, only_front=not everything)
    if plot is not None:
        plot_run(run, where, plot)
    print_candidates(answer, output_format, where)
    if plot is not None:
        tell(f"plot: {plot}")


def plot_run(run: Run, where: Sequence[Condition], path: Path) -> None:
    """Draw the candidates that meet every condition, their front, and the candidate that is chosen for export.

    Raises:
        UserError: an unknown column, nothing to draw, or no place to write.
    """
    shown = query(run.table, where, only_front=False)
    if len(shown) == 0:
        raise UserError(f"{_none_met(run.table, where)}; wanted at least one to draw")
    title = run.workspace.experiment.name + (f", {_in_words(where)}" if where else "")
    plot_front(shown, path, title, chosen_candidate(run))


def print_candidates(table: CandidateTable, output_format: str, where: Sequence[Condition]) -> None:
    """Candidates that meet every condition, as a table for people, or as exact JSON or CSV."""
    if output_format == "json":
        sys.stdout.write(table_to_json(table) + "\n")
    elif output_format == "csv":
        sys.stdout.write(printable(to_csv(table), keep="\n"))
    elif len(table):
        wide().print(to_table(table, [condition.column for condition in where]))
    else:
        tell(_none_met(table, where))


def _none_met(table: CandidateTable, where: Sequence[Condition]) -> str:
    scored = f"candidate scored at '{table.fidelity.value}'"
    return f"no {scored} meets {_in_words(where)}" if where else f"there is no {scored} yet"


def _in_words(where: Sequence[Condition]) -> str:
    return " and ".join(map(str, where))


def print_export(report: "VerificationReport", folder: Path) -> None:
    """Where an export is and what its verification found."""
    content = report.to_json()
    graphs = [folder / name for name in GRAPH_FILES.values() if (folder / name).is_file()]
    say(f"model:  {graphs[0]}")
    say(
        f"        verified in {content['runtime']}: {content['quantized_values']} integers judged, {content['ties']} ties; "
        f"output within {content['max_abs_difference']:.2g} of the Brevitas network"
    )


def evaluate_with_progress(
    workspace: Workspace,
    candidate: int | None,
    model: Path | None,
    report: Path | None,
    against: Path | None,
    processes: int,
    fidelity: Fidelity | None = None,
) -> None:
    """Score a base, a candidate or an exported model on the test mixtures and print a row per angle bin.

    Raises:
        UserError: both a candidate and a model are named, there is no such one, no test mixtures, or a report that cannot be
            written.
    """
    experiment = workspace.experiment
    if candidate is not None and model is not None:
        raise UserError("--candidate and --model exclude each other; wanted one of them")
    if Split.TEST not in experiment.data.mixtures.count:
        raise UserError(f"experiment '{experiment.name}' makes no test mixtures; wanted data.mixtures.count.test")
    check_recogniser(experiment.evaluation)
    others = None if against is None else read_figures(against)
    check_data(experiment, workspace.data_folder, workspace.corpora_folder)
    _check_subject(workspace, candidate, model, fidelity)
    build_with_progress(workspace, processes)
    if others is not None:
        mixtures = open_dataset(workspace.data_folder, Split.TEST)
        check_comparable({mixture.id: mixture.target.utterance for mixture in mixtures}, others)
    system, name = _subject(workspace, candidate, model, fidelity)
    with progress_bar("test mixtures") as advance:
        results = evaluate_system(system, workspace, advance)
    summaries = summarise(results, experiment.evaluation.angle_bins_deg, experiment.seed)
    table = Table(
        "angle, deg", "n", *(heading for heading, *_ in FIGURES), title=f"{escape(name)}, test mixtures of {experiment.name}"
    )
    for summary in summaries:
        low, high = summary.angles_deg
        cells = [_interval(summary.figures.get(key), text, factor) for _, key, text, factor in FIGURES]
        table.add_row(f"{low:g}-{high:g}", str(summary.utterances), *cells)
    wide().print(table)
    say(f"95 % confidence intervals; words: {_words(results, experiment)}")
    for key in sorted({key for result in results for key in result.unavailable}):
        missing = [result.id for result in results if key in result.unavailable]
        say(f"no {key} for {len(missing)}: {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}")
    tests = {} if others is None else compare(results, others, experiment.seed)
    for key, test in tests.items():
        chance = "" if test.p_value is None else f", p = {significant(test.p_value, 2)}"
        counts = f"{test.n} mixtures of {test.groups} utterances"
        say(f"{key} against {against}: {test.difference:+.3f}{chance} ({test.method}, {counts})")
    if report is not None:
        made_by = {
            "system": name,
            "experiment": experiment.name,
            "experiment_digest": experiment.digest(),
            "seed": experiment.seed,
            "quantization": experiment.quantization.model_dump(),
            **_allocation_of(workspace, candidate, fidelity),
            "versions": {name: version(name) for name in ("hwsearch", "torch", "numpy", "pesq", "pystoi", "jiwer")},
            "against": {key: asdict(test) for key, test in tests.items()},
            "recogniser": experiment.evaluation.recogniser,
            **({"model_sha256": file_digest(model)} if model else {"base_sha256": file_digest(workspace.base_path)}),
            "test_sha256": manifest_hash(workspace.data_folder, Split.TEST),
        }
        atomic_write_json(report, {"made_by": made_by, **to_json(results, summaries)})
        say(f"figures: {report}")


def _told(shown: Advance, account: DriverAccount | None, step: Step) -> Advance:
    """Progress that goes to a bar and, where a driver keeps one, into its account."""

    def advance(done: int, total: int) -> None:
        shown(done, total)
        if account is not None:
            account.step(step, done, total)

    return advance


def _pool_with_progress(workspace: Workspace, processes: int) -> Path:
    from hwsearch.training.pool import build_pool

    with progress_bar("training examples") as advance:
        return build_pool(workspace, processes, advance)


def _most_fragile(tables: Sequence[SensitivityTable]) -> Table:
    """The sites that lose most by each method, at their narrowest width."""
    shown = Table("method", "site", "bits", "sensitivity", "unit", title=f"most fragile sites, {tables[0].mixtures} mixtures")
    for table in tables:
        narrowest = np.isfinite(table.value).argmax(axis=1)
        rows = np.arange(len(table.sites))
        order = np.argsort(-table.value[rows, narrowest], kind="stable")[:FRAGILE_SITES].tolist()
        for row in order:
            column = narrowest[row]
            error = table.standard_error[row, column]
            value = significant(table.value[row, column], 3) + ("" if np.isnan(error) else f" ± {significant(error, 2)}")
            first = row == order[0]
            shown.add_row(
                table.method if first else "",
                table.sites[row],
                str(table.widths[column]),
                value,
                table.method.unit if first else "",
                end_section=row == order[-1],
            )
    return shown


def _exact_allocations(table: SensitivityTable, space: SearchSpace, experiment: Experiment) -> dict[str, BitAllocation]:
    """The allocations that lose least by a table at a few sizes, by size."""
    cost = size_cost(experiment_workload(experiment), space.widths)
    problem = prior_problem(space, separable_loss(table, space), [cost])
    narrowest = np.zeros((1, len(space.widths)), np.int8)
    widest = np.array([[len(widths) - 1 for _, widths in space.widths]], np.int8)
    least, most = (float(problem.cost_of(SIZE, indices)[0]) for indices in (narrowest, widest))
    front = front_at(problem, SIZE, np.geomspace(least, most, SIZES_SHOWN + 2)[1:-1].tolist())
    return {
        f"{size / 1000:.1f} kB": problem.allocation(indices)
        for size, indices in zip(front.costs.tolist(), front.indices, strict=True)
    }


def _check_subject(workspace: Workspace, candidate: int | None, model: Path | None, fidelity: Fidelity | None) -> None:
    """Refuse what cannot be judged, before data are built for it."""
    if model is not None:
        _open_model(workspace, model)
    elif candidate is not None:
        read_run(workspace.folder, fidelity).row(candidate)
        check_searched(workspace)
    else:
        load_float_base(workspace)


def _open_model(workspace: Workspace, model: Path) -> "OnnxSeparator":
    from hwsearch.export.runtime import OnnxSeparator

    separator = OnnxSeparator(model, threads=1)
    found = (separator.description.sample_rate, separator.description.array)
    wanted = (workspace.experiment.data.sample_rate, workspace.experiment.data.array)
    if found != wanted:
        raise UserError(
            f"{model}: made for {found[0]} Hz and '{found[1]}'; the test mixtures are {wanted[0]} Hz and '{wanted[1]}'"
        )
    return separator


def _subject(workspace: Workspace, candidate: int | None, model: Path | None, fidelity: Fidelity | None) -> tuple[System, str]:
    if model is not None:
        return _open_model(workspace, model).separate, str(model)
    if candidate is not None:
        opened = read_run(workspace.folder, fidelity)
        allocation = opened.allocation(candidate)
        check_provenance(workspace)
        prepared = prepare(workspace)
        return candidate_system(prepared, allocation, trained_state(opened, prepared, candidate)), f"candidate {candidate}"
    return float_system(load_float_base(workspace)), "full-precision base"


def _allocation_of(workspace: Workspace, candidate: int | None, fidelity: Fidelity | None) -> dict[str, object]:
    if candidate is None:
        return {"allocation": None, "fidelity": None}
    opened = read_run(workspace.folder, fidelity)
    return {"allocation": opened.allocation(candidate).to_json(), "fidelity": opened.table.fidelity.value}


def _next_command(workspace: Workspace, export_folder: Path) -> str:
    """Separating the first test mixture, with its true direction."""
    split = Split.TEST if Split.TEST in workspace.experiment.data.mixtures.count else Split.VALIDATION
    mixture = open_dataset(workspace.data_folder, split)[0]
    recording = workspace.data_folder / mixture.mixture_path
    model, doa = export_folder / GRAPH_FILES["onnx"], f"{mixture.target.doa_deg:.1f}"
    program = "hwsearch" if shutil.which("hwsearch") else sys.argv[0]
    direction = [] if workspace.experiment.separator.spectral is None else ["--doa", doa]
    return shlex.join([program, "separate", str(model), "--input", str(recording), *direction, "--output", "target.wav"])


def _why_chosen(run: Run, chosen: int) -> str:
    limit = run.workspace.experiment.export.max_drop_db
    limits = " within search.limits" if run.workspace.experiment.search.limits else ""
    if run.table.columns[DROP][run.row(chosen)] <= limit:
        return f"candidate {chosen}, the smallest{limits} that loses at most {limit} dB"
    return f"candidate {chosen}, the best-sounding one{limits}: none loses at most {limit} dB"


def _doubt(run: Run, chosen: int) -> str | None:
    """What to say where the chosen candidate's drop is known less exactly than `export.max_drop_db` asks for."""
    limit = run.workspace.experiment.export.max_drop_db
    row = run.row(chosen)
    drop, mixtures = (float(run.table.columns[name][row]) for name in (DROP, UTTERANCES))
    counted = f"on {mixtures:.0f} validation mixture" + ("s" if mixtures != 1 else "")
    margins = run.table.columns.get(DROP_CI95)
    if margins is None or math.isnan(margins[row]):
        return f"it loses {drop:.2f} dB {counted}; no confidence interval of that is known"
    if 2 * margins[row] <= limit:
        return None
    interval = f"it loses {drop:.2f} ± {margins[row]:.2f} dB {counted}"
    return (
        f"{interval}, an interval wider than the {limit:g} dB of export.max_drop_db; more mixtures may choose another candidate"
    )


def _words(results: Sequence[object], experiment: Experiment) -> str:
    known = sum(bool(getattr(result, "words", None)) for result in results)
    recogniser = {
        "none": "no recogniser",
        "ctc-digits": "digit CTC recogniser (closed vocabulary: zero to nine)",
        "pocketsphinx-closed": "pocketsphinx, closed vocabulary from the test transcripts",
    }[experiment.evaluation.recogniser]
    return f"{recogniser}, {known} of {len(results)} mixtures"


def _interval(estimate: Estimate | None, text: str, factor: float) -> str:
    if estimate is None:
        return ""
    value = text.format(factor * estimate.value)
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{text.format(factor * estimate.low)}, {text.format(factor * estimate.high)}]"
