"""The log of a run folder's searches: what each driver did, line by line, with times in UTC."""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import hwsearch
from hwsearch.errors import UserError
from hwsearch.printable import printable
from hwsearch.search.objectives import in_figures
from hwsearch.search.progress import SearchProgress
from hwsearch.search.record import RECORD_FILE, REFERENCE, Scored, now

LOG_FILE = "search.log"
LOG_BYTES = 5 * 2**20
"""Size from which on the file is put aside as `search.log.1`."""
OLDER_LOGS = 3
"""So many are kept aside."""

Line = Callable[[str], None]


@contextmanager
def search_log(folder: Path) -> Iterator[Line]:
    """Open a run folder's log; its first lines say who writes it, and where it and the record are.

    What ends the search with an error is its last line.

    Raises:
        UserError: it cannot be written.
    """
    log = _Log(folder / LOG_FILE)
    log.write(f"{(folder / LOG_FILE).resolve()} of process {os.getpid()}, hwsearch {hwsearch.__version__}")
    log.write(f"record: {(folder / RECORD_FILE).resolve()}")
    try:
        yield log.write
    except BaseException as error:
        try:
            log.write(f"ended by {type(error).__name__}: {error}")
        except UserError as unwritable:
            # As on a full disk, which is then what has ended the search.
            error.add_note(str(unwritable))
        raise


@contextmanager
def events_logged(log: Line, tell: Line) -> Iterator[None]:
    """Write into the log what this package's loggers say, of workers and servers; from level INFO on tell it, too."""
    logger = logging.getLogger(hwsearch.__name__)
    handler, level = _Events(log, tell), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def describe(progress: SearchProgress, columns: Sequence[str]) -> str:
    """A finished candidate in one line, with these of its metrics and costs, or the start of a rung."""
    where = f"{progress.scored}/{progress.trials} at '{progress.fidelity.value}'"
    event = progress.latest
    if event is None:
        return f"scoring: {where}, {progress.failed} failed"
    name = "full precision" if event.candidate == REFERENCE else f"candidate {event.candidate} ({event.strategy})"
    attempts = "" if event.attempts == 1 else f", attempt {event.attempts}"
    if isinstance(event, Scored):
        values = {**event.metrics, **event.costs}
        known = [(column, value) for column in columns if (value := values.get(column)) is not None]
        figures = ", ".join(f"{column} {in_figures(column, value)}" for column, value in known)
        return f"{where}: {name} scored in {event.seconds:.2f} s on {event.worker}{attempts}: {figures}"
    return f"{where}: {name} failed after {event.seconds:.2f} s{attempts}: {event.reason}"


class _Events(logging.Handler):
    def __init__(self, log: Line, tell: Line) -> None:
        super().__init__()
        self._log = log
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        line = " ".join(record.getMessage().split())
        if record.levelno >= logging.INFO:
            self._tell(line)
        with suppress(UserError):  # such as on a full disk; a line of the search itself ends it for that
            self._log(line)


class _Log:
    """Appends lines, each of them at once; puts the file aside when it is large.

    The standard library's handlers print a traceback where they cannot write, and go on.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def write(self, line: str) -> None:
        """Write a line with the time before it.

        Raises:
            UserError: it cannot be written.
        """
        text = f"{now()} {printable(' '.join(line.split()))}\n".encode()
        try:
            with self._lock:
                self._append(text)
        except OSError as error:
            raise UserError(
                f"{self._path}: cannot be written ({error.strerror}); make room, and the same command goes on"
            ) from None

    def _append(self, text: bytes) -> None:
        if self._path.is_file() and self._path.stat().st_size >= LOG_BYTES:
            self._put_aside()
        with self._path.open("ab", buffering=0) as stream:
            while text:
                text = text[stream.write(text) :]

    def _put_aside(self) -> None:
        older = [self._path, *(self._path.with_name(f"{LOG_FILE}.{age}") for age in range(1, OLDER_LOGS + 1))]
        for younger, elder in reversed(list(pairwise(older))):
            if younger.is_file():
                younger.replace(elder)
