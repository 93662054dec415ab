"""The lock of a run folder: only the driver that holds it writes there."""

from pathlib import Path

from hwsearch.files import locks
from hwsearch.files.locks import Lock, LockHolder

LOCK_FILE = "search.lock"

_BUSY = "is searching here; wanted a folder of its own"


class FolderLock(Lock):
    """The lock on a run folder. A driver takes it before its first step, which may come hours before the record."""

    def __init__(self, folder: Path) -> None:
        """Take the lock.



        Raises:
            UserError: another driver holds the folder (names its process), or it cannot be locked or written to.
        """
        super().__init__(folder / LOCK_FILE, _BUSY)


def lock_holder(folder: Path) -> LockHolder | None:
    """Return the driver that is searching in a folder, if any; change nothing there."""
    return locks.lock_holder(folder / LOCK_FILE)


def check_unlocked(folder: Path) -> None:
    """Refuse a folder in which a driver is searching.

    Raises:
        UserError: names its process.
    """
    holder = lock_holder(folder)
    if holder is not None:
        raise locks.in_use(folder / LOCK_FILE, holder.process, _BUSY)
