"""The log of a run folder's searches: what each driver did, line by line, with times in UTC."""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path

from hwsearch.errors import UserError
from hwsearch.printable import printable
from hwsearch.search.objectives import in_figures
from hwsearch.search.progress import SearchProgress
from hwsearch.search.record import RECORD_FILE, REFERENCE, Scored, now
from hwsearch.version import VERSION

LOG_FILE = "search.log"
LOG_BYTES = 5 * 2**20
"""A log that would grow beyond this size is renamed to `search.log.1`."""
OLDER_LOGS = 3
"""Number of renamed logs that are kept."""

Line = Callable[[str], None]


@contextmanager
def search_log(folder: Path) -> Iterator[Line]:
    """Open a run folder's log. The first lines name the driver, the log and the record; an error is the last line.

    Raises:
        UserError: it cannot be written.
    """
    log = _Log(folder / LOG_FILE)
    try:
        log.write(f"{(folder / LOG_FILE).resolve()} of process {os.getpid()}, hwsearch {VERSION}")
        log.write(f"record: {(folder / RECORD_FILE).resolve()}")
        yield log.write
    except BaseException as error:
        try:
            log.write(f"ended by {type(error).__name__}: {error}")
        except UserError as unwritable:  # such as on a full disk, which is then what ended the search
            error.add_note(str(unwritable))
        raise
    finally:
        with suppress(OSError):  # an unwritten line was reported already
            log.close()


@contextmanager
def events_logged(log: Line, tell: Line) -> Iterator[None]:
    """Write to the log what this package's loggers report about workers and servers; pass on messages from level INFO up."""
    logger = logging.getLogger("hwsearch")
    handler, level = _Events(log, tell), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def describe(progress: SearchProgress, columns: Sequence[str]) -> str:
    """Describe in one line a finished candidate with the given columns, or the start of a rung."""
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


class _Log(RotatingFileHandler):
    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=LOG_BYTES, backupCount=OLDER_LOGS, encoding="utf-8", delay=True)
        self._path = path

    def write(self, line: str) -> None:
        """Write a line with the time before it.

        Raises:
            UserError: it cannot be written.
        """
        text = f"{now()} {printable(' '.join(line.split()))}"
        try:
            self.handle(logging.makeLogRecord({"msg": text}))
        except OSError as error:
            raise UserError(
                f"{self._path}: cannot be written ({error.strerror}); make room, and the same command goes on"
            ) from None

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the library's name)
        """Raise the error, for which the library would only print a traceback."""
        if (error := sys.exception()) is not None:
            raise error
