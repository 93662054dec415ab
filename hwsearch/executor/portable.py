"""Files that travel with the work to machines that do not share a file system.

A factory or job lists its files, and can make a copy of itself that finds them below another root. On the other machine, the path
of a file is that root followed by its path here, so that folders keep their shape.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, TypeVar, runtime_checkable

from hwsearch.files.writing import atomic_write_bytes

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Named = TypeVar("Named", bound=DataclassInstance)


@runtime_checkable
class Portable(Protocol):
    """A factory that reads files, given by absolute paths."""

    def files(self) -> Iterable[Path]:
        """Every file that the work reads."""
        ...

    def below(self, root: Path) -> Self:
        """Return a copy with every path moved below `root`."""
        ...


@runtime_checkable
class PortableJob(Portable, Protocol):
    """A job that reads and writes files. Those of `files` may be absent."""

    def results(self) -> Iterable[Path]:
        """Every file that the job may write."""
        ...


def moved(path: Path, root: Path) -> Path:
    """Return the path of a file of this machine below another root."""
    return root / path.relative_to(path.anchor)


def moved_paths(value: "Named", root: Path) -> "Named":
    """Copy a dataclass with its own paths moved. Paths inside nested values stay."""
    paths = {field.name: path for field in fields(value) if isinstance(path := getattr(value, field.name), Path)}
    return replace(value, **{name: moved(path, root) for name, path in paths.items()})


def contents(paths: Iterable[Path]) -> dict[Path, bytes]:
    """Read the files that exist; return their content by path."""
    return {path: path.read_bytes() for path in paths if path.is_file()}


def unpack(files: Mapping[Path, bytes], root: Path) -> None:
    """Write files below `root`, each one whole or not at all.

    Raises:
        UserError: a file cannot be written.
    """
    for path, content in files.items():
        atomic_write_bytes(moved(path, root), content)
