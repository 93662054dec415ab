"""The results of estimation, kept in a folder that is bound to everything they depend on.

    key.json      the inputs and settings of the jobs, part by part
    jobs.jsonl    a sealed line (`hwsearch.files.journal`) for each result, written as soon as its job is done
    METHOD.json   tables made of the results

Only one process at a time writes, the one that holds the lock.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from hwsearch.errors import UserError
from hwsearch.files.journal import Journal, parse_line, read_lines
from hwsearch.files.locks import Lock
from hwsearch.files.seals import read_sealed_json, unseal_lines, write_sealed_json
from hwsearch.sensitivity.jobs import Result

KEY_FILE = "key.json"
JOBS_FILE = "jobs.jsonl"
LOCK_FILE = "lock"
_FORMAT = 1
_WHAT = "the results of sensitivities"
_BUSY = "is estimating sensitivities here; wait for it, or end it"
_LINE = TypeAdapter(Result)

Parts = Mapping[str, Any]
"""The inputs and settings that jobs depend on: by the name that messages give each part, its content or a hash of it."""


@dataclass(frozen=True)
class ResultJournal:
    """The results of a folder, open for appending by the process that holds its lock."""

    results: tuple[Result, ...]
    """Results that existed when the journal was opened."""
    _journal: Journal

    def append(self, result: Result) -> None:
        """Write a result; it is on the disk when this returns.

        Raises:
            UserError: it cannot be written.
        """
        self._journal.append([result.model_dump_json(exclude_defaults=True).encode()])


@contextmanager
def open_journal(folder: Path, parts: Parts) -> Iterator[ResultJournal]:
    """Lock a folder, bind it to `parts`, and read its results.

    Parts that the folder lacks are added. They belong to methods that were not used before.

    Raises:
        UserError: another process works here, the folder was made with other parts, or a line is broken. The message names the
            first part that differs.
    """
    mend = f"delete {folder} and the sensitivities are made again"
    with Lock(folder / LOCK_FILE, _BUSY):
        _bind(folder, parts, mend)
        results = _read(folder / JOBS_FILE, mend)
        with Journal(folder / JOBS_FILE, _WHAT) as journal:
            yield ResultJournal(results, journal)


def _bind(folder: Path, parts: Parts, mend: str) -> None:
    path = folder / KEY_FILE
    known: dict[str, Any] = {}
    if path.is_file():
        content = read_sealed_json(path, "what sensitivities were made with", mend)
        if content.get("format") != _FORMAT or not isinstance(content.get("parts"), dict):
            raise UserError(f"{path}: not a key of format {_FORMAT}; {mend}")
        known = content["parts"]
    elif (folder / JOBS_FILE).is_file():
        raise UserError(f"{path}: missing, though {JOBS_FILE} is there; {mend}")
    for name, content in parts.items():
        if name in known and known[name] != content:
            raise UserError(
                f"{folder}: its sensitivities were made with another {name}{_difference(known[name], content)}; delete the "
                "folder to make them again, give the experiment another name, or restore what changed"
            )
    if parts.keys() - known.keys() or not path.is_file():
        write_sealed_json(path, {"format": _FORMAT, "parts": {**known, **parts}})


def _difference(before: Any, here: Any) -> str:
    """Name the first setting that differs, if a part consists of settings."""
    if not (isinstance(before, dict) and isinstance(here, dict)):
        return ""
    name = next(name for name in sorted(before.keys() | here.keys()) if before.get(name) != here.get(name))
    return f" ({name} {before.get(name)}, now {here.get(name)})"


def _read(path: Path, mend: str) -> tuple[Result, ...]:
    if not path.exists():
        return ()
    lines = unseal_lines(read_lines(path, _WHAT), path, mend)
    return tuple(parse_line(_LINE, line, path, number, mend) for number, line in enumerate(lines, start=1))
