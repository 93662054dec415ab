"""Progress bars and summaries on the terminal, or plain lines where there is none."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hwsearch.training.base import Reports, train_base, trained_path
from hwsearch.training.checkpoint import TrainingProgress
from hwsearch.workspace import Workspace

console = Console(stderr=True)

Advance = Callable[[int, int], None]
"""Called with (done, total)."""


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
                f"epoch {progress.epoch}/{config.epochs}: training loss {loss:.2f} dB, "
                f"validation SI-SNR improvement {score:.2f} dB (best {progress.best_score_db:.2f} in epoch {progress.best_epoch})"
            )

        progress = train_base(workspace, processes, Reports(on_rooms, on_step, on_epoch))
    console.print(f"base: {trained_path(workspace)}")
    return progress
