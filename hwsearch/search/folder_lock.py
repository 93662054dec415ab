"""One driver at a time writes to a run folder: a lock says which."""

from pathlib import Path

from hwsearch.files import locks
from hwsearch.files.locks import Lock, LockHolder

LOCK_FILE = "search.lock"

_BUSY = "is searching here; wanted a folder of its own"


class FolderLock(Lock):
    """A run folder that one driver holds, from the steps before its record on, which take hours."""

    def __init__(self, folder: Path) -> None:
        """Take it.

        Raises:
            UserError: another driver holds the folder (names its process), or it cannot be locked or written to.
        """
        super().__init__(folder / LOCK_FILE, _BUSY)


def lock_holder(folder: Path) -> LockHolder | None:
    """Which driver is searching in a folder, if any; changes nothing there."""
    return locks.lock_holder(folder / LOCK_FILE)


def check_unlocked(folder: Path) -> None:
    """Refuse a folder in which a driver is searching.

    Raises:
        UserError: names its process.
    """
    holder = lock_holder(folder)
    if holder is not None:
        raise locks.in_use(folder / LOCK_FILE, holder.process, _BUSY)
