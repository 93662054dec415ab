"""Files that travel with the work, to machines that do not share a file system.

A factory or a job that names files says which they are and makes a copy of itself that finds them below another root. On the
other machine a file lies at that root followed by the path it has here, so that folders keep their shape.
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
    """A factory that names files. All paths are absolute."""

    def files(self) -> Iterable[Path]:
        """Every file that the work reads."""
        ...

    def below(self, root: Path) -> Self:
        """The same with every path below `root`; see `moved`."""
        ...


@runtime_checkable
class PortableJob(Portable, Protocol):
    """A job that names files: `files` are those of them that are there."""

    def results(self) -> Iterable[Path]:
        """Every file that the job may leave."""
        ...


def moved(path: Path, root: Path) -> Path:
    """Where a file of this machine lies below another root."""
    return root / path.relative_to(path.anchor)


def moved_paths(value: "Named", root: Path) -> "Named":
    """A copy of a dataclass whose own paths are moved; those in what it holds are not."""
    held = {field.name: getattr(value, field.name) for field in fields(value)}
    return replace(value, **{name: moved(path, root) for name, path in held.items() if isinstance(path, Path)})


def contents(paths: Iterable[Path]) -> dict[Path, bytes]:
    """The files that are there, with what they hold."""
    return {path: path.read_bytes() for path in paths if path.is_file()}


def unpack(files: Mapping[Path, bytes], root: Path) -> None:
    """Write files below `root`, each at once or not at all.

    Raises:
        UserError: a file cannot be written, such as on a full disk.
    """
    for path, content in files.items():
        atomic_write_bytes(moved(path, root), content)
