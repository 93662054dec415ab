"""Publishing: every result of a record goes to a shared Optuna study, for dashboards and other people.

The record is the one truth. Publishing adds the results that the study lacks, so it may be interrupted and repeated at any time.
While a search runs, a thread publishes it, so that a slow or dead server does not stop the search.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hwsearch.process.interrupts import checkpoint
from hwsearch.search.record import Failed, Scored, read_record
from hwsearch.search.space import Point
from hwsearch.search.studies.address import StorageAddress
from hwsearch.search.studies.published_study import (
    ForeignStudyError,
    PublishedStudy,
    finished_results,
    open_study,
    refusals,
)
from hwsearch.search.studies.storage import StorageError
from hwsearch.search.studies.trials import Finished, Key

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
"""Pauses between attempts to reach a storage. Each pause is twice as long as the one before."""

PATIENCE_SECONDS = 20.0
"""How long the end of a search waits for a storage that accepts nothing."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """The state of the study of a run folder."""

    address: StorageAddress
    folder: Path
    finished: int
    """Number of results in the record: candidates, counted once at each fidelity."""
    missing: int = 0
    """Number of these that are not known to be in the study."""
    reason: str | None = None
    """Why they are missing."""

    def __str__(self) -> str:
        """One line for the user."""
        if not self.missing:
            return f"shared study: all {self.finished} results are in {self.address}"
        return (
            f"shared study: {self.missing} of {self.finished} results are missing in {self.address} "
            f"({self.reason or 'interrupted'}); 'hwsearch publish {self.folder}' with the same storage adds them"
        )


def publish(address: StorageAddress, folder: Path, progress: Callable[[int, int], None]) -> Published:
    """Add the results of a run folder that its study lacks.

    Args:
        address: of the storage.
        folder: the run folder. A driver may be searching there.
        progress: called with the number of results in the study, and the number of all results.

    Raises:
        UserError: there is no record, the storage fails, or the study belongs to another search.
    """
    header, _ = read_record(folder)
    results = list(finished_results(folder))
    with refusals(address), open_study(address, folder, header) as study:
        for number, (event, point) in enumerate(results, start=1):
            study.add(event, point)
            progress(number, len(results))
    return Published(address, folder, len(results))


class Publisher:
    """The thread that publishes a search while it runs."""

    def __init__(self, address: StorageAddress, folder: Path) -> None:
        """Begin to publish the record of a run folder. The thread waits for a storage that is away."""
        self._address = address
        self._folder = folder
        self._condition = threading.Condition()
        self._new: deque[Finished] = deque()
        """Results since the record was last read."""
        self._there: set[Key] = set()
        """Results that are known to be in the study."""
        self._away = False
        self._pause = FIRST_PAUSE_SECONDS
        self._reason: str | None = None
        self._fault: BaseException | None = None
        self._closing = self._abandoned = self._ended = False
        # A server that never answers must not keep the process.
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    def add(self, event: Scored | Failed, point: Point) -> None:
        """Publish a result that the record already holds. This returns at once."""
        with self._condition:
            self._new.append((event, point))
            self._condition.notify_all()

    def close(self, finished: int) -> Published:
        """Publish the missing results as long as the storage accepts any, then stop.

        Args:
            finished: number of results in the record.

        Raises:
            Exception: the thread ended with an error that does not come from the storage.
        """
        with self._condition:
            self._closing = True
            self._condition.notify_all()
            before, since = len(self._there), time.monotonic()
            while not self._ended and time.monotonic() < since + PATIENCE_SECONDS:
                checkpoint()
                self._condition.wait(0.5)
                if len(self._there) != before:
                    before, since = len(self._there), time.monotonic()
        return self.abandon(finished)

    def abandon(self, finished: int) -> Published:
        """Stop now, and report how many of the record's results are missing."""
        with self._condition:
            self._closing = self._abandoned = True
            self._condition.notify_all()
            if self._fault is not None:
                raise self._fault
            reason = self._reason or (None if self._ended else f"it took nothing for {PATIENCE_SECONDS:g} s")
            return Published(self._address, self._folder, finished, max(0, finished - len(self._there)), reason)

    def _run(self) -> None:
        try:
            self._publish_until_closed()
        except ForeignStudyError as error:
            self._reason = str(error)
            _log.warning("shared study %s: %s; the search goes on without it", self._address, error)
        except BaseException as fault:  # noqa: BLE001 (raised again at the end of the search, in its thread)
            self._fault = fault
        finally:
            with self._condition:
                self._ended = True
                self._condition.notify_all()

    def _publish_until_closed(self) -> None:
        while True:
            try:
                with open_study(self._address, self._folder, read_record(self._folder)[0]) as study:
                    self._publish_record(study)
                    self._publish_new(study)
                    return
            except StorageError as error:
                self._note_away(str(error))
            if not self._rest(self._pause):
                return
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    def _publish_record(self, study: PublishedStudy) -> None:
        """Add all results that the study lacks. A server may also have lost what it had."""
        with self._condition:
            self._there.clear()
            self._new.clear()  # the record has it
        if self._away:
            self._away, self._reason = False, None
            _log.warning("shared study %s: reached again", self._address)
        for event, point in finished_results(self._folder):
            if self._abandoned:
                return
            self._add(study, event, point)

    def _publish_new(self, study: PublishedStudy) -> None:
        """Add new results until the search has ended and none is left."""
        while True:
            with self._condition:
                while not self._new and not self._closing:
                    self._condition.wait()
                if not self._new or self._abandoned:
                    return
                event, point = self._new.popleft()
            self._add(study, event, point)

    def _add(self, study: PublishedStudy, event: Scored | Failed, point: Point) -> None:
        if study.add(event, point):
            self._pause = FIRST_PAUSE_SECONDS
        with self._condition:
            self._there.add(Key.of(event))
            self._condition.notify_all()

    def _rest(self, seconds: float) -> bool:
        """Wait before the next attempt, only briefly if the search has ended. Return whether there is a next attempt."""
        with self._condition:
            if not self._condition.wait_for(lambda: self._closing, seconds):
                return True
            return not self._condition.wait_for(lambda: self._abandoned, FIRST_PAUSE_SECONDS)

    def _note_away(self, reason: str) -> None:
        self._reason = reason
        if not self._away:
            self._away = True
            _log.warning("shared study %s: %s; the search goes on, results wait", self._address, reason)
