"""The status of a search as a table, as JSON, and as a panel that is drawn anew while the search runs."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from hw_models.figures import significant
from hwsearch.experiment import Fidelity
from hwsearch.files.locks import LockHolder
from hwsearch.process.interrupts import interrupts_quiet, pause, stop_code
from hwsearch.results.status import (
    THIS_PROCESS,
    Notable,
    RungStatus,
    SearchStatus,
    Tally,
    quarters,
    read_status,
    read_tally,
    to_json,
)
from hwsearch.search.driver_account import Session, Step, read_sessions
from hwsearch.search.objectives import in_figures
from hwsearch.search.progress import SearchProgress
from hwsearch.view.terminal import SafeConsole, console, duration, output
from hwsearch.workspace import Workspace

SPARKS = "▁▂▃▄▅▆▇█"

REASONS_SHOWN = 5
WORKERS_SHOWN = 8

WIDEST = 160
"""Widest line in a pipe; longer ones are folded."""

WATCH_SECONDS = 2.0
"""Between two looks of `--watch`."""

LIVE_SECONDS = 0.5
LIVE_SHARE = 0.02
"""The panel is drawn this often, or less often if drawing would take more than this share of the time."""


def print_status(folder: Path, output_format: str, *, watch: bool) -> None:
    """Print the status of the search in a run folder; with `watch` again and again until no driver runs there any more.

    Ctrl-C is how one leaves a watch, so it ends the program (`stop_code`) and is no error.

    Raises:
        UserError: not a run folder, no search has begun there, or its record is damaged.
    """
    looks = _looks(folder, watch=watch)
    try:
        with interrupts_quiet() if watch else nullcontext():
            if output_format == "table" and watch and output.is_terminal:
                with Live(panel(next(looks)), console=output, auto_refresh=False) as live:
                    for status in looks:
                        live.update(panel(status), refresh=True)
            else:
                for status in looks:
                    _print(status, output_format, watch=watch)
    except KeyboardInterrupt:
        if not watch:
            raise
        sys.exit(stop_code())


def _looks(folder: Path, *, watch: bool) -> Iterator[SearchStatus]:
    status = read_status(folder)
    yield status
    while watch and status.driver is not None:
        pause(WATCH_SECONDS)
        status = read_status(folder)
        yield status


class LivePanel:
    """The panel of a search that this process drives. It reads the record once and then counts what the driver reports."""

    def __init__(self, workspace: Workspace, live: Live) -> None:
        self._workspace = workspace
        self._live = live
        self._tally: Tally | None = None
        self._driver = LockHolder(THIS_PROCESS, datetime.now(UTC))
        self._sessions: tuple[Session, ...] = ()
        self._next = 0.0
        self._undrawn: SearchProgress | None = None

    def show(self, progress: SearchProgress) -> None:
        """Take in a report of the driver, and draw if it is time to."""
        if self._tally is None:
            self._tally = read_tally(self._workspace.folder, self._workspace.experiment)
            self._sessions = read_sessions(self._workspace.folder)
        elif progress.latest is not None:
            self._tally.add(progress.latest)
        self._undrawn = progress
        if time.monotonic() >= self._next or progress.remaining_seconds == 0:
            self.draw()

    def draw(self) -> None:
        """Draw what was taken in since the last time."""
        progress, self._undrawn = self._undrawn, None
        if self._tally is None or progress is None:
            return
        start = time.monotonic()
        status = self._tally.status(self._workspace.folder, self._driver, datetime.now(UTC), self._sessions)
        self._live.update(panel(status, {progress.fidelity: progress.in_flight}), refresh=True)
        took = time.monotonic() - start
        self._next = start + took + max(LIVE_SECONDS, took / LIVE_SHARE)


@contextmanager
def live_panel(workspace: Workspace) -> Iterator[LivePanel]:
    """Show a panel on standard error, which is a terminal. Its last state stays there, however the search ends."""
    with Live(console=console, auto_refresh=False) as live:
        shown = LivePanel(workspace, live)
        try:
            yield shown
        finally:
            shown.draw()


def panel(status: SearchStatus, in_flight: Mapping[Fidelity, int] | None = None) -> Panel:
    """Draw the status in a frame. The driver may say how many candidates of a rung are in flight, instead of the record."""
    parts: list[RenderableType] = [Text(_who(status)), _rungs(status, in_flight), _rates(status)]
    parts += [_curve(rung) for rung in status.rungs if rung.curve]
    parts += [Text(_notable(notable)) for notable in status.notable]
    if status.reasons:
        parts.append(_reasons(status))
    if status.workers:
        parts.append(_workers(status))
    log = "" if status.log is None else f"\nlog:    {status.log}"
    files = Text(f"record: {status.record}{log}", overflow="fold")
    return Panel(Group(*parts, files), title=f"search of {escape(status.name)}, {_clock(status.taken)}")


def sparkline(values: Sequence[float]) -> str:
    """Draw one block per value, from the least to the largest. Equal values get the tallest."""
    low, high = min(values), max(values)
    if high == low:
        return SPARKS[-1] * len(values)
    return "".join(SPARKS[round((value - low) / (high - low) * (len(SPARKS) - 1))] for value in values)


def _print(status: SearchStatus, output_format: str, *, watch: bool) -> None:
    if output_format == "json":
        sys.stdout.write(json.dumps(to_json(status), indent=None if watch else 2, allow_nan=False) + "\n")
        sys.stdout.flush()
        return
    shown = panel(status)
    # A pipe gets whole lines, in a frame that is as wide as they are.
    shown.expand = output.is_terminal
    (output if output.is_terminal else SafeConsole(width=max(output.width, WIDEST))).print(shown)


def _who(status: SearchStatus) -> str:
    """Who drives the search and what it does there, or how the last driver ended."""
    driver, step, end = status.driver, status.step, status.last_end
    if driver is None:
        return "no driver is running" + ("" if end is None else f"; the last one ended {_clock(end.time)}: {end.reason}")
    who = f"driver: process {driver.process}, since {_clock(driver.since)}"
    if step is None or step.step is Step.CANDIDATES:
        return who
    counted = "" if step.total is None else f" {step.done}/{step.total}"
    return f"{who}\nstep:   {step.step.value}{counted}, since {_clock(step.since)}"


def _table(*headings: str) -> Table:
    return Table(*headings, box=None, pad_edge=False, padding=(0, 2, 0, 0))


def _rungs(status: SearchStatus, in_flight: Mapping[Fidelity, int] | None) -> Table:
    unsettled = "in flight" if status.driver is not None else "left unfinished"
    table = _table("fidelity", "scored", "of", "failed", unsettled)
    for rung in status.rungs:
        flying = rung.in_flight if in_flight is None else in_flight.get(rung.fidelity)
        wanted = rung.wanted if rung.final else f"up to {rung.wanted}"
        cells = (rung.scored, wanted, rung.failed, "" if flying is None else flying)
        table.add_row(rung.fidelity.value, *map(str, cells))
    return table


def _rates(status: SearchStatus) -> Text:
    rates = ((status.per_second, "overall"), (status.recent_per_second, "lately"))
    parts = [f"{_per_time(rate)} {when}" for rate, when in rates if rate is not None] or ["nothing is scored yet"]
    return Text(", ".join([*parts, *_left(status)]))


def _left(status: SearchStatus) -> list[str]:
    """Time left, and what it does not include."""
    left, present = status.remaining_seconds, status.present
    if not left:
        return []
    if left == status.hours_left_seconds:
        return [f"{duration(left)} left of search.hours"]
    again = " once it is started again" if status.driver is None else ""
    behind = status.rungs[status.rungs.index(present) + 1 :]
    then = [f"{'' if rung.final else 'up to '}{rung.left} at '{rung.fidelity.value}'" for rung in behind if rung.left > 0]
    return [
        f"{duration(left)} left at '{present.fidelity.value}'{again}",
        *([f"then {', '.join(then)}, in time of their own"] if then else []),
    ]


def _per_time(rate: float) -> str:
    """A rate in the unit that leaves digits before the point."""
    seconds, unit = next(((factor, unit) for factor, unit in ((1, "s"), (60, "min")) if rate * factor >= 1), (3600, "h"))
    return f"{significant(rate * seconds, 3)} per {unit}"


def _curve(rung: RungStatus) -> Text:
    by_count = {point.candidates: point.hypervolume for point in rung.curve}
    last = rung.curve[-1]
    shares = zip((25, 50, 75, 100), quarters(last.candidates), strict=True)
    figures = ", ".join(f"{significant(by_count[count])} at {share} %" for share, count in shares)
    values = [point.hypervolume for point in rung.curve]
    what = f"of {last.candidates} at '{rung.fidelity.value}' in {duration(last.seconds)}"
    return Text(f"hypervolume {sparkline(values)}\n  {figures}\n  {what}")


def _notable(notable: Notable) -> str:
    figures = ", ".join(f"{column} {in_figures(column, value)}" for column, value in notable.values.items())
    return f"{notable.why}: candidate {notable.candidate} at '{notable.fidelity.value}'\n  {figures}"


def _reasons(status: SearchStatus) -> Table:
    table = _table("failed", "because")
    for reason in status.reasons[:REASONS_SHOWN]:
        table.add_row(str(reason.count), escape(reason.reason))
    rest = sum(reason.count for reason in status.reasons[REASONS_SHOWN:])
    if rest:
        table.add_row(str(rest), "of other reasons")
    return table


def _workers(status: SearchStatus) -> Table:
    table = _table("worker", "finished", "mean s", "last seen")
    for worker in status.workers[:WORKERS_SHOWN]:
        ago = duration(max(timedelta(), status.taken - worker.last_seen).total_seconds())
        table.add_row(escape(worker.worker), str(worker.finished), f"{worker.mean_seconds:.2f}", f"{ago} ago")
    rest = status.workers[WORKERS_SHOWN:]
    if rest:
        table.add_row(f"{len(rest)} more", str(sum(worker.finished for worker in rest)), "", "")
    return table


def _clock(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
