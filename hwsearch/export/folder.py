"""The folder of an export: its files, and where one may be written."""

import os
from pathlib import Path
from typing import Literal

from hwsearch.errors import UserError

Format = Literal["onnx", "qonnx"]

GRAPH_FILES: dict[Format, str] = {"onnx": "model.onnx", "qonnx": "model.qonnx.onnx"}
WEIGHTS_FILE = "weights.hwq"
ALLOCATION_FILE = "allocation.json"
VERIFICATION_FILE = "verification.json"

_WANTED = "wanted a new folder or an earlier export"


def check_output(output: Path) -> None:
    """Refuse a folder that an export may not be written to; writes nothing.

    Raises:
        UserError: something that is no export is there, we stand in it, or the folder around it does not take it.
    """
    known = {*GRAPH_FILES.values(), WEIGHTS_FILE, ALLOCATION_FILE, VERIFICATION_FILE}
    try:
        if _is_there(output):
            if output.samefile(Path.cwd()):
                raise UserError(f"{output}: is the current folder; wanted another one to write")
            if not (output.is_dir() and {path.name for path in output.iterdir()} <= known):
                raise UserError(f"{output}: holds something that is no export; {_WANTED}")
        around = Path(os.path.realpath(output)).parent
        while not _is_there(around):
            around = around.parent
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror}); {_WANTED}") from None
    if not (around.is_dir() and os.access(around, os.W_OK | os.X_OK)):
        raise UserError(f"{output}: cannot be written in {around}; wanted a folder that we may write to")


def _is_there(path: Path) -> bool:
    """Whether something is at a path.

    Raises:
        OSError: that cannot be told, as behind a file or a loop of links.
    """
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True
