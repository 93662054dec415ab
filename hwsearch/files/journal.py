"""Journals: files of JSON lines that grow at their end and survive a kill.

A kill or a full disk can tear only the last line. A reader leaves a torn line out; opening the journal for writing cuts it off.
Lines may carry seals (`hwsearch.files.seals`), which are checked when they are read. The caller must ensure that only one
process writes at a time.
"""

import mmap
import os
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from pydantic import TypeAdapter, ValidationError

from hw_models.wording import first_mistake
from hwsearch.errors import UserError
from hwsearch.files.reading import check_regular, read_content
from hwsearch.files.seals import seal_lines

JOURNAL_BYTES = 2**35
"""The largest journal that is read. The record of a million candidates at every fidelity is half as large."""

Line = TypeVar("Line")


def read_lines(path: Path, what: str) -> list[bytes]:
    """Read the whole lines of a journal as they stand, even while it is written.

    Raises:
        UserError: there is no such file, or it cannot be read. The message names `what` was wanted.
    """
    content = read_content(path, what, JOURNAL_BYTES)
    return content[: content.rfind(b"\n") + 1].splitlines()


def parse_line(kind: TypeAdapter[Line], line: bytes, path: Path, number: int, mend: str) -> Line:
    """Parse a line without its seal; raise `UserError`, which names file and line and says what to do (`mend`)."""
    try:
        return kind.validate_json(line, strict=True)
    except ValidationError as error:
        said = first_mistake(error).said
        raise UserError(f"{path}, line {number}: not a valid entry ({said}); {mend}") from None


class Journal:
    """A journal, open for appending."""

    def __init__(self, path: Path, what: str, *, sealed: bool = True) -> None:
        """Open the file, or make it. A torn last line is cut off, and the other lines are on the disk when this returns.

        Args:
            path: the file.
            what: what the file is, for messages.
            sealed: whether lines carry seals.

        Raises:
            UserError: the path is no regular file, or cannot be written.
        """
        check_regular(path, what)
        self._path = path
        self._sealed = sealed
        self._last = b""
        """The last line, on which the seal of the next one depends."""
        with ExitStack() as opened:
            try:
                self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
                opened.callback(os.close, self._handle)
                self._cut_torn_line()
                # A writer killed between write and fsync may have left lines that a power cut could still take.
                os.fsync(self._handle)
                if not self._last:
                    sync_folder(path.parent)
            except OSError as error:
                raise self._unwritable(error) from None
            self._opened = opened.pop_all()

    def append(self, entries: Iterable[bytes], *, durably: bool = True) -> None:
        """Write entries, one per line, with one disk sync for all.

        Args:
            entries: JSON objects with at least one key, without newlines.
            durably: whether they are on the disk when this returns.

        Raises:
            UserError: the file cannot be written, for example because the disk is full. Every line that was written whole stays.
        """
        lines = list(seal_lines(entries, self._last) if self._sealed else entries)
        text = b"".join(line + b"\n" for line in lines)
        try:
            while text:
                text = text[os.write(self._handle, text) :]
            if durably:
                os.fsync(self._handle)
        except OSError as error:
            with suppress(OSError):  # if this fails, the next writer cuts it off
                self._cut_torn_line()
            raise self._unwritable(error) from None
        self._last = lines[-1] if lines else self._last

    def close(self) -> None:
        """Close the file."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _cut_torn_line(self) -> None:
        size = os.fstat(self._handle).st_size
        if size == 0:
            return
        with mmap.mmap(self._handle, size, access=mmap.ACCESS_READ) as content:
            whole = content.rfind(b"\n") + 1
            self._last = content[content.rfind(b"\n", 0, max(whole - 1, 0)) + 1 : max(whole - 1, 0)]
        os.ftruncate(self._handle, whole)

    def _unwritable(self, error: OSError) -> UserError:
        said = "it keeps all lines before: make room, and the same command goes on"
        return UserError(f"{self._path}: cannot be written ({error.strerror}); {said}")


def sync_folder(folder: Path) -> None:
    """Put a new file's name on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
