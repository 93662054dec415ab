"""The command line: parse, call, print."""

import functools
import io
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from hwsearch.cli import completion
from hwsearch.cli.arguments import Chosen, PathArgument, Registered, array_names, check_not_read
from hwsearch.errors import UserError
from hwsearch.printable import printable, shortened
from hwsearch.process.cores import check_processes
from hwsearch.process.interrupts import ask_secretly, checkpoint, interrupts_heard, stop_code
from hwsearch.search.studies.address import PASSWORD_ADVICE, STORAGE_VARIABLE, parse_address, redact, take_password
from hwsearch.version import VERSION


def _bounded_processes(context: click.Context, option: click.Parameter, number: int) -> int:
    del context, option
    check_processes(number)
    return number


MESSAGE_CHARACTERS = 1000
"""Length of the longest error. Names and values from files may be of any length."""

PATH = PathArgument()
EXPERIMENT = click.argument("experiment", type=PATH, shell_complete=completion.experiments)
RUN = click.argument("run", type=PATH, shell_complete=completion.runs)
TARGET = click.argument("target", shell_complete=completion.targets)
RUNS_DIR = click.option("--runs-dir", type=PATH, default=Path("runs"), help="Folder that holds all runs.")
PROCESSES = click.option(
    "--processes", type=click.IntRange(1), callback=_bounded_processes, default=2, help="Number of processes that make data."
)
WORKERS = click.option(
    "--workers",
    type=click.IntRange(0),
    default=2,
    help="Number of Ray workers. With 0 this process does their work, without Ray.",
)
RAY_ADDRESS = click.option("--ray-address", help="Address of a running Ray cluster. Default: Ray starts on this machine.")
STORAGE = click.option(
    "--storage",
    metavar="ADDRESS",
    help="Address of a shared Optuna study: postgresql://USER@HOST:PORT/DATABASE, sqlite:///FILE or journal:///FILE. "
    "Default: the address in the environment variable HWSEARCH_STORAGE. "
    "A password comes from PGPASSWORD, a passfile, HWSEARCH_STORAGE or a prompt.",
)
STALLS_OPTION = "--until-hypervolume-stalls"
STALL_CANDIDATES = 50
SEARCH_OPTIONS = (
    EXPERIMENT,
    RUNS_DIR,
    PROCESSES,
    WORKERS,
    RAY_ADDRESS,
    STORAGE,
    click.option(
        "--strategy", type=Registered("STRATEGIES"), help="Strategy of the search, instead of search.strategy of the experiment."
    ),
    click.option(
        "--sampler",
        type=Registered("SAMPLERS"),
        help="Sampler of the strategy 'prior-corrected', instead of search.sampler of the experiment.",
    ),
    click.option(
        "--trials", type=click.IntRange(1), help="Number of candidates to score, instead of search.trials of the experiment."
    ),
    click.option(
        "--hours",
        type=click.FloatRange(0, min_open=True),
        help="Start no candidate after this many hours, instead of search.hours of the experiment. "
        "Candidates that have begun will finish.",
    ),
    click.option(
        STALLS_OPTION,
        "stall_candidates",
        metavar="[N]",
        type=click.IntRange(2),
        is_flag=False,
        flag_value=STALL_CANDIDATES,
        default=None,
        help="Stop once the last N candidates have raised the hypervolume, which measures the front, by less than "
        f"search.stall_growth. N is {STALL_CANDIDATES} if left out. This option replaces search.stall_candidates.",
    ),
    click.option("--dry-run", is_flag=True, help="Print what would run, with its time, disk and memory. Nothing is written."),
)
COLUMNS = click.option(
    "--columns",
    metavar="A,B,...",
    help="Columns of the table, or 'all'. Default: the most important columns that fit into 80 characters.",
)
FIDELITY = click.option(
    "--fidelity",
    type=click.Choice(["post-training-subset", "post-training", "shared-subset", "shared", "short-qat", "full-qat", "finetuned"]),
    metavar="NAME",
    help="How far the candidates are trained: 'post-training' (quantized, not trained again), 'finetuned' or another "
    "fidelity. Default: the highest one of the search.",
)


class Searching(click.Command):
    """A command with `--until-hypervolume-stalls [N]`. The word after the option is its N only if it is a number."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Add the default N if it was left out."""
        given = list(args)
        for place, argument in enumerate(given[:-1]):
            if argument == STALLS_OPTION and not re.fullmatch(r"[-+]?[\d.]+", given[place + 1]):
                given[place] = f"{STALLS_OPTION}={STALL_CANDIDATES}"
        return super().parse_args(ctx, given)


def searching(*, may_train: bool) -> Callable[[Callable[[Any, Any, Any], None]], Callable[..., None]]:
    """Parse what `run` and `search` share. The function gets the workspace, the resources and the storage's address.

    With --dry-run the plan is printed instead.
    """

    def decorate(command: Callable[[Any, Any, Any], None]) -> Callable[..., None]:
        @functools.wraps(command)
        def parsed(
            experiment: Path,
            runs_dir: Path,
            processes: int,
            workers: int,
            ray_address: str | None,
            storage: str | None,
            *,
            dry_run: bool,
            **changes: Any,
        ) -> None:
            address = _storage(storage)
            workspace = _workspace(experiment, runs_dir, {key: value for key, value in changes.items() if value is not None})
            if dry_run:
                _print_plan(workspace, workers, ray_address, address, may_train=may_train)
                return
            from hwsearch.workflow.caller import Resources

            command(workspace, Resources(processes, workers, ray_address), address)

        for option in reversed(SEARCH_OPTIONS):
            parsed = option(parsed)
        return parsed

    return decorate


def _example(*lines: str) -> str:
    """Write the end of a command's help. Click does not wrap what follows the backspace."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog=_example("hwsearch run experiments/quickstart.toml"),
)
@click.version_option(VERSION, prog_name="hwsearch", help="Print the version.")
def commands() -> None:
    """Find the bit-width of every layer of a speech separator.

    'hwsearch COMMAND --help' explains a command and ends with an example.
    """


@commands.command(cls=Searching, epilog=_example("hwsearch run experiments/quickstart.toml --workers 4 --hours 8"))
@searching(may_train=True)
def run(workspace: Any, resources: Any, storage: Any) -> None:
    """Do the whole job, from speech to a verified model.

    The command makes the data and the base, and the shared network if the experiment uses it. It then estimates
    sensitivities, searches, prints the best candidates (the front) and exports one of them. The same command continues
    an interrupted run.
    """
    from hwsearch.cli.main_job import run_main_job

    run_main_job(workspace, resources, storage)


@commands.command(epilog=_example("hwsearch init --speech my_speech --array linear4 --output mine.toml"))
@click.option("--speech", type=PATH, help="Folder or CSV file of recorded speech. Default: synthesised speech.")
@click.option(
    "--array",
    metavar="NAME",
    type=Chosen(array_names),
    default="linear6",
    help="Built-in microphone array: 'hwsearch explain data.array' lists them.",
)
@click.option(
    "--chip",
    default="cortex-m7-cmsis-nn",
    shell_complete=completion.targets,
    help="Target to search for: a built-in name or the path of a target file.",
)
@click.option(
    "--size",
    type=click.Choice(["quick", "small", "medium", "large"]),
    default="quick",
    help="Size of the network, of its data and of its training. A quick experiment takes minutes, a large one days.",
)
@click.option("--output", type=PATH, default=Path("experiment.toml"), help="Experiment file to write. It must not exist.")
def init(**wishes: Any) -> None:
    """Write a first experiment file.

    Its comments say what to change. In a terminal, the command asks for what no option says. The kind of the speech is
    found by looking at the folder.
    """
    from hwsearch.cli.main_job import command_line
    from hwsearch.cli.questions import ask
    from hwsearch.view.terminal import say
    from hwsearch.workflow.start import Wishes, write_first

    wanted = Wishes(**ask(click.get_current_context(), wishes))
    write_first(wanted)
    say(f"written: {wanted.output}")
    say("next:    " + command_line("doctor", str(wanted.output)))
    say("         " + command_line("run", str(wanted.output)))


@commands.command(epilog=_example("hwsearch doctor experiments/quickstart.toml --workers 0"))
@click.argument("experiment", type=PATH, required=False, shell_complete=completion.experiments)
@RUNS_DIR
@WORKERS
def doctor(experiment: Path | None, runs_dir: Path, workers: int) -> int:
    """Check the installation, the machine and an experiment.

    Each line says 'ok', 'warning' or 'wrong', and what to do. For an experiment, the lines say what disk, memory and time
    it needs. Nothing is written. The exit code is 1 if something is wrong.
    """
    from hwsearch.view.doctor import print_findings, print_sum
    from hwsearch.workflow.doctor import State, examine_experiment, examine_machine

    counts = print_findings(examine_machine(runs_dir))
    if experiment is not None:
        found = print_findings(examine_experiment(experiment, runs_dir, workers))
        counts = {state: count + found[state] for state, count in counts.items()}
    print_sum(counts)
    return int(counts[State.WRONG] > 0)


@commands.group(epilog=_example("hwsearch data build experiments/quickstart.toml"))
def data() -> None:
    """Make the data of an experiment."""


@data.command("build", epilog=_example("hwsearch data build experiments/quickstart.toml --processes 4"))
@EXPERIMENT
@RUNS_DIR
@PROCESSES
def data_build(experiment: Path, runs_dir: Path, processes: int) -> None:
    """Build the rooms and mixtures of an experiment.

    Existing rooms and mixtures are kept. The same command continues an interrupted build.
    """
    workspace = _workspace(experiment, runs_dir)
    from hwsearch.view.progress import progress_shown
    from hwsearch.workflow.training import build

    with progress_shown() as listener:
        build(workspace, processes, listener)


@commands.command(epilog=_example("hwsearch train experiments/real_speech.toml"))
@EXPERIMENT
@RUNS_DIR
@PROCESSES
def train(experiment: Path, runs_dir: Path, processes: int) -> None:
    """Train the base, the network in full precision.

    The same command continues an interrupted training.
    """
    workspace = _workspace(experiment, runs_dir)
    from hwsearch.view.progress import progress_shown
    from hwsearch.workflow.training import train as train_base

    with progress_shown() as listener:
        train_base(workspace, processes, listener)


@commands.command("train-shared", epilog=_example("hwsearch train-shared experiments/comparison.toml"))
@EXPERIMENT
@RUNS_DIR
@PROCESSES
def train_shared(experiment: Path, runs_dir: Path, processes: int) -> None:
    """Train one set of weights for all bit allocations.

    The section 'shared' of the experiment says how. The same command continues an interrupted training.
    """
    workspace = _workspace(experiment, runs_dir)
    from hwsearch.view.progress import progress_shown
    from hwsearch.workflow.shared import train_shared_network

    with progress_shown() as listener:
        train_shared_network(workspace, processes, listener)


@commands.command(cls=Searching, epilog=_example("hwsearch search experiments/quickstart.toml --until-hypervolume-stalls 100"))
@searching(may_train=False)
def search(workspace: Any, resources: Any, storage: Any) -> None:
    """Search for the best bit allocations.

    The same command continues an interrupted search. A finished search continues if --trials or --hours is raised.
    """
    from hwsearch.cli.main_job import search_shown

    search_shown(workspace, resources, storage, may_train=False)


@commands.command(epilog=_example("hwsearch sensitivity experiments/quickstart.toml --method kl --method fisher"))
@EXPERIMENT
@click.option(
    "--method",
    "methods",
    multiple=True,
    help="Method such as 'kl'. You can repeat this option. Default: all methods that need no training.",
)
@RUNS_DIR
@PROCESSES
@WORKERS
@RAY_ADDRESS
def sensitivity(experiment: Path, methods: tuple[str, ...], runs_dir: Path, **resources: Any) -> None:
    """Estimate the quality lost at each site and bit-width.

    A site is a tensor whose bit-width is chosen. Each method writes a table of its own. The same command continues where
    it stopped.
    """
    workspace = _workspace(experiment, runs_dir)
    from hwsearch.cli.main_job import command_line
    from hwsearch.view.progress import progress_shown
    from hwsearch.view.sensitivity import show_sensitivities
    from hwsearch.view.terminal import say
    from hwsearch.workflow.caller import Resources
    from hwsearch.workflow.sensitivity import estimate_sensitivities

    with progress_shown() as listener:
        found = estimate_sensitivities(workspace, methods, Resources(**resources), listener)
    show_sensitivities(workspace, found)
    say("next:   " + command_line("search", str(experiment), "--runs-dir", str(runs_dir)))


@commands.command(epilog=_example("hwsearch status runs/quickstart"))
@RUN
@click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table", help="Form of the output.")
@click.option("--watch", is_flag=True, help="Print again and again until the search has ended.")
def status(run: Path, output_format: str, *, watch: bool) -> None:
    """Show how far a search has got, also while it runs.

    The command shows candidates, rates, hypervolume, failures, workers and the time left.
    """
    from hwsearch.view.status import print_status

    print_status(run, output_format, watch=watch)


@commands.command(epilog=_example("hwsearch runs"))
@RUNS_DIR
@click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table", help="Form of the output.")
def runs(runs_dir: Path, output_format: str) -> None:
    """List the runs in a folder.

    Each line shows state, candidates, best quality, age and size. The best quality is the largest improvement of the
    SI-SNR in dB. The age counts from the last change.
    """
    from hwsearch.results.listing import list_runs, shared_bytes
    from hwsearch.view.runs import print_runs

    print_runs(list_runs(runs_dir), runs_dir, shared_bytes(runs_dir), output_format)


@commands.command(epilog=_example("hwsearch publish runs/quickstart --storage sqlite:///studies.db"))
@RUN
@STORAGE
def publish(run: Path, storage: str | None) -> None:
    """Add the results of a search to a shared Optuna study.

    Results that the study already holds do not change. A search with --storage publishes while it runs.
    """
    address = _storage(storage)
    if address is None:
        raise UserError(f"there is no storage to publish to; wanted --storage ADDRESS, or {STORAGE_VARIABLE}")
    from hwsearch.search.studies.publisher import publish as publish_results
    from hwsearch.view.progress import progress_shown
    from hwsearch.view.terminal import say

    with progress_shown() as listener:
        published = publish_results(address, run, listener.progress("published"))
    say(str(published))


@commands.command(epilog=_example("hwsearch pareto runs/quickstart --where 'size_bytes<=150000'"))
@RUN
@click.option("--where", multiple=True, help="Condition such as 'size_bytes<=120000'. You can repeat this option.")
@click.option("--sort", help="Column to sort by. Append ':desc' for descending order.")
@click.option(
    "--format", "output_format", type=click.Choice(["table", "json", "csv"]), default="table", help="Form of the output."
)
@COLUMNS
@click.option("--all", "everything", is_flag=True, help="Print all candidates, not only the front.")
@click.option("--plot", type=PATH, help="PNG, SVG or PDF file to write: quality against size.")
@FIDELITY
def pareto(
    run: Path,
    where: tuple[str, ...],
    sort: str | None,
    output_format: str,
    columns: str | None,
    *,
    everything: bool,
    plot: Path | None,
    fidelity: str | None,
) -> None:
    """Print the best candidates of a search: its front.

    The front holds the candidates that no other candidate beats. Candidates that miss a condition of --where do not
    count.
    """
    from hwsearch.results.query import parse_condition, parse_order
    from hwsearch.view.front_plot import check_plot

    if output_format != "table":
        _refuse_idle(f"with --format {output_format}, which has every column; wanted one of them", "columns")
    conditions = [parse_condition(text) for text in where]
    order = None if sort is None else parse_order(sort)
    if plot is not None:
        check_plot(plot)
    from hwsearch.view.candidates import print_front
    from hwsearch.workflow.runs import read_run

    opened = read_run(run, _fidelity(fidelity))
    print_front(opened, conditions, order, output_format, columns, everything=everything, plot=plot)


@commands.command(epilog=_example("hwsearch report runs/quickstart --output report.html"))
@RUN
@click.option("--output", type=PATH, help="HTML file to write. Default: report.html in the run folder.")
@click.option(
    "--figures",
    type=PATH,
    multiple=True,
    help="JSON file that 'hwsearch evaluate --output' wrote, for the results by angle. You can repeat this option. Such files in "
    "the run folder are found without it.",
)
def report(run: Path, output: Path | None, figures: tuple[Path, ...]) -> None:
    """Write what a search has found as one HTML file.

    The page opens offline. It holds the front, every layer of a chosen candidate, the sensitivities, sound to compare,
    and a table with the conditions of 'hwsearch pareto'.
    """
    from hwsearch.files.writing import check_writable

    if output is not None:
        _check_html(output)
        check_not_read(output, *figures)
    from hwsearch.view.progress import progress_shown
    from hwsearch.view.report.report import write_report
    from hwsearch.view.terminal import say
    from hwsearch.workflow.report import make_report
    from hwsearch.workflow.runs import read_run

    opened = read_run(run)
    path = opened.workspace.report_path if output is None else output
    check_writable(path)
    with progress_shown() as listener:
        write_report(make_report(opened, figures, listener), path)
    say(f"report: {path}")


@commands.command(epilog=_example("hwsearch compare runs/quickstart runs/comparison --output compare.html"))
@click.argument("runs", type=PATH, nargs=-1, required=True, metavar="RUN [RUN...]")
@click.option("--cost", default="size_bytes", help="Column of a cost at which the runs are compared.")
@click.option("--output", type=PATH, help="HTML file to write, with the fronts of all runs in one figure.")
def compare(runs: tuple[Path, ...], cost: str, output: Path | None) -> None:
    """Compare the fronts of several runs at equal cost.

    Each further run is tested against the first one. The paired tests separate mixtures that both runs have; where there
    are none, the command says why.
    """
    from hwsearch.files.writing import check_writable

    if output is not None:
        _check_html(output)
        check_writable(output)
    from hwsearch.view.compare import print_comparison
    from hwsearch.view.progress import progress_shown
    from hwsearch.view.report.compare import write_comparison
    from hwsearch.view.terminal import say
    from hwsearch.workflow.compare import compare_runs

    with progress_shown() as listener:
        comparison = compare_runs(runs, cost, listener)
    print_comparison(comparison)
    if output is not None:
        write_comparison(comparison, output)
        say(f"comparison: {output}")


@commands.command(epilog=_example("hwsearch dashboard runs/quickstart"))
@RUN
@click.option("--port", type=click.IntRange(1, 65535), default=8080, help="Port on this machine.")
def dashboard(run: Path, port: int) -> None:
    """Open Optuna's dashboard on the study of a run.

    The dashboard serves this machine alone until Ctrl-C ends it. It needs: pip install 'hwsearch[dashboard]'.
    """
    from hwsearch.search.studies.dashboard import HOST, check_dashboard, open_study_file, serve_dashboard, study_file
    from hwsearch.view.terminal import say

    path = study_file(run)
    check_dashboard(port)
    storage = open_study_file(path)
    say(f"dashboard: http://{HOST}:{port}/ shows {path}; Ctrl-C ends it")
    try:
        serve_dashboard(storage, port)
    except KeyboardInterrupt:  # that is how one leaves it
        sys.exit(stop_code())


@commands.command(epilog=_example("hwsearch export runs/quickstart --candidate 20 --output exported"))
@RUN
@click.option(
    "--candidate",
    type=click.IntRange(1),
    required=True,
    shell_complete=completion.candidates,
    help="Number of the candidate, as in 'hwsearch pareto'.",
)
@click.option(
    "--format",
    "graph_format",
    type=Registered("EXPORTERS"),
    default="onnx",
    help="Format of the graph: onnx for ONNX Runtime, finn for FINN, qonnx for other FPGA tools, tflite for Ethos-U, Cortex-M "
    "and Android, qnn for Snapdragon. The two that end in int4 store narrow weights in INT4.",
)
@click.option("--output", type=PATH, required=True, help="Folder to write. An earlier export there is replaced.")
@click.option(
    "--for",
    "processors",
    type=click.Choice(["any", "vnni"]),
    default="any",
    help="Processors on which an ONNX file is exact: any, or only those with VNNI, where 8-bit weights are then faster.",
)
@FIDELITY
def export(run: Path, candidate: int, graph_format: Any, output: Path, processors: Any, fidelity: str | None) -> None:
    """Export a candidate and verify the exported file.

    The command writes the model, the bit allocation, the packed weights and a verification report.
    """
    if graph_format != "onnx":
        _refuse_idle(f"with --format {graph_format}; wanted it with --format onnx", "processors")
    from hwsearch.export.folder import check_output

    check_output(output)
    from hwsearch.view.export import print_export
    from hwsearch.workflow.export import export as export_verified
    from hwsearch.workflow.runs import read_run

    print_export(export_verified(read_run(run, _fidelity(fidelity)), candidate, graph_format, output, processors), output)


@commands.command(epilog=_example("hwsearch finetune runs/comparison --candidate 20 --candidate 31"))
@RUN
@click.option(
    "--candidate",
    "candidates",
    type=click.IntRange(1),
    shell_complete=completion.candidates,
    multiple=True,
    required=True,
    help="Number of a candidate, as in 'hwsearch pareto'. You can repeat this option.",
)
@click.option(
    "--steps",
    type=click.IntRange(1, 1_000_000),
    help="Number of training steps. Default: qat.finetune_steps of the experiment.",
)
@PROCESSES
@WORKERS
@RAY_ADDRESS
def finetune(run: Path, candidates: tuple[int, ...], steps: int | None, **resources: Any) -> None:
    """Train chosen candidates of a search further.

    A candidate starts from the weights that the search trained for it, else from the shared network, else from the
    base. Its scores are stored at the fidelity 'finetuned'. The same command continues an interrupted training.
    """
    from hwsearch.cli.main_job import command_line
    from hwsearch.view.finetune import print_finetuned
    from hwsearch.view.progress import progress_shown
    from hwsearch.view.terminal import say
    from hwsearch.workflow.caller import Resources
    from hwsearch.workflow.finetune import finetune as train_further
    from hwsearch.workflow.runs import open_workspace

    workspace = open_workspace(run)
    with progress_shown() as listener:
        found = train_further(workspace, candidates, steps, Resources(**resources), listener)
    print_finetuned(found)
    say("next:   " + command_line("pareto", str(run), "--fidelity", "finetuned"))


@commands.command(epilog=_example("hwsearch separate model.onnx --input mix.wav --doa 60 --output target.wav"))
@click.argument("model", type=PATH)
@click.option("--input", "recording", type=PATH, required=True, help="WAV or FLAC file with a channel for each microphone.")
@click.option("--doa", type=float, help="Direction of the wanted speaker in degrees. Default: every direction found.")
@click.option("--output", type=PATH, required=True, help="WAV file to write.")
@click.option("--threads", type=click.IntRange(1), default=1, help="Number of threads of ONNX Runtime.")
@click.option(
    "--stream",
    is_flag=True,
    help="Separate sound as it arrives. --input - then reads WAV data from standard input, and --output - writes WAV data to "
    "standard output.",
)
def separate(model: Path, recording: Path, doa: float | None, output: Path, threads: int, *, stream: bool) -> None:
    """Separate a recording with an exported ONNX file.

    Without --doa, a model that wants a direction separates every direction from which the recording holds speech. Each
    gets a file of its own: target.wav becomes target-1-at-60.wav. Listen to them and choose.
    """
    check_not_read(output, model)
    from hwsearch.view.progress import progress_shown
    from hwsearch.workflow.separate import PIPE, Separated, separate_file, separate_stream

    if PIPE in (recording, output) and not stream:
        raise UserError("'-' stands for a pipe only with --stream; wanted a file")
    from hwsearch.view.separated import print_separated

    files: tuple[Separated, ...]
    with progress_shown() as listener:
        if stream:
            separate_stream(model, recording, doa, output, threads, listener)
            files = () if output == PIPE else (Separated(output),)
        else:
            files = separate_file(model, recording, doa, output, threads, listener)
    print_separated(files)


@commands.command(epilog=_example("hwsearch evaluate runs/quickstart --candidate 20 --output figures.json"))
@click.argument("subject", type=PATH, shell_complete=completion.runs)
@RUNS_DIR
@click.option(
    "--candidate",
    type=click.IntRange(1),
    shell_complete=completion.candidates,
    help="Number of a candidate of the run. Default: the base.",
)
@click.option("--model", type=PATH, help="Exported ONNX file to score instead of the base.")
@click.option("--output", type=PATH, help="JSON file to write, with the figures of every utterance.")
@click.option(
    "--against", type=PATH, help="JSON file that --output wrote for another network. Paired tests then compare the two."
)
@PROCESSES
@FIDELITY
def evaluate(
    subject: Path,
    runs_dir: Path,
    candidate: int | None,
    model: Path | None,
    output: Path | None,
    against: Path | None,
    processes: int,
    fidelity: str | None,
) -> None:
    """Score a network on the test mixtures.

    SUBJECT is a run folder or an experiment file. The network is the base, unless --candidate or --model chooses another.
    """
    if candidate is None:
        _refuse_idle("without --candidate, whose scores it chooses; wanted both or neither", "fidelity")
    if subject.is_dir():
        _refuse_idle("where SUBJECT is a run folder; wanted one of them", "runs_dir")
    from hwsearch.files.writing import atomic_write_json, check_writable

    if output is not None:
        check_not_read(output, *(path for path in (subject, model) if path is not None))
        check_writable(output)
    from hwsearch.view.evaluation import print_evaluation
    from hwsearch.view.progress import progress_shown
    from hwsearch.view.terminal import say
    from hwsearch.workflow.evaluate import Subject, evaluate_subject
    from hwsearch.workflow.runs import open_workspace

    workspace = open_workspace(subject) if subject.is_dir() else _workspace(subject, runs_dir)
    judged = Subject(candidate, model, _fidelity(fidelity))
    with progress_shown() as listener:
        evaluation = evaluate_subject(workspace, judged, against, processes, listener)
    print_evaluation(evaluation, workspace.experiment, str(against))
    if output is not None:
        atomic_write_json(output, evaluation.to_json())
        say(f"figures: {output}")


@commands.command(epilog=_example("hwsearch cost ethos-u55-128 --run runs/quickstart --candidate 20"))
@TARGET
@click.option("--experiment", type=PATH, shell_complete=completion.experiments, help="Experiment whose network is costed.")
@click.option("--run", type=PATH, shell_complete=completion.runs, help="Run folder of the candidate to cost.")
@click.option("--candidate", type=click.IntRange(1), shell_complete=completion.candidates, help="Number of that candidate.")
@click.option("--weight-bits", type=int, default=8, help="Bit-width of all weights. Not with --candidate.")
@click.option("--activation-bits", type=int, default=8, help="Bit-width of all activations. Not with --candidate.")
@click.option(
    "--keep",
    multiple=True,
    metavar="NAME=NUMBER",
    help="What to keep of a residual block (blocks.0.kept=0 leaves it out) or of its hidden channels "
    "(blocks.1.expand.channels=64). NAME may have wildcards. May be repeated. Not with --candidate.",
)
@click.option(
    "--streaming", is_flag=True, help="Show the costs of live use, one frame at a time, with past frames kept in memory."
)
@COLUMNS
@click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table", help="Form of the output.")
@click.option("--plots", type=PATH, help="Folder for pictures of the layers, the roofline and the cost of one more bit.")
def cost(target: str, *, streaming: bool, columns: str | None, output_format: str, plots: Path | None, **charged: Any) -> None:
    """Show what each layer costs on a target.

    TARGET is the name of a built-in chip model, as 'hwsearch targets' lists them, or a file that describes a chip.
    Without options, the network is the base that ships with the package.
    """
    if charged["run"] is not None or charged["candidate"] is not None:
        why = "with --run and --candidate, which has widths of its own; wanted one of them"
        _refuse_idle(why, "weight_bits", "activation_bits")
    if output_format == "json":
        _refuse_idle("with --format json, which has every column; wanted one of them", "columns")
    if plots is not None:
        from hwsearch.files.writing import check_folder

        check_folder(plots)
    from hwsearch.view.targets import check_plots, print_cost
    from hwsearch.workflow.cost import Charged, charge

    if plots is not None:
        check_plots(plots)
    print_cost(charge(target, Charged(**charged), streaming=streaming), plots, columns, output_format)


@commands.command(epilog=_example("hwsearch targets --for runs/quickstart --plot targets.png"))
@click.argument("target", required=False, shell_complete=completion.targets)
@click.option(
    "--for",
    "run",
    metavar="RUN",
    type=PATH,
    shell_complete=completion.runs,
    help="Run folder of a candidate to compare them for.",
)
@click.option(
    "--candidate",
    type=click.IntRange(1),
    shell_complete=completion.candidates,
    help="Number of that candidate. Default: the one that 'hwsearch run' exports.",
)
@click.option("--plot", type=PATH, help="PNG, SVG or PDF file to write: the latencies with their errors. Only with --for.")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    help="Form of the output. Only with --for.",
)
def targets(target: str | None, run: Path | None, candidate: int | None, plot: Path | None, output_format: str) -> None:
    """List the modelled chips, or describe one.

    TARGET is the name of a built-in chip model, or a file that describes a chip. The list shows the error of each
    modelled latency. With --for, it shows what a candidate costs on each of them and on the targets of its experiment,
    how sure that is, and whether the candidate fits.
    """
    if run is None:
        _refuse_idle("without --for RUN; wanted both or neither", "candidate", "plot", "output_format")
        from hwsearch.view import targets as view

        if target is None:
            view.print_targets()
        else:
            view.print_target(target)
        return
    if target is not None:
        other = f"'hwsearch cost {target} --run {run} --candidate N'"
        raise UserError(f"--for shows all targets, and '{target}' is one; wanted --for alone, or {other}")
    _compare_targets(run, candidate, plot, output_format)


def _compare_targets(run: Path, candidate: int | None, plot: Path | None, output_format: str) -> None:
    if plot is not None:
        from hwsearch.view.front_plot import check_plot

        check_plot(plot)
    from hwsearch.view.target_table import print_all_targets
    from hwsearch.view.terminal import tell
    from hwsearch.workflow.targets import on_all_targets

    found = on_all_targets(run, candidate)
    if plot is not None:
        from hwsearch.view.target_plot import plot_targets

        plot_targets(found, plot)
    print_all_targets(found, output_format)
    if plot is not None:
        tell(f"plot: {plot}")


@commands.command(epilog=_example("hwsearch calibrate gap8-pulp-nn --measurements mine.json --output mine.toml"))
@TARGET
@click.option("--measurements", type=PATH, required=True, help="JSON file of measured networks or layers.")
@click.option("--output", type=PATH, required=True, help="Target file to write.")
def calibrate(target: str, measurements: Path, output: Path) -> None:
    """Fit a target (a modelled chip) to your measurements.

    TARGET is the name of a built-in chip model, or a file that describes a chip. The fit is checked on measurements that
    it has not seen.
    """
    if output.suffix.lower() != ".toml":
        raise UserError(f"--output is {output}; wanted a .toml file")
    from hwsearch.files.writing import check_writable

    check_writable(output)
    from hwsearch.view.targets import print_fit
    from hwsearch.workflow.cost import fit_target

    print_fit(fit_target(target, measurements, output), output)


@commands.command(epilog=_example("hwsearch explain search.trials"))
@click.argument("key", required=False)
@click.option("--format", "output_format", type=click.Choice(["text", "markdown"]), default="text", help="Form of the output.")
def explain(key: str | None, output_format: str) -> None:
    """Explain the keys of the experiment file.

    KEY is a key such as search.trials or a section such as search. Without KEY, all sections are listed.
    """
    from hwsearch.view.experiment_reference import explain as explained

    click.echo(explained(key, markdown=output_format == "markdown"), nl=False)


def _workspace(experiment: Path, runs_dir: Path, changes: dict[str, Any] | None = None) -> Any:
    """Read the experiment file before the heavy imports, so that a typing error is answered at once.

    `changes` replaces keys of its section `search`.
    """
    from hwsearch.experiment import load_experiment, with_search
    from hwsearch.extensions import STRATEGIES
    from hwsearch.files.writing import check_folder

    loaded = with_search(load_experiment(experiment), changes or {})
    strategy = loaded.search.strategy
    if not STRATEGIES.load(strategy).samples:
        why = f"with strategy '{strategy}', which scores its seeds alone; wanted 'prior-corrected', or no --sampler"
        _refuse_idle(why, "sampler")
    check_folder(runs_dir / loaded.name)
    from hwsearch.workspace import Workspace

    return Workspace(runs_dir, loaded)


def _check_html(output: Path) -> None:
    """Refuse a page with another suffix, which a browser would not show."""
    if output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output is {output}; wanted a file whose name ends in .html")


def _refuse_idle(why: str, *names: str) -> None:
    """Refuse the first option that stands on the command line and would change nothing."""
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in names and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UserError(f"{parameter.opts[0]} has no effect {why}")


def _storage(given: str | None) -> Any:
    """Read the address of the shared study from the option or the environment.

    Raises:
        UserError: it is no address, or the option holds a password.
    """
    if given is not None and not given.strip():
        raise UserError("--storage is empty; wanted ADDRESS, or no --storage")
    text = given or click.get_current_context().obj
    if not text:
        return None
    address = parse_address(text)
    if given and address.has_password:
        raise UserError(f"--storage holds a password, which other users of this machine can read; wanted it in {PASSWORD_ADVICE}")
    address = take_password(address)
    if sys.stdin.isatty():
        from hwsearch.search.studies.storage import wants_password

        if not address.has_password and wants_password(address):
            return address.with_password(ask_secretly(f"password for {address}"))
    return address


def _print_plan(workspace: Any, workers: int, ray_address: str | None, address: Any, *, may_train: bool) -> None:
    from hwsearch.executor import check_workers
    from hwsearch.view.dry_run import print_plan
    from hwsearch.workflow.dry_run import dry_run

    check_workers(workers, ray_address, workspace.experiment.workers)
    print_plan(dry_run(workspace, workers, address, may_train=may_train))


def _fidelity(name: str | None) -> Any:
    from hwsearch.experiment import Fidelity

    return None if name is None else Fidelity(name)


def main() -> None:
    """Run the command line. A user's error is one line and exit code 2. SIGTERM acts as Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show curves and frames, or a path that is no text, must not end a search.
            stream.reconfigure(errors="replace")
    # NumPy's threads wait by spinning. Between two proposals they would take cores from the scorers.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Brevitas warns at import about a kernel that nothing here uses.
    warnings.filterwarnings("ignore", message="fast_hadamard_transform package not found")
    with interrupts_heard():
        sys.exit(_run_commands())


def _run_commands() -> int:
    try:
        # Processes started from here, such as Ray's, do not need the address and would show it.
        code = commands(prog_name="hwsearch", standalone_mode=False, obj=os.environ.pop(STORAGE_VARIABLE, None))
        checkpoint()
    except UserError as error:
        return _refuse(str(error))
    except click.exceptions.NoArgsIsHelpError as shown:
        click.echo(shown.format_message(), err=True)
        return 2
    except click.ClickException as error:
        return _refuse(error.format_message())
    except (OSError, MemoryError) as error:
        return _refuse(_what_failed(error))
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("hwsearch: interrupted; the same command goes on where it stopped", err=True)
        return stop_code()
    return code if isinstance(code, int) else 0


def _what_failed(error: OSError | MemoryError) -> str:
    if isinstance(error, MemoryError):
        return "out of memory; wanted more memory, or smaller files"
    where = "" if error.filename is None else f"{error.filename}: "
    return f"{where}{error.strerror or error}"


def _refuse(message: str) -> int:
    """Say in one line what a user has to mend, and return the exit code."""
    click.echo(f"hwsearch: error: {shortened(printable(redact(message)), MESSAGE_CHARACTERS)}", err=True)
    return 2
