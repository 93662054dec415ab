"""Seals: a file carries a digest of its own content, so that a change is noticed when the file is read.

Seals guard against accidents and careless edits: a flipped bit, a value changed in an editor, a lost line. Someone who changes a
file on purpose can seal it again.

In a file of JSON lines the last key of each line is a digest of the line and of the line before. So no line can change,
disappear or move unnoticed. Only a loss of the last lines goes unnoticed, since a kill can cause it too. A sealed JSON file
carries a digest of all its other keys.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
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
    """Add the seal to a line.

    Args:
        line: a JSON object with at least one key, without a newline.
        previous: the sealed line before it; empty for the first one.
    """
    seal = hashlib.sha256(previous[-_SUFFIX:] + line).hexdigest()[:_LENGTH]
    return line[:-1] + _BEFORE + seal.encode() + _BEHIND


def seal_lines(lines: Iterable[bytes], previous: bytes = b"") -> Iterator[bytes]:
    """Add the seals to lines, which follow a sealed line if one is given."""
    for line in lines:
        previous = seal_line(line, previous)
        yield previous


def unseal_lines(lines: Iterable[bytes], path: Path, mend: str) -> Iterator[bytes]:
    """Check the seals of lines, and remove them.

    Args:
        lines: the lines of a file.
        path: the file, for messages.
        mend: what to do if a line has changed since it was written.

    Raises:
        UserError: a seal does not match its line and the line before. The message names the file and the first such line.
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
    # JSON has no keys but strings, and numbers sort otherwise than their digits: the seal is that of what will be read.
    read = json.loads(json.dumps(content))
    atomic_write_json(path, {SEAL: digest(read), **content})


def read_sealed_json(path: Path, what: str, mend: str) -> dict[str, Any]:
    """Read what `write_sealed_json` wrote; return it without its seal.

    Args:
        path: the file.
        what: what the file should hold.
        mend: what to do if it holds something else.

    Raises:
        UserError: there is no such file, it holds no JSON object, or it has changed since it was written.
    """
    content = read_json(path, what)
    if not isinstance(content, dict) or SEAL not in content:
        raise UserError(f"{path}: carries no digest of its content, as {what} does; {mend}")
    seal = content.pop(SEAL)
    with suppress(ValueError):  # it holds numbers that are never written
        if seal == digest(content):
            return content
    raise UserError(f"{path}: changed since it was written (its SHA-256 differs); {mend}")


def read_sealed_cache(path: Path, what: str, mend: str) -> dict[str, Any] | None:
    """Read as `read_sealed_json` does; return None if the file is absent, or has no seal because an earlier version wrote it.

    Raises:
        UserError: the file is no JSON, or has changed since it was written.
    """
    if not path.is_file():
        return None
    content = read_json(path, what)
    return read_sealed_json(path, what, mend) if isinstance(content, dict) and SEAL in content else None
