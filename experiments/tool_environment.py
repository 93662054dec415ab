"""Environments for tools whose requirements hwsearch does not share."""

import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from hwsearch.files.reading import digest


def tool_python(name: str, requirements: Sequence[str], environments: Path, alone: Sequence[str] = ()) -> Path:
    """The Python of a tool's environment, which is made where it is missing or its requirements have changed.

    Args:
        name: of the tool.
        requirements: packages, installed with what they require.
        environments: folder of all environments.
        alone: packages that are then installed without what they require.
    """
    if not requirements:
        return Path(sys.executable)
    folder = environments / f"{name}-{digest([*requirements, *alone])[:8]}"
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.is_file():
        print(f"{name}: installing {', '.join(requirements)}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        install = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, *requirements], check=True)  # noqa: S603 (nothing from outside)
        if alone:
            subprocess.run([*install, "--no-deps", *alone], check=True)  # noqa: S603
        ready.touch()
    return python
