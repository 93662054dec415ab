"""What a command shows while it works: bars and a panel on a terminal, a line per tenth elsewhere."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hwsearch.process.interrupts import checkpoint
from hwsearch.view.terminal import console, tell
from hwsearch.workflow.caller import Listener

if TYPE_CHECKING:
    from hwsearch.search.progress import SearchProgress
    from hwsearch.view.status import LivePanel
    from hwsearch.workspace import Workspace


@contextmanager
def progress_shown(workspace: "Workspace | None" = None) -> Iterator[Listener]:
    """Give a listener that shows what it hears. On a terminal, the search of a workspace is shown as a panel."""
    with ExitStack() as shown:
        yield _Bars(workspace, shown) if console.is_terminal else _Lines()


class _Lines(Listener):
    """Writes a line for each tenth. Each advance is a checkpoint for signals."""

    def __init__(self) -> None:
        self._tenths: dict[str, int] = {}

    def advanced(self, what: str, done: int, total: int) -> None:
        tenth = 10 * done // max(total, 1)
        if self._tenths.get(what) != tenth:
            self._tenths[what] = tenth
            tell(f"{what}: {done}/{total}")
        checkpoint()

    def scored(self, progress: "SearchProgress") -> None:
        self.advanced(f"candidates, {progress.fidelity.value}", progress.scored, progress.trials)

    def said(self, line: str) -> None:
        tell(line)


class _Bars(_Lines):
    """Shows one bar or panel at a time. Each advance is a checkpoint for signals."""

    def __init__(self, workspace: "Workspace | None", shown: ExitStack) -> None:
        super().__init__()
        self._workspace = workspace
        self._shown = shown
        self._bar: Progress | None = None
        self._panel: LivePanel | None = None

    def advanced(self, what: str, done: int, total: int) -> None:
        if self._bar is None or self._bar.tasks[0].description != what:
            self._shown.close()
            times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
            bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *times, console=console)
            self._bar = self._shown.enter_context(bar)
            self._bar.add_task(what, total=None)
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)
        checkpoint()
        if done == total:
            # What is finished stays on the terminal, and what is said next comes below it.
            self._shown.close()
            self._bar = None

    def scored(self, progress: "SearchProgress") -> None:
        if self._workspace is None:
            super().scored(progress)
            return
        if self._panel is None:
            from hwsearch.view.status import live_panel

            self._shown.close()
            self._panel = self._shown.enter_context(live_panel(self._workspace))
        self._panel.show(progress)
