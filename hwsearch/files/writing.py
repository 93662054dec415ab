"""Files written whole or not at all."""

import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hw_models.reading import no_file
from hwsearch.errors import UserError
from hwsearch.files.locks import lock_at_once
from hwsearch.files.reading import indented_json

# Values of linux/fcntl.h and linux/fs.h.
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file of the same name in a hidden folder beside `path`, then move it to `path`.

    A kill at any instant leaves either the old file or the new one. It may also leave the hidden folder with a partial file; the
    next write of `path` removes it.

    Raises:
        UserError: the file cannot be written there.
    """
    with _hidden_place(path) as temporary:
        write(temporary)
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)


def atomic_write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a new folder, then move it to `path`, where it replaces an earlier folder.

    A kill at any instant leaves either the old folder or the new one. On a file system that cannot exchange two folders, a kill
    may leave neither at `path`; the next write then begins by putting the old one back. The next write also removes everything
    else that a kill leaves.

    Raises:
        UserError: the folder cannot be written there.
    """
    path = Path(os.path.realpath(path))
    with _hidden_place(path) as finished:
        _restore(path)
        finished.mkdir()
        write(finished)
        _put_in_place(finished, path)


def check_writable(path: Path) -> None:
    """Refuse a path that cannot be written, so that no work is done in vain. Nothing is made.

    Raises:
        UserError: something other than a file is there, or the folder of the path can neither be made nor written to.
    """
    check_folder(path.parent, path)
    try:
        path.stat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unwritable(path, error) from None
    if (reason := no_file(path)) is not None:
        raise UserError(f"{path}: {reason}; wanted the name of a file to write")


def check_folder(folder: Path, path: Path | None = None) -> None:
    """Refuse a folder that can neither be made nor written to. Nothing is made.

    Raises:
        UserError: names `path`, which the folder is to hold, or else the folder.
    """
    path = folder if path is None else path
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    try:
        if not folder.is_dir():
            raise UserError(f"{path}: {folder} is no folder; wanted a folder that is there or can be made")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(path, error) from None


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    atomic_write(path, lambda temporary: temporary.write_bytes(content))


def atomic_write_text(path: Path, content: str) -> None:
    """Write `content` to `path` atomically, as UTF-8."""
    atomic_write_bytes(path, content.encode())


def atomic_write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON atomically; NaN and infinity are refused."""
    atomic_write_text(path, indented_json(value))


@contextmanager
def _hidden_place(path: Path) -> Iterator[Path]:
    """Give a path of the same name in a hidden folder beside `path`, and remove the folder at the end."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder, lock = _hidden_folder(path)
        try:
            yield folder / path.name
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
    except OSError as error:
        raise _unwritable(path, error) from None


def _hidden_folder(path: Path) -> tuple[Path, int]:
    """Make an empty folder for writing `path`, and return it with a handle that locks it.

    Its name is derived from the name of `path`, so that the next write finds what a killed process left. While another process
    or thread writes `path`, or if folders cannot be locked, the folder gets a random name.
    """
    folder = path.with_name(f".{path.name}-part")
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        if _take(folder, lock):
            return folder, lock
        os.close(lock)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    return folder, os.open(folder, os.O_RDONLY | os.O_DIRECTORY)


def _take(folder: Path, lock: int) -> bool:
    """Lock and empty a folder; return false if that fails, or if another process holds or has just removed it."""
    try:
        if not lock_at_once(lock) or not os.path.samestat(os.fstat(lock), folder.lstat()):
            return False
        for left in folder.iterdir():
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink()
    except OSError:
        return False
    return True


def _put_in_place(finished: Path, path: Path) -> None:
    """Move a folder to `path`. An earlier folder there is removed, or ends up where the new one was."""
    if not path.exists():
        finished.rename(path)
    elif not _exchange(finished, path):
        earlier = _aside(path)
        path.rename(earlier)
        finished.rename(path)
        shutil.rmtree(earlier)


def _restore(path: Path) -> None:
    """Clean up after a kill inside `_put_in_place`: put the earlier folder back if nothing replaced it, otherwise remove it."""
    earlier = _aside(path)
    if earlier.is_dir():
        if path.exists():
            shutil.rmtree(earlier)
        else:
            earlier.rename(path)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}-earlier")


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two paths in one step; return false if the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(second))


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be written ({error.strerror or error}); wanted a place with room and the right to write")
