"""The runs in a folder of runs."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hwsearch.errors import UserError
from hwsearch.experiment import EXPERIMENT_FILE, RESERVED_NAMES
from hwsearch.results.folders import run_folders
from hwsearch.results.status import SearchStatus, read_status
from hwsearch.search.objectives import QUALITY
from hwsearch.search.record import RECORD_FILE

NOT_BEGUN = "not begun"
UNREADABLE = "unreadable"


@dataclass(frozen=True)
class ListedRun:
    """A run folder in a line.

    Attributes:
        name: of the folder.
        state: `running`, how the last driver ended, such as `finished`, or `NOT_BEGUN` or `UNREADABLE`.
        scored: candidates scored at the present rung; None if there is no search.
        wanted: candidates wanted at that rung; None if there is no search.
        best_db: largest improvement of the SI-SNR within the limits, in dB; None if nothing is scored.
        changed: when something last happened, UTC.
        bytes: size on disk, without the data that runs share.
        trouble: why it is unreadable; empty otherwise.
    """

    name: str
    state: str
    scored: int | None
    wanted: int | None
    best_db: float | None
    changed: datetime
    bytes: int
    trouble: str = ""


def list_runs(runs: Path) -> tuple[ListedRun, ...]:
    """List the run folders in a folder of runs, the one that changed last first. Damaged runs are listed, too.

    Raises:
        UserError: there is no such folder.
    """
    if not runs.is_dir():
        raise UserError(f"{runs}: no such folder; wanted the folder of all runs, as 'hwsearch run' makes it")
    found = [_listed(folder) for folder in run_folders(runs)]
    return tuple(sorted(found, key=lambda run: run.changed, reverse=True))


def shared_bytes(runs: Path) -> int:
    """Return the size on disk of what runs share: data sets and synthesised speech."""
    return sum(_bytes(runs / name) for name in RESERVED_NAMES)


def to_json(run: ListedRun) -> dict[str, Any]:
    """Convert to JSON values; the time in ISO 8601."""
    return {**asdict(run), "changed": run.changed.isoformat(timespec="seconds")}


def _listed(folder: Path) -> ListedRun:
    files = [folder / name for name in (EXPERIMENT_FILE, RECORD_FILE) if (folder / name).is_file()]
    changed = datetime.fromtimestamp(max(file.stat().st_mtime for file in files), UTC)
    size = _bytes(folder)
    if len(files) < 2:
        return ListedRun(folder.name, NOT_BEGUN, None, None, None, changed, size)
    try:
        status = read_status(folder)
    except UserError as error:
        return ListedRun(folder.name, UNREADABLE, None, None, None, changed, size, str(error))
    present = status.present
    best = max((notable.values[QUALITY] for notable in status.notable if QUALITY in notable.values), default=None)
    return ListedRun(folder.name, _state(status), present.scored, present.wanted, best, changed, size)


def _state(status: SearchStatus) -> str:
    if status.driver is not None:
        return "running"
    if status.last_end is not None:
        return status.last_end.how.value
    return "finished" if status.remaining_seconds == 0 else "stopped"


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if not path.is_dir() else 0
        except OSError:  # removed meanwhile: a search goes on
            continue
    return total
