"""The main job and the search as the command line runs them: each step is shown before the next begins."""

import shlex
import shutil
import sys

from hwsearch.errors import UserError
from hwsearch.export.folder import EXPORT_FOLDER, graph_file
from hwsearch.process.interrupts import stop_code
from hwsearch.results.query import Condition, query
from hwsearch.results.rungs import rung_correlations
from hwsearch.search.studies.address import StorageAddress
from hwsearch.view.candidates import plot_run, print_candidates
from hwsearch.view.export import print_choice, print_export
from hwsearch.view.progress import progress_shown
from hwsearch.view.report.report import write_report
from hwsearch.view.terminal import say, tell
from hwsearch.workflow.caller import Resources
from hwsearch.workflow.choose import choose_candidate, within_limits
from hwsearch.workflow.export import example_recording, export
from hwsearch.workflow.report import make_report
from hwsearch.workflow.runs import Run, read_run
from hwsearch.workflow.search import search
from hwsearch.workspace import Workspace


def run_main_job(workspace: Workspace, resources: Resources, storage: StorageAddress | None = None) -> None:
    """Search, show the front, export the chosen candidate, name the next command, and write the report.

    What was found is shown before a later failure is reported.

    Raises:
        UserError: the search was refused or stopped; at the end, something could not be drawn, chosen, exported or reported.
    """
    search_shown(workspace, resources, storage, may_train=True)
    opened = read_run(workspace.folder)
    where = _fitting(opened)
    print_candidates(query(opened.table, where), where)
    failures: list[str] = []
    for step in (_draw_front, _export_chosen, _write_report):
        try:
            step(opened)
        except UserError as failure:
            failures.append(str(failure))
    if failures:
        raise UserError("; ".join(failures))


def search_shown(workspace: Workspace, resources: Resources, storage: StorageAddress | None, *, may_train: bool) -> None:
    """Search, and show the progress and the end. An interrupted search ends the program (`stop_code`).

    Raises:
        UserError: the search was refused, before any work, or failed.
    """
    with progress_shown(workspace) as listener:
        summary = search(workspace, resources, listener, storage, may_train=may_train)
    tell(str(summary))
    if summary.shared is not None:
        tell(summary.shared)
    if summary.interrupted:
        sys.exit(stop_code())
    for correlation in rung_correlations(workspace.folder):
        tell(str(correlation))


def command_line(*arguments: str) -> str:
    """Write a command of this program so that it can be pasted into a shell."""
    return shlex.join(["hwsearch" if shutil.which("hwsearch") else sys.argv[0], *arguments])


def _fitting(run: Run) -> list[Condition]:
    """Return `search.limits` as conditions, or none if no candidate meets them, so that the front is never empty."""
    where = within_limits(run.workspace.experiment.search.limits)
    return where if len(query(run.table, where)) else []


def _draw_front(run: Run) -> None:
    plot_run(run, _fitting(run), run.workspace.plot_path)
    say(f"plot:   {run.workspace.plot_path}")


def _export_chosen(run: Run) -> None:
    """Choose a candidate, say why, export it, and name the next command."""
    folder = run.workspace.folder / EXPORT_FOLDER
    choice = choose_candidate(run)
    print_choice(choice)
    chosen = choice.candidate
    tell(f"exporting candidate {chosen} and comparing it with the Brevitas network")
    try:
        report = export(run, chosen, "onnx", folder)
    except UserError as error:
        raise UserError(
            f"candidate {chosen} was not exported: {error}; 'hwsearch export {run.workspace.folder} --candidate N --output DIR' "
            "exports another one of the table"
        ) from None
    print_export(report, folder)
    recording, doa = example_recording(run.workspace)
    direction = [] if doa is None else ["--doa", f"{doa:.1f}"]
    model = str(folder / graph_file("onnx"))
    say("next:   " + command_line("separate", model, "--input", str(recording), *direction, "--output", "target.wav"))


def _write_report(run: Run) -> None:
    path = run.workspace.report_path
    with progress_shown() as listener:
        write_report(make_report(run, listener=listener), path)
    say(f"report: {path}")
