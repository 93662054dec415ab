"""Text files read whole: regular files only, of no more than a stated size, in UTF-8 with or without a byte-order mark."""

import json
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any, Final

TOML_BYTES: Final = 2**20
"""The largest TOML file that is read; the largest target that ships has 9 kB."""

KEY_PARTS: Final = 64
"""Parts of a dotted key, at most. The parser takes time that grows with their square; sections nest four deep."""

_PART: Final = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
_LONG_KEY: Final = re.compile(rf"(?<![\w-]){_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{{KEY_PARTS}}}")

_KINDS: Final = (
    (stat.S_ISDIR, "is a folder"),
    (stat.S_ISFIFO, "is a pipe"),
    (stat.S_ISSOCK, "is a socket"),
    (stat.S_ISCHR, "is a device"),
    (stat.S_ISBLK, "is a device"),
)


class Unreadable(ValueError):  # noqa: N818 (an adjective says what the file is)
    """Why a file cannot be read, in a few words that follow its name, such as 'no such file'."""


def no_file(path: Path) -> str | None:
    """Why there is no regular file at a path, in a few words that follow it; None: there is one."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "no such file"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except ValueError as error:  # a name with a null character
        return f"no name of a file ({error})"
    return next((said for is_kind, said in _KINDS if is_kind(mode)), None)


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """The content of a regular file.

    Raises:
        Unreadable: nothing is there, or something else than a regular file, or more than `most_bytes`.
    """
    if (reason := no_file(path)) is not None:
        raise Unreadable(reason)
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > most_bytes:
                raise Unreadable(f"larger than {most_bytes / 2**20:g} MiB")
            return stream.read(size)  # memory is taken for as much as is asked for
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror})") from None


def read_text(path: Path, most_bytes: int) -> str:
    """The content of a regular file in UTF-8, without the byte-order mark that some editors put first.

    Raises:
        Unreadable: as `read_bytes`, or it is not UTF-8.
    """
    try:
        return read_bytes(path, most_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8 text ({error.reason} at byte {error.start})") from None


def parse_toml(text: str) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        Unreadable: it is no TOML, or has a key of more than `KEY_PARTS` parts.
    """
    if _LONG_KEY.search(text):
        raise Unreadable(f"not valid TOML (a key of more than {KEY_PARTS} parts)")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"not valid TOML ({_reason(error)})") from None


def parse_json(text: str) -> Any:
    """The content of a JSON file.

    Raises:
        Unreadable: it is no JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"not valid JSON ({_reason(error)})") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        Unreadable: as `read_text` and `parse_toml`.
    """
    return parse_toml(read_text(path, TOML_BYTES))


def _reason(error: ValueError | RecursionError) -> str:
    """Reason from a parser's error, in plain words where the parser passes on an error of Python."""
    if isinstance(error, RecursionError):
        return "nested too deep"
    if isinstance(error, json.JSONDecodeError | tomllib.TOMLDecodeError):
        return str(error)
    return "a number of too many digits"
