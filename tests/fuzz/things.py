"""What can stand at a path: a file's content, or something that is no regular file at all."""

import os
import shutil
import socket
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from hypothesis.vendor.pretty import RepresentationPrinter


class Odd(StrEnum):
    """What stands at a path instead of a regular file."""

    NOTHING = "nothing"
    FOLDER = "a folder"
    FIFO = "a FIFO without a writer"
    SOCKET = "a socket"
    LOOP = "a link to itself"
    DANGLING = "a link to nothing"
    ZEROS = "a link to /dev/zero"
    NULL = "a link to /dev/null"
    FULL = "a link to /dev/full"
    MEMORY = "a link to /proc/self/mem"
    SPARSE = "a sparse file of a terabyte"


_LINKS = {
    Odd.DANGLING: "nowhere",
    Odd.ZEROS: "/dev/zero",
    Odd.NULL: "/dev/null",
    Odd.FULL: "/dev/full",
    Odd.MEMORY: "/proc/self/mem",
}


@dataclass(frozen=True, repr=False)
class Thing:
    """What a case puts at a path.

    Attributes:
        content: bytes of a file, or what else is there.
        story: how it came about, step by step.
    """

    content: bytes | Odd
    story: tuple[str, ...] = ()

    def __repr__(self) -> str:
        size = self.content.value if isinstance(self.content, Odd) else f"{len(self.content)} bytes"
        return f"<{size}: {'; '.join(self.story) or 'as it is'}>"

    def _repr_pretty_(self, printer: RepresentationPrinter, cycle: bool) -> None:
        del cycle
        printer.text(repr(self))

    def put(self, path: Path) -> None:
        """Put it at a path, in the place of what is there."""
        remove(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(self.content, bytes):
            path.write_bytes(self.content)
        elif self.content in _LINKS:
            path.symlink_to(_LINKS[self.content])
        elif self.content is Odd.FOLDER:
            path.mkdir()
        elif self.content is Odd.FIFO:
            os.mkfifo(path)
        elif self.content is Odd.LOOP:
            path.symlink_to(path.name)
        elif self.content is Odd.SPARSE:
            path.touch()
            os.truncate(path, 2**40)
        elif self.content is Odd.SOCKET:
            _put_socket(path)


def remove(path: Path) -> None:
    """Remove whatever stands at a path."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _put_socket(path: Path) -> None:
    """A socket's own name is short; the file may then be anywhere."""
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        with closing(socket.socket(socket.AF_UNIX)) as listener:
            listener.bind(f"/proc/self/fd/{handle}/{path.name}")
    finally:
        os.close(handle)
