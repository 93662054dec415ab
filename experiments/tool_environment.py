"""Environments for tools whose requirements hwsearch does not share."""

import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from hwsearch.files.reading import digest


def tool_python(name: str, requirements: Sequence[str], environments: Path) -> Path:
    """The Python of a tool's environment, which is made where it is missing or its requirements have changed."""
    if not requirements:
        return Path(sys.executable)
    folder = environments / f"{name}-{digest(list(requirements))[:8]}"
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.is_file():
        print(f"{name}: installing {', '.join(requirements)}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run(  # noqa: S603 (nothing from outside)
            [python, "-m", "pip", "install", "--quiet", *requirements], check=True
        )
        ready.touch()
    return python
