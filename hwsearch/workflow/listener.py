"""How a step says how far it is: the one interface between the workflow and whatever shows it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hwsearch.search.progress import SearchProgress

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


class Listener:
    """Hears how the steps get on. Every method here does nothing; override those that you want to hear.

    A method may raise `KeyboardInterrupt` to stop the step. The same call goes on later.
    """

    def advanced(self, what: str, done: int, total: int) -> None:
        """Hear that `done` of `total` pieces of `what` are finished."""

    def scored(self, progress: "SearchProgress") -> None:
        """Hear that a candidate was scored or failed, or that a rung begins."""

    def said(self, line: str) -> None:
        """Hear a line that a person may want to read: a warning, an epoch's figures, a file that was written."""

    def progress(self, what: str) -> Progress:
        """`advanced` for one kind of piece."""
        return lambda done, total: self.advanced(what, done, total)


SILENT = Listener()
"""Hears and shows nothing."""
