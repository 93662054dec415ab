"""The folder of an export: its files, and the places where it may be written."""

import os
from pathlib import Path

from hwsearch.errors import UserError
from hwsearch.extensions import EXPORTERS
from hwsearch.files.writing import check_folder

WEIGHTS_FILE = "weights.hwq"
ALLOCATION_FILE = "allocation.json"
STRUCTURE_FILE = "structure.json"
"""What is kept of blocks and channels, if something is left out."""
VERIFICATION_FILE = "verification.json"

EXPORT_FOLDER = "export"
"""Folder of a run that holds the candidate of the main job."""

_WANTED = "wanted a new folder or an earlier export"


def graph_file(graph_format: str) -> str:
    """Name of the graph of a format in an export's folder."""
    return EXPORTERS.load(graph_format).file


def check_output(output: Path) -> None:
    """Refuse a folder that an export may not be written to. Nothing is written.

    Raises:
        UserError: something that is no export is there, it is the current folder, or the folder around it cannot be written to.
    """
    exporters = [EXPORTERS.load(graph_format) for graph_format in EXPORTERS]
    graphs = {name for exporter in exporters for name in (exporter.file, *exporter.others)}
    known = {*graphs, WEIGHTS_FILE, ALLOCATION_FILE, STRUCTURE_FILE, VERIFICATION_FILE}
    try:
        if output.samefile(os.curdir):
            raise UserError(f"{output}: is the current folder; wanted another one to write")
        if not (output.is_dir() and {path.name for path in output.iterdir()} <= known):
            raise UserError(f"{output}: holds something that is no export; {_WANTED}")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror}); {_WANTED}") from None
    check_folder(Path(os.path.realpath(output)).parent, output)
