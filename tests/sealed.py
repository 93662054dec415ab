"""Files edited and sealed again: for what is checked behind the seal."""

from collections.abc import Callable
from pathlib import Path

from hwsearch.seals import seal_lines, unseal_lines


def edit_lines(path: Path, edit: Callable[[list[bytes]], list[bytes]]) -> None:
    """Change the lines of a sealed file."""
    lines = edit(list(unseal_lines(path.read_bytes().splitlines())))
    path.write_bytes(b"".join(line + b"\n" for line in seal_lines(lines)))


def edit_text(path: Path, before: bytes, after: bytes) -> None:
    """Replace a text wherever it stands in a sealed file's lines."""

    def edit(lines: list[bytes]) -> list[bytes]:
        assert any(before in line for line in lines)
        return [line.replace(before, after) for line in lines]

    edit_lines(path, edit)
