"""What every part of the command line prints with: progress bars, tables and plain lines.

Whatever is printed, control characters in it are shown and not obeyed (`hwsearch.printable`).
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment

from hw_models.figures import significant
from hwsearch.printable import printable
from hwsearch.process.interrupts import checkpoint


class SafeConsole(Console):
    """A console that shows control characters in texts instead of sending them. Its own codes, of colours and bars, pass."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as Rich does, with control characters shown."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text, keep="\n"), segment.style)


console = SafeConsole(stderr=True)
output = SafeConsole()

Advance = Callable[[int, int], None]
"""Called with (done, total)."""


@contextmanager
def progress_bar(title: str) -> Iterator[Advance]:
    """A bar with remaining time on a terminal; one line per tenth elsewhere. Each advance is a checkpoint for signals."""
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
            checkpoint()

        yield advance


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 20 s, 2 h 05 min, 3 d 4 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def number(value: str | float) -> str:
    """A cell of a table: thousands apart, at least four digits of a fraction, nothing for what is not known."""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return "" if math.isnan(value) else significant(value)


def say(line: str) -> None:
    """A line of the answer, as it is: a path may be long, and hold what looks like markup."""
    output.print(printable(line), soft_wrap=True, markup=False, highlight=False)


def tell(line: str) -> None:
    """A line on what goes on, as it is."""
    console.print(printable(line), soft_wrap=True, markup=False, highlight=False)


def _line_writer(title: str) -> Advance:
    last = -1

    def advance(done: int, total: int) -> None:
        nonlocal last
        tenth = 10 * done // max(total, 1)
        if tenth != last:
            last = tenth
            sys.stderr.write(f"{title}: {done}/{total}\n")
            sys.stderr.flush()
        checkpoint()

    return advance
