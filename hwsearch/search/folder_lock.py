"""One driver at a time writes to a run folder: a lock of the operating system says which, and a kill releases it."""

import fcntl
import os
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from hwsearch.errors import UserError

LOCK_FILE = "search.lock"

_TRIES = 5
_PAUSE_SECONDS = 0.02
"""Between tries for a lock: `lock_holder` looks at it for an instant, which must not turn a driver away."""
_BYTES = 400
"""A process and its machine are no longer."""


class FolderLock:
    """A run folder that one driver holds, from the steps before its record on, which take hours."""

    def __init__(self, folder: Path) -> None:
        """Take it.

        Raises:
            UserError: another driver holds the folder (names its process), or it cannot be locked or written to.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._handle = _lock_folder(folder)
        _HELD.add(self._handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _HELD.discard(self._handle)
        os.close(self._handle)


_HELD: set[int] = set()
"""Handles of the folders that this process holds."""


def _forget_held() -> None:
    """A child, such as one that loads training examples, holds nothing: it may outlive a driver that is killed."""
    while _HELD:
        os.close(_HELD.pop())


os.register_at_fork(after_in_child=_forget_held)


def _lock_folder(folder: Path) -> int:
    """Take the folder's lock; returns the handle that holds it.

    `flock` belongs to the open file, so a second driver in the same process is refused as well.
    """
    path = folder / LOCK_FILE
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    with ExitStack() as opened:
        opened.callback(os.close, handle)
        tries = 1
        while not _try_lock(handle, fcntl.LOCK_EX, path):
            if tries == _TRIES:
                raise _searching_here(folder, _holder(handle))
            time.sleep(_PAUSE_SECONDS)
            tries += 1
        try:
            os.ftruncate(handle, 0)
            os.write(handle, f"{os.getpid()} {socket.gethostname()}\n".encode())
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); wanted a place with room") from None
        opened.pop_all()
    return handle


@dataclass(frozen=True)
class LockHolder:
    """The driver that holds a run folder."""

    process: str
    """Its id, and the machine it runs on where that is another one: a run folder may be shared."""
    since: datetime
    """When it took the folder, UTC."""


def lock_holder(folder: Path) -> LockHolder | None:
    """Which driver is searching in a folder, if any; changes nothing there.

    The lock is shared for an instant, which a driver that is just starting waits for.
    """
    try:
        handle = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would be waited for
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        if _try_lock(handle, fcntl.LOCK_SH, folder / LOCK_FILE):
            return None
        return LockHolder(_holder(handle), datetime.fromtimestamp(os.fstat(handle).st_mtime, UTC))
    finally:
        os.close(handle)


def check_unlocked(folder: Path) -> None:
    """Refuse a folder in which a driver is searching.

    Raises:
        UserError: names its process.
    """
    holder = lock_holder(folder)
    if holder is not None:
        raise _searching_here(folder, holder.process)


def _holder(handle: int) -> str:
    """The process that a lock file names, as it is called here."""
    process, _, host = os.read(handle, _BYTES).decode(errors="replace").strip().partition(" ")
    return (process or "unknown") + (f" on {host}" if host and host != socket.gethostname() else "")


def _searching_here(folder: Path, process: str) -> UserError:
    return UserError(f"{folder}: process {process} is searching here; wanted a folder of its own")


def _try_lock(handle: int, kind: int, path: Path) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # such as on a network file system without locks
        raise UserError(f"{path}: cannot be locked ({error.strerror}); wanted a file system that has locks") from None
    return True
