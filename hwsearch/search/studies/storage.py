"""Optuna's own storages, opened so that no result is written twice.

If the server does not answer a commit, Optuna's relational storage repeats the transaction, although the server may have carried
it out. Here every error of the database ends the call instead. The study is then opened again, and reads what the storage holds.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy import event, select
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError
from sqlalchemy.orm import Session

from hwsearch.errors import UserError
from hwsearch.files.reading import check_regular
from hwsearch.search.studies.address import PASSWORD_ADVICE, POSTGRESQL, SQLITE, StorageAddress
from hwsearch.search.studies.trials import Key

EXTRA = "hwsearch[storage]"
"""The extra that installs the driver of PostgreSQL."""

CONNECT_SECONDS = 5
"""Longest time until a server accepts a connection."""

SILENCE_SECONDS = 30
"""Time after which a silent server, or a transaction that waits for its client, counts as lost."""

LOCK_SECONDS = 10
"""Time after which the lock of a journal file is broken. A process that is killed while it writes leaves its lock behind."""

OPEN_TRIES = 4
"""Attempts to open an empty database. Optuna makes its tables in three steps, and another driver may be faster in each."""

POSTGRESQL_SETTINGS = {
    "application_name": "hwsearch",
    "connect_timeout": CONNECT_SECONDS,
    "keepalives_idle": SILENCE_SECONDS,
    "tcp_user_timeout": 1000 * SILENCE_SECONDS,
    "options": f"-c idle_in_transaction_session_timeout={SILENCE_SECONDS}s -c lock_timeout={2 * SILENCE_SECONDS}s",
}
"""Defaults for options that the address does not set."""


class StorageError(Exception):
    """A storage refused a request, or did not confirm it. The message is one line without credentials."""


def open_storage(address: StorageAddress) -> BaseStorage:
    """Open a storage; in an empty database this makes Optuna's tables.

    Raises:
        UserError: the driver is not installed, or something other than a file is there.
        StorageError: the storage cannot be reached, or refuses.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with translated(address):
        if address.file is None:
            return _open_tables(address, "postgresql+psycopg://", _connect_arguments(address))
        check_regular(address.file, "an Optuna study")
        address.file.parent.mkdir(parents=True, exist_ok=True)
        if address.kind == SQLITE:
            return _open_tables(address, f"sqlite:///{address.file}", {})
        return _open_journal(address.file)


@contextmanager
def opened_storage(address: StorageAddress) -> Iterator[BaseStorage]:
    """Open a storage as `open_storage` does, and close its connections afterwards."""
    storage = open_storage(address)
    try:
        yield storage
    finally:
        if isinstance(storage, RDBStorage):
            storage.engine.dispose()


def wants_password(address: StorageAddress) -> bool:
    """Whether a server asks for a password that is not known. All other errors are ignored here."""
    if address.kind != POSTGRESQL:
        return False
    try:
        import psycopg
    except ImportError:
        return False
    try:
        psycopg.connect(**_connect_arguments(address)).close()
    except psycopg.Error as error:
        return error.pgconn is not None and error.pgconn.needs_password
    return False


@contextmanager
def translated(address: StorageAddress) -> Iterator[None]:
    """Turn errors of storages, and Optuna's errors about content that it cannot read, into `StorageError`."""
    try:
        yield
    except KeyError:  # someone has deleted the study or trial
        raise StorageError("the study is not there any more") from None
    except DuplicatedStudyError:
        raise StorageError("another driver has just made the study") from None
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        raise StorageError(f"it holds what Optuna cannot read ({explain(error, address)})") from None
    except (SQLAlchemyError, StorageInternalError, RuntimeError, OSError) as error:
        raise StorageError(explain(error, address)) from None


def explain(error: BaseException, address: StorageAddress) -> str:
    """Give the innermost cause of an error in one line, without credentials."""
    reason: BaseException = error
    while (inner := getattr(reason, "orig", None) or reason.__cause__) is not None:
        reason = inner
    text = " ".join(address.redact(str(reason)).split()) or type(reason).__name__
    lowered = text.lower()
    if "no password supplied" in lowered:
        return f"it wants a password; wanted it in {PASSWORD_ADVICE}"
    if any(word in lowered for word in ("password", "authentication", "pg_hba")):
        return "it refuses this user or password"
    return text if len(text) <= 200 else text[:200] + "..."


def held_keys(storage: BaseStorage, study_id: int, run: str) -> set[Key]:
    """List the results of a run's record that a study holds.

    A server may still be carrying out a request of a driver that was killed, or whose connection broke. Optuna locks the study's
    row to add a trial, so the result of that request is visible once this function has had the lock.
    """
    if not isinstance(storage, RDBStorage):
        trials = storage.get_all_trials(study_id, deepcopy=False)
        return _keys((trial.user_attrs for trial in trials), run)
    # Read Optuna's tables directly: its own reader of trials loads a thousand values for each of the three that are needed.
    from optuna.storages._rdb.models import StudyModel, TrialModel
    from optuna.storages._rdb.models import TrialUserAttributeModel as Attribute

    with Session(storage.engine) as session:
        StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
    wanted = select(Attribute.trial_id, Attribute.key, Attribute.value_json).join(TrialModel)
    wanted = wanted.where(TrialModel.study_id == study_id, Attribute.key.in_(("run", *Key._fields)))
    attributes: dict[int, dict[str, Any]] = defaultdict(dict)
    with Session(storage.engine) as session:
        for trial, key, value in session.execute(wanted):
            attributes[trial][key] = json.loads(value)
    return _keys(attributes.values(), run)


def _keys(trials: Iterable[Mapping[str, Any]], run: str) -> set[Key]:
    return {Key(found["candidate"], found["fidelity"]) for found in trials if found.get("run") == run}


def _open_tables(address: StorageAddress, url: str, arguments: Mapping[str, Any]) -> RDBStorage:
    """Open a database. Credentials go to the driver only, so that neither Optuna nor SQLAlchemy can show them."""
    # The pool logs tracebacks of errors that are handled here.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    for left in reversed(range(OPEN_TRIES)):
        try:
            storage = RDBStorage(url, engine_kwargs={"connect_args": arguments})
            break
        except ImportError as error:
            reason = error.__cause__ or error
            raise UserError(
                f"storage {address}: the package 'psycopg' does not load ({reason}); wanted pip install '{EXTRA}'"
            ) from None
        except (IntegrityError, ProgrammingError):  # another driver makes the same table
            if not left:
                raise

    def end_call(context: ExceptionContext) -> None:
        raise StorageError(explain(context.original_exception, address))

    event.listen(storage.engine, "handle_error", end_call)
    return storage


def _connect_arguments(address: StorageAddress) -> dict[str, Any]:
    url = address.url.set(drivername="postgresql+psycopg")
    return {**POSTGRESQL_SETTINGS, **url.get_dialect()().create_connect_args(url)[1]}


def _open_journal(path: Path) -> JournalStorage:
    """Open a journal file, and cut off half a line that a killed process or a full disk left at its end."""
    lock = JournalFileSymlinkLock(str(path), grace_period=LOCK_SECONDS)
    journal = JournalFileBackend(str(path), lock)
    lock.acquire()
    try:
        content = path.read_bytes()
        if content and not content.startswith(b'{"op_code":'):
            raise StorageError("it is no journal of Optuna's")
        if not content.endswith(b"\n"):
            with path.open("r+b") as stream:
                stream.truncate(content.rfind(b"\n") + 1)
    finally:
        lock.release()
    return JournalStorage(journal)
