"""A folder with one of everything that hwsearch reads, made whole again before each case."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pyroomacoustics
import pytest

from hwsearch.executor.local import LocalExecutor
from hwsearch.export import candidate
from hwsearch.search.scoring import ScorerFactory
from tests.fuzz.commands import TooLongError, WorkBeganError, run_watched
from tests.fuzz.things import Thing, remove

OUTPUT = "out"
"""Folder for what commands write."""

READING = ("status", "pareto", "cost", "targets")
"""Commands that change nothing but what they are told to write."""

Stamp = tuple[int, int, int, int]


@dataclass(frozen=True)
class Case:
    """A command, and what stands at a path that it reads."""

    command: tuple[str, ...]
    path: str | None = None
    thing: Thing | None = None


@dataclass
class Bench:
    """The folder, and a copy of it that no case touches."""

    folder: Path
    copy: Path
    cases: int = 0
    """Cases so far."""
    _stamps: dict[Path, Stamp] = field(default_factory=dict)

    @classmethod
    def around(cls, folder: Path) -> "Bench":
        """A bench whose folder is as it ought to be."""
        (folder / OUTPUT).mkdir()
        copy = folder.with_name(f"{folder.name}-copy")
        shutil.copytree(folder, copy)
        return cls(folder, copy, _stamps=_stamps(folder))

    def check(self, case: Case) -> int | None:
        """Run a case: it ends well, in time, and leaves nothing half-written.

        Returns:
            The exit code; None: work would begin.
        """
        self.restore()
        self.cases += 1
        if case.path is not None and case.thing is not None:
            case.thing.put(self.folder / case.path)
        before = _stamps(self.folder)
        with _work_stopped(), pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            try:
                ending = run_watched(case.command)
            except TooLongError as stopped:
                raise AssertionError(f"{case} does not end: {stopped}") from stopped
        assert ending.problem() is None, f"{case}: {ending.problem()}: {ending}"
        after = _stamps(self.folder)
        if ending.code == 2:
            assert not list((self.folder / OUTPUT).iterdir()), f"{case} left something behind its error: {ending}"
        if case.path is not None and (case.command[0] in READING or "--dry-run" in case.command):
            written = {path for path in after if path.is_relative_to(self.folder / OUTPUT)}
            assert {path for path in after.keys() | before.keys() if after.get(path) != before.get(path)} <= written, case
        return ending.code

    def restore(self) -> None:
        """Make the folder whole again."""
        now = _stamps(self.folder)
        for path in sorted(now.keys() - self._stamps.keys(), reverse=True):
            remove(path)
        for path in sorted(self._stamps):
            if path not in now or now[path] != self._stamps[path]:
                self._restore_one(path)

    def _restore_one(self, path: Path) -> None:
        copy = self.copy / path.relative_to(self.folder)
        if copy.is_dir():
            if path.is_symlink() or not path.is_dir():
                remove(path)
                path.mkdir()
        else:
            remove(path)
            shutil.copy2(copy, path)
        self._stamps[path] = _stamp(path)


def _stamps(folder: Path) -> dict[Path, Stamp]:
    """Every path below a folder with what tells whether it changed."""
    return {path: _stamp(path) for path in folder.rglob("*")}


def _stamp(path: Path) -> Stamp:
    found = path.lstat()
    if path.is_dir() and not path.is_symlink():
        return found.st_mode, 0, 0, 0
    return found.st_mode, found.st_size, found.st_mtime_ns, found.st_ino


@contextmanager
def _work_stopped() -> Iterator[None]:
    """Inside, work that takes long ends the command where it begins."""

    def stop(*_: Any, **__: Any) -> NoReturn:
        raise WorkBeganError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProcessPoolExecutor, "submit", stop)
        patch.setattr(pyroomacoustics.ShoeBox, "__init__", stop)
        patch.setattr(candidate, "export_candidate", stop)
        patch.setattr(ScorerFactory, "__call__", stop)
        patch.setattr(LocalExecutor, "submit", stop)
        yield
