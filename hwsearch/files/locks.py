"""Locks of the operating system. One process at a time holds a lock file, which names it; a kill releases the lock.

`filelock` does not suffice: it does not say who holds a lock, and looking needs the right to write in the folder.
"""

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

_TRIES = 5
_PAUSE_SECONDS = 0.02
"""Pause between two attempts to take a lock. `lock_holder` holds it for an instant, which must not make another process fail."""
_BYTES = 400
"""Longest name of a process and its machine, in bytes."""


class Lock:
    """A lock file that this process holds, in the folder that it protects."""

    def __init__(self, path: Path, busy: str) -> None:
        """Take the lock. The folder is made if it does not exist.

        Args:
            path: the lock file.
            busy: what the holding process does and how to react, such as 'is searching here; wait for it'.

        Raises:
            UserError: this or another process holds the lock (names the process), or the file cannot be locked or written to.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            with ExitStack() as opened:
                opened.callback(os.close, self._handle)
                tries = 1
                while not lock_at_once(self._handle):
                    if tries == _TRIES:
                        raise in_use(path, _named(self._handle), busy)
                    time.sleep(_PAUSE_SECONDS)
                    tries += 1
                os.ftruncate(self._handle, 0)
                os.write(self._handle, f"{os.getpid()} {socket.gethostname()}\n".encode())
                opened.pop_all()
        except OSError as error:
            raise _unlockable(path, error) from None
        _HELD.add(self._handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _HELD.discard(self._handle)
        os.close(self._handle)


_HELD: set[int] = set()


def _forget_held() -> None:
    """Forget the locks in a forked process, which may outlive its parent."""
    while _HELD:
        os.close(_HELD.pop())


os.register_at_fork(after_in_child=_forget_held)


@dataclass(frozen=True)
class LockHolder:
    """The process that holds a lock file."""

    process: str
    """Its id, and its machine if that is another one, since machines may share a folder."""
    since: datetime
    """When it took the lock, UTC."""


def lock_holder(path: Path) -> LockHolder | None:
    """Return the process that holds a lock file, if any; raise `UserError` if that cannot be checked.

    The check takes a shared lock for an instant. A process that wants the lock meanwhile waits.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would wait without end
        with ExitStack() as opened:
            opened.callback(os.close, handle)
            if lock_at_once(handle, fcntl.LOCK_SH):
                return None
            return LockHolder(_named(handle), datetime.fromtimestamp(os.fstat(handle).st_mtime, UTC))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unlockable(path, error) from None


def in_use(path: Path, process: str, busy: str) -> UserError:
    """Make the error that names the process that holds a folder, and what it does there."""
    return UserError(f"{path.parent}: process {process} {busy}")


def lock_at_once(handle: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Lock an open file or folder; return false if another process holds it. Raise `OSError` if the file system has no locks."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlockable(path: Path, error: OSError) -> UserError:
    said = "wanted a place with room and the right to write, on a file system that has locks"
    return UserError(f"{path}: cannot be locked ({error.strerror}); {said}")


def _named(handle: int) -> str:
    """Return the name of the process in a lock file, as it is called on this machine."""
    process, _, host = os.read(handle, _BYTES).decode(errors="replace").strip().partition(" ")
    return (process or "unknown") + (f" on {host}" if host and host != socket.gethostname() else "")
