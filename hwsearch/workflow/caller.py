"""What the caller of a step gives it: what the step may use of the machine, and who hears of its progress."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hwsearch.search.progress import SearchProgress

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


@dataclass(frozen=True)
class Resources:
    """Processes and workers that a step may use.

    Attributes:
        processes: number of processes that make data, at least 1.
        workers: number of Ray workers; with 0 the calling process computes, without Ray.
        ray_address: HOST:PORT of a running cluster; None starts Ray on this machine.
    """

    processes: int = 2
    workers: int = 2
    ray_address: str | None = None


DEFAULTS = Resources()


class Listener:
    """Hears of the progress of the steps. Its methods do nothing; override those that you want to hear.

    A method may raise `KeyboardInterrupt` to stop the step. The same call goes on later.
    """

    def advanced(self, what: str, done: int, total: int) -> None:
        """Hear that `done` of `total` pieces of `what` are finished."""

    def scored(self, progress: "SearchProgress") -> None:
        """Hear that a candidate was scored or failed, or that a rung begins."""

    def said(self, line: str) -> None:
        """Hear a line for people: a warning, an epoch's figures, the path of a file that was written."""

    def progress(self, what: str) -> Progress:
        """Return `advanced` for one kind of piece."""
        return lambda done, total: self.advanced(what, done, total)


SILENT = Listener()
