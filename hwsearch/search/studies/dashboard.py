"""Optuna's dashboard on the study of a run folder."""

import socket
import threading
from importlib.util import find_spec
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from hwsearch.errors import UserError
from hwsearch.process.interrupts import interrupts_quiet, pause
from hwsearch.search.studies.mirror import MIRROR_FILE

HOST = "127.0.0.1"
"""The dashboard asks for no password, so it listens on this machine alone."""

LOOK_SECONDS = 0.5
"""Time between two looks whether the server still runs."""


def study_file(folder: Path) -> Path:
    """Return the study of a run folder.

    Raises:
        UserError: there is none yet.
    """
    path = folder / MIRROR_FILE
    if not path.is_file():
        raise UserError(f"{path}: no study is there yet; wanted a run whose search has begun")
    return path


def check_dashboard(port: int) -> None:
    """Refuse to open a dashboard that is not installed, or a port that is taken.

    Raises:
        UserError: says what is wanted.
    """
    if find_spec("optuna_dashboard") is None:
        raise UserError("optuna-dashboard is not installed; wanted: pip install 'hwsearch[dashboard]'")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(f"--port is {port}, which cannot be used ({error.strerror}); wanted a free one") from None


def open_study_file(path: Path) -> JournalStorage:
    """Open the study of a run folder.

    Raises:
        UserError: the file is damaged.
    """
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        studies = storage.get_all_studies()
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError):
        studies = []  # Optuna trusts the file
    if not studies:
        raise UserError(f"{path}: damaged; wanted Optuna's journal, which the next start of the search writes anew")
    return storage


def serve_dashboard(storage: JournalStorage, port: int) -> None:
    """Serve Optuna's dashboard on a study. Only a signal ends it, as `KeyboardInterrupt`."""
    from optuna_dashboard import run_server

    # The server blocks its thread, and this one looks for signals.
    server = threading.Thread(target=run_server, args=(storage, HOST, port), name="dashboard", daemon=True)
    server.start()
    with interrupts_quiet():
        while server.is_alive():
            pause(LOOK_SECONDS)
    raise UserError(f"the dashboard on port {port} has ended; wanted it to run")
