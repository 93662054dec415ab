"""The shared study: every finished candidate of a search in an Optuna storage on a server, for dashboards and other people.

The record stays the one truth. A thread of its own copies what is finished, so that a slow or dead server does not stop the
search: while it is away results wait; when it is back what it holds is compared with the record, and what is missing is added.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from optuna.exceptions import DuplicatedStudyError
from optuna.study import StudyDirection

from hwsearch.errors import UserError
from hwsearch.interrupts import checkpoint
from hwsearch.search.record import REFERENCE, Asked, Failed, Header, Scored, read_record
from hwsearch.search.studies.address import StorageAddress
from hwsearch.search.studies.storage import Key, SharedStorage, StorageError, open_storage
from hwsearch.search.studies.trials import METRIC_NAMES, SEARCH_ATTRIBUTE, Finished, TrialWriter

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
"""Between attempts to reach a server again; each is twice as long as the one before."""

PATIENCE_SECONDS = 20.0
"""How long the end of a search waits for a server that takes nothing."""

_log = logging.getLogger(__name__)


class ForeignStudyError(Exception):
    """The study of that name belongs to someone else; the message says to whom."""


@dataclass(frozen=True)
class SharedSummary:
    """What a shared study holds at the end of a run."""

    address: StorageAddress
    finished: int
    """Candidates of the record, counted once at each fidelity."""
    missing: int
    """How many finished candidates are not known to be in the study."""
    reason: str | None
    """Why they are missing."""

    def __str__(self) -> str:
        """One line for the user."""
        if not self.missing:
            return f"shared study: all {self.finished} results are in {self.address}"
        why = "interrupted" if self.reason is None else self.reason
        return (
            f"shared study: {self.missing} of {self.finished} results are missing in {self.address} ({why}); the record has "
            "them, and the same command adds them"
        )


def check_shared_study(address: StorageAddress, name: str, experiment: str, record: Header | None) -> int | None:
    """Refuse, before hours go into a search, a server that is not there or a study that is someone else's.

    Args:
        address: of the storage.
        name: of the study.
        experiment: hash of the search's experiment.
        record: header of the run folder's record, where there is one.

    Returns:
        Trials that the study holds; None: there is no such study yet.

    Raises:
        UserError: the driver is not installed, the server cannot be reached or refuses, or the study belongs to another search.
    """
    try:
        storage = open_storage(address)
    except StorageError as error:
        raise _refused(address, str(error)) from None
    held = None
    try:
        with storage.translated():
            studies = {study.study_name: study for study in storage.optuna.get_all_studies()}
            if name in studies:
                study_id = studies[name]._study_id  # noqa: SLF001 (Optuna's storages give numbers of studies no other way)
                held = storage.optuna.get_n_trials(study_id)
                _check_owner(
                    name,
                    studies[name].user_attrs.get(SEARCH_ATTRIBUTE),
                    held,
                    experiment,
                    None if record is None else record.identity,
                )
    except StorageError as error:
        raise _refused(address, str(error)) from None
    except ForeignStudyError as error:
        raise UserError(f"storage {address}: {error}") from None
    finally:
        storage.close()
    return held


class SharedStudy:
    """The thread that copies finished candidates of one search into its study."""

    def __init__(self, address: StorageAddress, header: Header, folder: Path, finished: Iterable[Finished]) -> None:
        """Open or make the study, then begin to copy; a server that is away by now is waited for, as it is later.

        Args:
            address: of the storage.
            header: of the record.
            folder: the run folder.
            finished: what the record holds by now.

        Raises:
            UserError: the study belongs to another search.
        """
        self._address = address
        self._header = header
        self._writer = TrialWriter(header)
        self._directions = [StudyDirection[objective.direction.name] for objective in header.objectives]
        self._folder = folder
        self._condition = threading.Condition()
        self._waiting: deque[Finished] = deque(found for found in finished if found[0].candidate != REFERENCE)
        self._known = {_key(event) for event, _ in self._waiting}
        self._stored: set[Key] = set()
        self._away_since: float | None = None
        self._reason: str | None = None
        self._fault: BaseException | None = None
        self._closing = self._abandoned = self._ended = False
        self._storage: SharedStorage | None = None
        try:
            self._open_study()
        except StorageError as error:
            self._note_away(str(error))
        except ForeignStudyError as error:
            raise UserError(f"storage {address}: {error}") from None
        # A server that never answers must not keep the process.
        self._thread = threading.Thread(target=self._run, name="shared study", daemon=True)
        self._thread.start()

    def add(self, event: Scored | Failed, point: tuple[int, ...]) -> None:
        """Copy a candidate that the record holds by now. Returns at once."""
        with self._condition:
            self._waiting.append((event, point))
            self._known.add(_key(event))
            self._condition.notify_all()

    def close(self) -> SharedSummary:
        """Copy what waits, as long as the server takes anything, then stop.

        Raises:
            Exception: the thread ended by an error that is none of the storage's.
        """
        with self._condition:
            self._closing = True
            self._condition.notify_all()
            before, since = len(self._stored), time.monotonic()
            while not self._ended and time.monotonic() < since + PATIENCE_SECONDS:
                checkpoint()
                self._condition.wait(0.5)
                if len(self._stored) != before:
                    before, since = len(self._stored), time.monotonic()
        return self.abandon()

    def abandon(self) -> SharedSummary:
        """Stop now; says what is missing."""
        with self._condition:
            self._closing = self._abandoned = True
            self._condition.notify_all()
            if self._fault is not None:
                raise self._fault
            missing = len(self._known - self._stored)
            reason = self._reason or (None if self._ended else f"it took nothing for {PATIENCE_SECONDS:g} s")
            return SharedSummary(self._address, len(self._known), missing, reason if missing else None)

    def _run(self) -> None:
        try:
            self._copy_until_closed()
        except ForeignStudyError as error:
            self._reason = str(error)
            _log.warning("shared study %s: %s; the search goes on without it", self._address, error)
        except BaseException as fault:  # noqa: BLE001 (raised again where the search ends, in its thread)
            self._fault = fault
        finally:
            if self._storage is not None:
                self._storage.close()
            with self._condition:
                self._ended = True
                self._condition.notify_all()

    def _copy_until_closed(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        first = True
        while True:
            try:
                storage = self._storage or self._open_study()
                self._compare(storage, reread=not first)
                first = False
                pause = FIRST_PAUSE_SECONDS
                self._copy(storage)
            except StorageError as error:
                self._note_away(str(error))
                if self._storage is not None:
                    self._storage.close()
                    self._storage = None
            else:
                return
            if not self._rest(pause):
                return
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _open_study(self) -> SharedStorage:
        storage = open_storage(self._address)
        try:
            self._study = self._take_study(storage)
        except BaseException:
            storage.close()
            raise
        self._storage = storage
        return storage

    def _take_study(self, storage: SharedStorage) -> int:
        """The number of this search's study, which is made if there is none."""
        attributes = self._writer.study_attributes()
        name = self._header.name
        with storage.translated():
            # Looked for first: a journal keeps an entry of every attempt to make one.
            if name not in {known.study_name for known in storage.optuna.get_all_studies()}:
                with suppress(DuplicatedStudyError):  # by another driver, since
                    storage.optuna.create_new_study(self._directions, name)
            study = storage.optuna.get_study_id_from_name(name)
            if self._owner(storage, study) is None:
                storage.claim(study, SEARCH_ATTRIBUTE, attributes)
                # Another driver may have been faster.
                self._owner(storage, study)
            names = self._writer.metric_names
            if storage.optuna.get_study_system_attrs(study).get(METRIC_NAMES) != names:
                storage.optuna.set_study_system_attr(study, METRIC_NAMES, names)
        return study

    def _owner(self, storage: SharedStorage, study: int) -> dict[str, object] | None:
        """What a study says of whose it is: this search's, or nobody's yet."""
        found: dict[str, object] | None = storage.optuna.get_study_user_attrs(study).get(SEARCH_ATTRIBUTE)
        trials = storage.optuna.get_n_trials(study)
        _check_owner(self._header.name, found, trials, self._header.experiment, self._header.identity)
        if found is None and storage.optuna.get_study_directions(study) != self._directions:
            raise _made_by_something_else(self._header.name)
        return found

    def _compare(self, storage: SharedStorage, *, reread: bool) -> None:
        """Let wait what the record has and the study has not: a server may have lost what it had."""
        there = storage.stored(self._study)
        recorded = list(_finished(self._folder)) if reread else []
        with self._condition:
            self._waiting.extendleft(reversed(recorded))
            self._stored = there & self._known
            waiting = {_key(event): (event, point) for event, point in self._waiting}
            self._waiting = deque(found for key, found in waiting.items() if key not in there)
            count = len(self._waiting)
        if self._away_since is not None:
            _log.warning("shared study %s: reached again, %d results wait for it", self._address, count)
            self._away_since = self._reason = None

    def _copy(self, storage: SharedStorage) -> None:
        """Store what waits, one by one, until the search ends and nothing waits."""
        while True:
            with self._condition:
                while not self._waiting and not self._closing:
                    self._condition.wait()
                if not self._waiting or self._abandoned:
                    return
                event, point = self._waiting[0]
            storage.add(self._study, _key(event), self._writer.trial(event, point))
            with self._condition:
                self._waiting.popleft()
                self._stored.add(_key(event))
                self._condition.notify_all()

    def _rest(self, seconds: float) -> bool:
        """Wait before the next attempt, for a moment only once the search has ended; False where there is none."""
        end = time.monotonic() + seconds
        with self._condition:
            while not self._abandoned and (left := end - time.monotonic()) > 0:
                closing = self._closing
                self._condition.wait(min(left, FIRST_PAUSE_SECONDS) if closing else left)
                if self._closing and closing:
                    break
            return not self._abandoned

    def _note_away(self, reason: str) -> None:
        self._reason = reason
        if self._away_since is None:
            self._away_since = time.monotonic()
            _log.warning("shared study %s: %s; the search goes on, results wait", self._address, reason)


def _refused(address: StorageAddress, reason: str) -> UserError:
    return UserError(f"storage {address}: {reason}; wanted a server that answers there and lets this user in")


def _check_owner(name: str, found: dict[str, object] | None, trials: int, experiment: str, run: str | None) -> None:
    """Refuse a study of another search; one without trials and owner was left by a driver that was killed as it made it.

    Raises:
        ForeignStudyError: it is someone else's.
    """
    if found is None:
        if trials:
            raise _made_by_something_else(name)
    elif found.get("experiment") != experiment:
        other = str(found.get("experiment"))[:12]
        raise ForeignStudyError(
            f"study '{name}' belongs to a search of another experiment ({other}, not {experiment[:12]}); wanted another name"
        )
    elif run is None or found.get("run") != run:
        begun = found.get("begun", found.get("run"))
        raise ForeignStudyError(
            f"study '{name}' belongs to the same experiment's search in another run folder, begun {begun}; wanted "
            "that folder, another name, or the study deleted"
        )


def _made_by_something_else(name: str) -> ForeignStudyError:
    return ForeignStudyError(f"study '{name}' was made by something else; wanted another name of the experiment")


def _key(event: Scored | Failed) -> Key:
    return Key(event.candidate, event.fidelity)


def _finished(folder: Path) -> Iterable[Finished]:
    """What a record holds, the reference not among it."""
    points: dict[int, tuple[int, ...]] = {}
    for event in read_record(folder)[1]:
        if isinstance(event, Asked):
            if event.point is not None:
                points[event.candidate] = event.point
        elif event.candidate != REFERENCE:
            yield event, points[event.candidate]
