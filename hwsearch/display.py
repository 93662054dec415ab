"""What the user sees: progress bars, tables, and where things were written."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from hw_models.errors import TargetError
from hw_models.report import cost_rows
from hw_models.target import built_in_targets, load_target
from hw_models.workload import bits_matrix
from hwsearch.data.dataset import manifest_hash
from hwsearch.errors import UserError
from hwsearch.evaluation import System, summarise, to_json
from hwsearch.experiment import Experiment, Split, load_experiment
from hwsearch.export.candidate import GRAPH_FILES
from hwsearch.export.runtime import OnnxSeparator
from hwsearch.export.verify import VerificationReport
from hwsearch.files import atomic_write_json
from hwsearch.front.candidates import CandidateTable
from hwsearch.front.plot import plot_front
from hwsearch.front.query import query, to_csv, to_table
from hwsearch.front.query import to_json as table_to_json
from hwsearch.metrics.statistics import Estimate
from hwsearch.pipeline import (
    build,
    candidate_system,
    check_provenance,
    choose,
    evaluate_system,
    export,
    float_system,
    load_float_base,
    prepare,
    read_run,
    search,
)
from hwsearch.search.costing import experiment_workload
from hwsearch.search.driver import SearchProgress, SearchSummary
from hwsearch.separator.allocation import ACTIVATION_WIDTHS, WEIGHT_WIDTHS, BitAllocation, uniform
from hwsearch.separator.base import EMBEDDED_BASE, base_digest, load_base
from hwsearch.training.base import Reports, train_base, trained_path
from hwsearch.training.checkpoint import TrainingProgress
from hwsearch.workspace import Workspace

console = Console(stderr=True)
output = Console(soft_wrap=True)

Advance = Callable[[int, int], None]
"""Called with (done, total)."""

FIGURES = (
    ("SI-SNR in", "mixture_si_snr_db", "{:.2f}", 1.0),
    ("SI-SNR", "si_snr_db", "{:.2f}", 1.0),
    ("improvement dB", "si_snr_improvement_db", "{:.2f}", 1.0),
    ("PESQ in", "mixture_pesq", "{:.2f}", 1.0),
    ("PESQ", "pesq", "{:.2f}", 1.0),
    ("STOI in", "mixture_stoi", "{:.3f}", 1.0),
    ("STOI", "stoi", "{:.3f}", 1.0),
    ("WER in %", "mixture_wer", "{:.1f}", 100.0),
    ("WER %", "wer", "{:.1f}", 100.0),
    ("WER clean %", "target_wer", "{:.1f}", 100.0),
)
"""Columns of the evaluation: heading, figure, format, factor."""


@contextmanager
def progress_bar(title: str) -> Iterator[Advance]:
    """A bar with remaining time on a terminal; one line per tenth elsewhere."""
    if not console.is_terminal:
        yield _line_writer(title)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield advance


def run_main_job(workspace: Workspace, processes: int, workers: int, ray_address: str | None) -> None:
    """Data, base, search, front, export; ends with where things are and what to try next."""
    workspace.claim()
    build_with_progress(workspace, processes)
    if workspace.experiment.base is None and not workspace.base_path.is_file():
        train_with_progress(workspace, processes)
    search_with_progress(workspace, workers, ray_address)
    opened = read_run(workspace.folder)
    chosen = choose(opened.table, workspace.experiment.export.max_drop_db)
    plot = workspace.folder / "front.png"
    plot_front(opened.table, plot, workspace.experiment.name)
    folder = workspace.folder / "export"
    console.print(f"exporting candidate {chosen} and comparing it with the Brevitas network")
    report = export(opened, chosen, "onnx", folder)
    print_candidates(query(opened.table), "table", [])
    print_export(report, folder)
    output.print(f"plot:   {plot}")
    output.print(f"chosen: candidate {chosen}, the smallest within {workspace.experiment.export.max_drop_db} dB")
    output.print("next:   " + _next_command(workspace, folder / GRAPH_FILES["onnx"]))


def build_with_progress(workspace: Workspace, processes: int) -> None:
    """Build the data, showing how many rooms and mixtures are there."""
    with progress_bar("rooms and mixtures") as advance:
        built = build(workspace, processes, advance)
    console.print(f"data: {built.folder}")


def train_with_progress(workspace: Workspace, processes: int) -> TrainingProgress:
    """Train a base, showing rooms, steps and epochs."""
    config = workspace.experiment.training
    done_before = 0
    with progress_bar("rooms") as on_rooms, progress_bar("training") as advance:

        def on_step(step: int, steps: int, loss: float) -> None:
            del loss
            advance(done_before * steps + step, config.epochs * steps)

        def on_epoch(progress: TrainingProgress) -> None:
            nonlocal done_before
            done_before = progress.epoch
            loss, score = progress.history[-1]
            console.print(
                f"epoch {progress.epoch}/{config.epochs}: training loss {loss:.2f} dB, validation SI-SNR improvement "
                f"{score:.2f} dB (best {progress.best_score_db:.2f} in epoch {progress.best_epoch})",
                soft_wrap=True,
            )

        progress = train_base(workspace, processes, Reports(on_rooms, on_step, on_epoch))
    console.print(f"base: {trained_path(workspace)}")
    return progress


def search_with_progress(workspace: Workspace, workers: int, ray_address: str | None) -> SearchSummary:
    """Search, showing candidates done and time left; an interrupted search ends the program with code 130."""
    if workers:
        console.print("starting Ray" if ray_address is None else f"joining Ray at {ray_address}")
    with progress_bar("candidates") as advance:

        def on_progress(progress: SearchProgress) -> None:
            advance(progress.scored, progress.trials)

        summary = search(workspace, workers, ray_address, on_progress)
    console.print(str(summary), soft_wrap=True)
    if summary.interrupted:
        sys.exit(130)
    return summary


def print_candidates(table: CandidateTable, output_format: str, also: Sequence[str]) -> None:
    """Candidates as a table for people, or as exact JSON or CSV."""
    if output_format == "json":
        sys.stdout.write(table_to_json(table) + "\n")
    elif output_format == "csv":
        sys.stdout.write(to_csv(table))
    else:
        _wide().print(to_table(table, also))


def print_export(report: VerificationReport, folder: Path) -> None:
    """Where an export is and what its verification found."""
    content = report.to_json()
    graphs = [folder / name for name in GRAPH_FILES.values() if (folder / name).is_file()]
    output.print(f"model:  {graphs[0]}")
    output.print(
        f"        verified in {content['runtime']}: {content['quantized_values']} integers judged, {content['ties']} ties; "
        f"output within {content['max_abs_difference']:.2g} of the Brevitas network"
    )


def evaluate_with_progress(workspace: Workspace, candidate: int | None, model: Path | None, report: Path | None) -> None:
    """Score a base, a candidate or an exported model on the test mixtures and print a row per angle bin.

    Raises:
        UserError: both a candidate and a model are named, or no test mixtures.
    """
    experiment = workspace.experiment
    if candidate is not None and model is not None:
        raise UserError("--candidate and --model exclude each other; wanted one of them")
    if Split.TEST not in experiment.data.mixtures.count:
        raise UserError(f"experiment '{experiment.name}' makes no test mixtures; wanted data.mixtures.count.test")
    system, name = _subject(workspace, candidate, model)
    with progress_bar("test mixtures") as advance:
        results = evaluate_system(system, workspace, advance)
    summaries = summarise(results, experiment.evaluation.angle_bins_deg, experiment.seed)
    table = Table("angle", "n", *(heading for heading, *_ in FIGURES), title=f"{name}, test mixtures of {experiment.name}")
    for summary in summaries:
        low, high = summary.angles_deg
        cells = [_interval(summary.figures.get(key), text, factor) for _, key, text, factor in FIGURES]
        table.add_row(f"{low:g}-{high:g}", str(summary.utterances), *cells)
    _wide().print(table)
    output.print(f"[dim]95 % confidence intervals; words: {_words(results, experiment)}[/dim]")
    for key in sorted({key for result in results for key in result.unavailable}):
        missing = [result.id for result in results if key in result.unavailable]
        output.print(f"no {key} for {len(missing)}: {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}")
    if report is not None:
        made_by = {
            "system": name,
            "experiment": experiment.name,
            "experiment_digest": experiment.digest(),
            "recogniser": experiment.evaluation.recogniser,
            "base_sha256": base_digest(workspace.base_path if model is None else model),
            "test_sha256": manifest_hash(workspace.data_folder, Split.TEST),
        }
        atomic_write_json(report, {"made_by": made_by, **to_json(results, summaries)})
        output.print(f"figures: {report}")


def print_cost(
    target: str,
    experiment_path: Path | None,
    run_folder: Path | None,
    candidate: int | None,
    weight_bits: int,
    activation_bits: int,
) -> None:
    """The cost of each layer on a target.

    Raises:
        UserError: an unknown target, a wrong file, a width that is none, or a candidate without its run.
    """
    if (run_folder is None) != (candidate is None):
        raise UserError("--run and --candidate go together; wanted both or neither")
    for name, bits, allowed in (
        ("--weight-bits", weight_bits, WEIGHT_WIDTHS),
        ("--activation-bits", activation_bits, ACTIVATION_WIDTHS),
    ):
        if bits not in allowed:
            raise UserError(f"{name} is {bits}; wanted one of {list(allowed)}")
    allocation: BitAllocation | None = None
    if run_folder is not None and candidate is not None:
        opened = read_run(run_folder)
        experiment, allocation = opened.workspace.experiment, opened.allocation(candidate)
    else:
        experiment = _embedded_experiment() if experiment_path is None else load_experiment(experiment_path)
    allocation = allocation or uniform(experiment.separator, weight_bits, activation_bits)
    workload = experiment_workload(experiment)
    try:
        chip = load_target(target)
        rows = cost_rows(chip, workload, bits_matrix(workload, [allocation.by_site])[0])
    except TargetError as error:
        raise UserError(str(error)) from None
    table = Table(title=f"{chip.name}: {experiment.search.utterance_seconds:g} s of speech, {workload.macs:,} MACs")
    for column in rows[0]:
        table.add_column(column, justify="left" if column in {"layer", "kind", "bits", "bound", "runs_as"} else "right")
    for row in rows:
        table.add_row(*(_number(value) for value in row.values()), end_section=row is rows[-2])
    _wide().print(table)


def print_targets() -> None:
    """The built-in targets with family and runtime."""
    table = Table("target", "family", "runtime", "clock MHz")
    for name in built_in_targets():
        chip = load_target(name)
        table.add_row(name, str(chip.family), str(chip.runtime), f"{chip.clock.clock_hz / 1e6:g}")
    _wide().print(table)


def _subject(workspace: Workspace, candidate: int | None, model: Path | None) -> tuple[System, str]:
    if model is not None:
        separator = OnnxSeparator(model, threads=1)
        found = (separator.description.sample_rate, separator.description.array)
        wanted = (workspace.experiment.data.sample_rate, workspace.experiment.data.array)
        if found != wanted:
            raise UserError(f"{model}: made for {found[0]} Hz and array '{found[1]}'; the test mixtures are {wanted}")
        return separator.separate, str(model)
    if candidate is not None:
        opened = read_run(workspace.folder)
        allocation = opened.allocation(candidate)
        check_provenance(workspace)
        return candidate_system(prepare(workspace), allocation), f"candidate {candidate}"
    return float_system(load_float_base(workspace)), "full-precision base"


def _embedded_experiment() -> Experiment:
    """An experiment around the embedded base: enough for its workload."""
    _, description = load_base(EMBEDDED_BASE)
    return Experiment.model_validate(
        {
            "name": "embedded-base",
            "separator": description.separator,
            "data": {
                "sample_rate": description.sample_rate,
                "array": description.array,
                "corpora": [{"kind": "espeak", "splits": {"test": 1.0}}],
                "rooms": {"count": {}},
                "mixtures": {"count": {}},
            },
        }
    )


def _next_command(workspace: Workspace, model: Path) -> str:
    """Separating the first test mixture, with its true direction."""
    from hwsearch.data.dataset import open_dataset

    split = Split.TEST if Split.TEST in workspace.experiment.data.mixtures.count else Split.VALIDATION
    mixture = open_dataset(workspace.data_folder, split)[0]
    recording = workspace.data_folder / mixture.mixture_path
    return f"hwsearch separate {model} --input {recording} --doa {mixture.target.doa_deg:.1f} --output target.wav"


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


def _number(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"


def _wide() -> Console:
    """Tables are never folded: a narrow terminal scrolls or wraps, a pipe gets whole lines."""
    return output if output.is_terminal else Console(width=240)


def _line_writer(title: str) -> Advance:
    last = -1

    def advance(done: int, total: int) -> None:
        nonlocal last
        tenth = 10 * done // max(total, 1)
        if tenth != last:
            last = tenth
            sys.stderr.write(f"{title}: {done}/{total}\n")
            sys.stderr.flush()

    return advance
