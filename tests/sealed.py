"""Files edited and sealed again: for what is checked behind the seal."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hwsearch.files.seals import SEAL, seal_lines, unseal_lines, write_sealed_json


def edit_lines(path: Path, edit: Callable[[list[bytes]], list[bytes]]) -> None:
    """Change the lines of a sealed file."""
    lines = edit(list(unseal_lines(path.read_bytes().splitlines(), path, "mend the test")))
    path.write_bytes(b"".join(line + b"\n" for line in seal_lines(lines)))


def edit_text(path: Path, before: bytes, after: bytes) -> None:
    """Replace a text wherever it stands in a sealed file's lines."""

    def edit(lines: list[bytes]) -> list[bytes]:
        assert any(before in line for line in lines)
        return [line.replace(before, after) for line in lines]

    edit_lines(path, edit)


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the content of a sealed JSON file in place."""
    content = json.loads(path.read_text())
    del content[SEAL]
    edit(content)
    write_sealed_json(path, content)
