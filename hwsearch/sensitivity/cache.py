"""What was estimated, kept in a folder that is bound to all it depends on.

    key.json      what the jobs depend on, part by part
    jobs.jsonl    a line with a seal (`hwsearch.seals`) for each job that is done; on the disk (fsync) before the next one counts
    METHOD.json   tables made of them

A kill can tear only the last line, which the next run cuts off. A lock of the operating system, which a kill releases, lets one
process at a time write.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hw_models.wording import first_mistake
from hwsearch.errors import UserError
from hwsearch.files import check_regular
from hwsearch.seals import BrokenSealError, read_sealed_json, seal_line, unseal_lines, write_sealed_json
from hwsearch.sensitivity.jobs import Result

KEY_FILE = "key.json"
JOBS_FILE = "jobs.jsonl"
LOCK_FILE = "lock"
_FORMAT = 1

Parts = Mapping[str, Any]
"""What jobs depend on: the name of each part, as messages call it, and its content or a hash of it, as JSON."""


@dataclass
class Journal:
    """The results of a folder, open for appending by the process that holds its lock."""

    results: tuple[Result, ...]
    """Those that were there when it was opened."""
    _handle: int
    _last: bytes
    """The last line, whose seal the next one's depends on."""

    def append(self, result: Result) -> None:
        """Write a result; it is on the disk when this returns."""
        self._last = seal_line(result.model_dump_json(exclude_defaults=True).encode(), self._last)
        line = self._last + b"\n"
        while line:
            line = line[os.write(self._handle, line) :]
        os.fsync(self._handle)


@contextmanager
def open_journal(folder: Path, parts: Parts) -> Iterator[Journal]:
    """Lock a folder, bind it to `parts`, and read what was done.

    Parts that the folder does not know yet are added: a method that depends on more was not wanted before.

    Raises:
        UserError: another process works here, the folder was made with other parts (names the first), or a line is broken.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        _bind(folder, parts)
        check_regular(folder / JOBS_FILE, "the results of sensitivities")
        handle = os.open(folder / JOBS_FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            content = (folder / JOBS_FILE).read_bytes()
            whole = content.rfind(b"\n") + 1
            lines = content[:whole].splitlines()
            results = _parse(lines, folder / JOBS_FILE)
            os.ftruncate(handle, whole)
            yield Journal(results, handle, lines[-1] if lines else b"")
        finally:
            os.close(handle)


def _bind(folder: Path, parts: Parts) -> None:
    path = folder / KEY_FILE
    known: dict[str, Any] = {}
    if path.is_file():
        mend = f"delete {folder} and the sensitivities are made again"
        content = read_sealed_json(path, "what sensitivities were made with", mend)
        if content.get("format") != _FORMAT or not isinstance(content.get("parts"), dict):
            raise UserError(f"{path}: not a key of format {_FORMAT}; {mend}")
        known = content["parts"]
    elif (folder / JOBS_FILE).is_file():
        raise UserError(f"{path}: missing, though {JOBS_FILE} is there; delete {folder} and the sensitivities are made again")
    for name, content in parts.items():
        if name in known and known[name] != content:
            raise UserError(
                f"{folder}: its sensitivities were made with another {name}{_difference(known[name], content)}; delete the "
                "folder to make them again, give the experiment another name, or restore what changed"
            )
    if parts.keys() - known.keys() or not path.is_file():
        write_sealed_json(path, {"format": _FORMAT, "parts": {**known, **parts}})


def _difference(before: Any, here: Any) -> str:
    """The first setting that differs, where parts are settings."""
    if not (isinstance(before, dict) and isinstance(here, dict)):
        return ""
    name = next(name for name in sorted(before.keys() | here.keys()) if before.get(name) != here.get(name))
    return f" ({name} {before.get(name)}, now {here.get(name)})"


def _parse(lines: Sequence[bytes], path: Path) -> tuple[Result, ...]:
    mend = f"delete {path.parent} and the sensitivities are made again"
    try:
        entries = list(unseal_lines(lines))
    except BrokenSealError as error:
        raise UserError(f"{path}, line {error.line}: {error}; {mend}") from None
    results = []
    for number, line in enumerate(entries, start=1):
        try:
            results.append(Result.model_validate_json(line, strict=True))
        except ValidationError as error:
            raise UserError(f"{path}, line {number}: {first_mistake(error).said}; {mend}") from None
    return tuple(results)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 32).decode(errors="replace").strip()
            raise UserError(
                f"{folder}: process {holder or 'unknown'} is estimating sensitivities here; wait for it, or end it"
            ) from None
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(handle)
