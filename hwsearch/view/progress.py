"""What a running search shows: bars and a panel on a terminal, a line per tenth elsewhere, and everything in its log."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from hwsearch.search.drivers import DriverAccount, Step
from hwsearch.search.log import Line, describe, events_logged, search_log
from hwsearch.search.progress import SearchProgress
from hwsearch.searching import SearchReports
from hwsearch.status_display import LivePanel, live_panel
from hwsearch.terminal import Advance, console, progress_bar, tell
from hwsearch.workspace import Workspace


@contextmanager
def search_display(workspace: Workspace, account: DriverAccount) -> Iterator[tuple[SearchReports, Line]]:
    """Reports for a search to call, and the function that writes a line into its log. Warnings are shown and logged, too.

    Steps go into the driver's account as well.

    Raises:
        UserError: the log cannot be written.
    """
    with search_log(workspace.folder) as log, events_logged(log, tell), ExitStack() as shown:
        display = _Display(workspace, shown, log, account)
        reports = SearchReports(display.step(Step.POOL), display.step(Step.SENSITIVITIES), display.step(Step.NAS), display.show)
        yield reports, log


class _Display:
    """One step is shown at a time, from its first news on."""

    def __init__(self, workspace: Workspace, shown: ExitStack, log: Line, account: DriverAccount) -> None:
        self._workspace = workspace
        self._shown = shown
        self._log = log
        self._account = account
        self._advances: dict[str, Advance] = {}
        self._panel: LivePanel | None = None

    def step(self, step: Step) -> Advance:
        """A step's bar."""

        def advance(done: int, total: int) -> None:
            self._account.step(step, done, total)
            if step.value not in self._advances:
                self._log(f"{step.value}: {done}/{total}")
            self._bar(step.value, done, total)

        return advance

    def show(self, progress: SearchProgress) -> None:
        """A finished candidate, or the start of a rung."""
        self._account.step(Step.CANDIDATES)
        self._log(describe(progress, self._workspace.experiment.search.objectives))
        if not console.is_terminal:
            self._bar(f"candidates, {progress.fidelity.value}", progress.scored, progress.trials)
            return
        if self._panel is None:
            self._shown.close()
            self._panel = self._shown.enter_context(live_panel(self._workspace))
        self._panel.show(progress)

    def _bar(self, title: str, done: int, total: int) -> None:
        if title not in self._advances:
            self._shown.close()
            self._advances[title] = self._shown.enter_context(progress_bar(title))
        self._advances[title](done, total)
