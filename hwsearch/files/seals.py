"""Seals: digests that files carry of their own content, so that a change of it is noticed when it is read.

They guard against accidents and careless edits: a flipped bit, a value changed in an editor, a line that was lost. Someone who
changes a file on purpose can seal it again.

In a file of JSON lines the last key of each line is a digest of the line and of the line before. A line cannot change, go missing
or change places unnoticed. Only the last lines can be lost, as they can in a kill. A sealed JSON file carries a digest of all its
other keys.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hwsearch.errors import UserError
from hwsearch.files.reading import digest, read_json
from hwsearch.files.writing import atomic_write_json

SEAL = "sha256"
"""Key of a sealed JSON file's digest."""

_LENGTH = 16
_BEFORE, _BEHIND = b',"seal":"', b'"}'
_SUFFIX = len(_BEFORE) + _LENGTH + len(_BEHIND)


def seal_line(line: bytes, previous: bytes) -> bytes:
    """A line with its seal.

    Args:
        line: a JSON object that is not empty, without a newline.
        previous: the sealed line before it; empty for the first one.
    """
    seal = hashlib.sha256(previous[-_SUFFIX:] + line).hexdigest()[:_LENGTH]
    return line[:-1] + _BEFORE + seal.encode() + _BEHIND


def seal_lines(lines: Iterable[bytes], previous: bytes = b"") -> Iterator[bytes]:
    """Lines with their seals, behind a sealed line where one is given."""
    for line in lines:
        previous = seal_line(line, previous)
        yield previous


def unseal_lines(lines: Iterable[bytes], path: Path, mend: str) -> Iterator[bytes]:
    """Lines without their seals.

    Args:
        lines: of a file.
        path: of the file, for messages.
        mend: what to do where a line is not as it was written.

    Raises:
        UserError: at the first line whose seal is none of it and of the line before; names file and line.
    """
    previous = b""
    for number, line in enumerate(lines, start=1):
        content = line[:-_SUFFIX] + b"}"
        if line != seal_line(content, previous):
            raise UserError(f"{path}, line {number}: changed since it was written, or the line before it is gone; {mend}")
        previous = line
        yield content


def write_sealed_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a JSON object with its seal, atomically."""
    atomic_write_json(path, {SEAL: digest(content), **content})


def read_sealed_json(path: Path, what: str, mend: str) -> dict[str, Any]:
    """Read what `write_sealed_json` wrote; gives it without its seal.

    Args:
        path: of the file.
        what: the file holds.
        mend: what to do where it does not.

    Raises:
        UserError: no such file, no JSON object, or one that is not as it was written.
    """
    content = read_json(path, what)
    if not isinstance(content, dict) or SEAL not in content:
        raise UserError(f"{path}: carries no digest of its content, as {what} does; {mend}")
    seal = content.pop(SEAL)
    if seal != _digest(content):
        raise UserError(f"{path}: changed since it was written (its SHA-256 differs); {mend}")
    return content


def read_sealed_cache(path: Path, what: str, mend: str) -> dict[str, Any] | None:
    """As `read_sealed_json`; None where there is no such file, or one without a seal, such as earlier versions wrote.

    Raises:
        UserError: no JSON, or not as it was written.
    """
    if not path.is_file():
        return None
    content = read_json(path, what)
    return read_sealed_json(path, what, mend) if isinstance(content, dict) and SEAL in content else None


def _digest(content: dict[str, Any]) -> str | None:
    """The digest of what was read; None where it holds numbers that are never written."""
    try:
        return digest(content)
    except ValueError:
        return None
