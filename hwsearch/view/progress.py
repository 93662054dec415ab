"""What a command shows while it works: bars and a panel on a terminal, a line per tenth elsewhere."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from hwsearch.view.terminal import Advance, console, progress_bar, tell
from hwsearch.workflow.listener import Listener

if TYPE_CHECKING:
    from hwsearch.search.progress import SearchProgress
    from hwsearch.view.status import LivePanel
    from hwsearch.workspace import Workspace


@contextmanager
def progress_shown(workspace: "Workspace | None" = None) -> Iterator[Listener]:
    """A listener that shows what it hears.

    Args:
        workspace: whose search is shown as a panel on a terminal; None where nothing is searched.
    """
    with ExitStack() as shown:
        yield _Terminal(workspace, shown)


class _Terminal(Listener):
    """Shows one kind of progress at a time, from its first news on."""

    def __init__(self, workspace: "Workspace | None", shown: ExitStack) -> None:
        self._workspace = workspace
        self._shown = shown
        self._bars: dict[str, Advance] = {}
        self._panel: LivePanel | None = None

    def advanced(self, what: str, done: int, total: int) -> None:
        if what not in self._bars:
            self._shown.close()
            if console.is_terminal:
                self._bars.clear()
            self._bars[what] = self._shown.enter_context(progress_bar(what))
        self._bars[what](done, total)
        if done == total and console.is_terminal:
            # What is finished stays on the terminal, and what is said next comes below it.
            self._shown.close()
            self._bars.clear()

    def scored(self, progress: "SearchProgress") -> None:
        if self._workspace is None or not console.is_terminal:
            self.advanced(f"candidates, {progress.fidelity.value}", progress.scored, progress.trials)
            return
        if self._panel is None:
            from hwsearch.view.status import live_panel

            self._shown.close()
            self._panel = self._shown.enter_context(live_panel(self._workspace))
        self._panel.show(progress)

    def said(self, line: str) -> None:
        tell(line)
