"""The folder of an export: its files, and where one may be written."""

import os
from pathlib import Path

from hwsearch.errors import UserError
from hwsearch.extensions import EXPORTERS
from hwsearch.files.writing import check_folder

WEIGHTS_FILE = "weights.hwq"
ALLOCATION_FILE = "allocation.json"
VERIFICATION_FILE = "verification.json"

EXPORT_FOLDER = "export"
"""Folder of a run with the candidate that the main job exports."""

_WANTED = "wanted a new folder or an earlier export"


def graph_file(graph_format: str) -> str:
    """Name of a format's graph in an export's folder."""
    return EXPORTERS.load(graph_format).file


def check_output(output: Path) -> None:
    """Refuse a folder that an export may not be written to; writes nothing.

    Raises:
        UserError: something that is no export is there, we stand in it, or the folder around it does not take it.
    """
    known = {*map(graph_file, EXPORTERS), WEIGHTS_FILE, ALLOCATION_FILE, VERIFICATION_FILE}
    try:
        if _is_there(output):
            if output.samefile(Path.cwd()):
                raise UserError(f"{output}: is the current folder; wanted another one to write")
            if not (output.is_dir() and {path.name for path in output.iterdir()} <= known):
                raise UserError(f"{output}: holds something that is no export; {_WANTED}")
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror}); {_WANTED}") from None
    check_folder(Path(os.path.realpath(output)).parent, output)


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
