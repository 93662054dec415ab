"""Reading whole files, as bytes or JSON, and hashing their content."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from hw_models.reading import Unreadable, no_file, parse_json, read_bytes, read_text
from hwsearch.errors import UserError

JSON_BYTES = 256 * 2**20
"""The largest JSON file that is read. The figures of the largest test set that an experiment can ask for are half as large."""

MODEL_BYTES = 2**31
"""The largest model that is read. No ONNX file is larger."""


def indented_json(value: object) -> str:
    """Return the text of a JSON file as `atomic_write_json` writes it."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file; a missing or broken one raises `UserError` naming `what` and the path."""
    try:
        return parse_json(read_text(path, JSON_BYTES))
    except Unreadable as error:
        raise UserError(f"{path}: {error}; wanted {what}") from None


def read_content(path: Path, what: str, most_bytes: int) -> bytes:
    """Read a regular file; a missing one, something else in its place or a larger one raises `UserError` naming `what`."""
    try:
        return read_bytes(path, most_bytes)
    except Unreadable as error:
        raise UserError(f"{path}: {error}; wanted {what}") from None


def check_regular(path: Path, what: str) -> None:
    """Raise `UserError`, which names `what` was wanted, unless the path is a regular file or absent."""
    # To open a pipe would wait without end.
    if os.path.lexists(path) and (reason := no_file(path)) is not None:
        raise UserError(f"{path}: {reason}; wanted {what}, or nothing there")


def canonical_json(value: object) -> str:
    """Write JSON with sorted keys and no spaces. Equal values give equal text, so it suits hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: object) -> str:
    """Hash the canonical JSON of `value` with SHA-256, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Hash a file's content with SHA-256, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
