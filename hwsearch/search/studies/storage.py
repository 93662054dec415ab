"""Optuna storages on servers, written to by one driver that may be killed, and on connections that may break at any instant.

A trial that was sent and not answered may have been stored or not. Both storages therefore decide on the server, in one step:
look for a trial of the same candidate and fidelity, and write only if there is none. So it is with whose a study is: of two
drivers that find a new one, one gets it.

Optuna's own Redis backend is not used: it loads snapshots with pickle, which executes what it reads, and its client sends an
unanswered command again. The one here reads and writes the same entries under the same keys, so Optuna's tools open them.
"""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial

from hwsearch.errors import UserError
from hwsearch.experiment import Fidelity
from hwsearch.search.studies.address import POSTGRESQL, REDIS_TLS, StorageAddress

EXTRA = "hwsearch[storage]"
"""What pip installs the drivers with."""

CONNECT_SECONDS = 5
"""How long a server may take to take a connection."""

SILENCE_SECONDS = 30
"""How long a connected server may say nothing before the connection counts as broken."""

OPEN_TRIES = 4
"""How often an empty database is opened. Optuna makes its tables in three steps, and in each another driver may be faster."""

ENTRIES_PER_READ = 500
"""Entries of a Redis journal fetched at a time."""


class StorageError(Exception):
    """A storage did not do what it was asked; the message is one line without credentials."""


class AlreadyStoredError(Exception):
    """The storage holds a trial of this candidate and fidelity, or an attribute of this name."""


class Key(NamedTuple):
    """What a trial is known by in a study."""

    candidate: int
    fidelity: Fidelity


Once = Key | str
"""What is written at most once to a study: a trial, or an attribute of the study."""


class SharedStorage(ABC):
    """A storage that takes a trial at most once."""

    def __init__(self, address: StorageAddress) -> None:
        self.address = address
        self.optuna: BaseStorage

    @abstractmethod
    def stored(self, study_id: int) -> set[Key]:
        """The finished trials that the study holds.

        Raises:
            StorageError: it cannot be asked.
        """

    @abstractmethod
    def close(self) -> None:
        """Give up the connection."""

    @abstractmethod
    def _announce(self, study_id: int, what: Once | None) -> None:
        """What is written next; None: something that may be written again."""

    @property
    @abstractmethod
    def _errors(self) -> tuple[type[Exception], ...]:
        """What its driver raises."""

    def add(self, study_id: int, key: Key, trial: FrozenTrial) -> None:
        """Store a finished trial, unless one of the same key is there.

        Raises:
            StorageError: the storage did not answer that it is stored. It may be.
        """
        with self._once(study_id, key):
            self.optuna.create_new_trial(study_id, template_trial=trial)

    def claim(self, study_id: int, name: str, value: Mapping[str, Any]) -> None:
        """Give a study an attribute, unless it has one of that name.

        Raises:
            StorageError: as `add`.
        """
        with self._once(study_id, name):
            self.optuna.set_study_user_attr(study_id, name, value)

    @contextmanager
    def _once(self, study_id: int, what: Once) -> Iterator[None]:
        self._announce(study_id, what)
        try:
            with self.translated():
                yield
        except AlreadyStoredError:
            return
        finally:
            self._announce(study_id, None)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn the errors of storage and driver into `StorageError`, and what Optuna says of content that it does not know."""
        errors: tuple[type[Exception], ...] = (*self._errors, StorageInternalError, OSError)
        try:
            yield
        except KeyError:  # what Optuna says of a study or trial that someone has deleted
            raise StorageError("the study is not there any more") from None
        except (AssertionError, AttributeError, TypeError, ValueError) as error:
            raise StorageError(f"it holds what Optuna cannot read ({explain(error, self.address)})") from None
        except errors as error:
            raise StorageError(explain(error, self.address)) from None


def open_storage(address: StorageAddress) -> SharedStorage:
    """Connect to a server; in an empty PostgreSQL database this makes Optuna's tables.

    Raises:
        UserError: the driver is not installed.
        StorageError: the server cannot be reached, or refuses.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return _PostgresStorage(address) if address.scheme == POSTGRESQL else _RedisStorage(address)


def explain(error: BaseException, address: StorageAddress) -> str:
    """The innermost reason of a driver's error in one line, without credentials."""
    reason: BaseException = error
    while (inner := getattr(reason, "orig", None) or reason.__cause__) is not None:
        reason = inner
    text = " ".join(address.redact(str(reason)).split()) or type(reason).__name__
    lowered = text.lower()
    if any(word in lowered for word in ("password", "authentication", "wrongpass", "noauth", "pg_hba")):
        return "it refuses this user or password"
    return text if len(text) <= 200 else text[:200] + "..."


class _PostgresStorage(SharedStorage):
    """Optuna's tables in PostgreSQL.

    Optuna repeats a transaction whose commit was not answered, and another server process may still be committing it. So every
    transaction that adds a trial begins with the lock on the study's row, which Optuna takes later on as well, and then looks.
    """

    def __init__(self, address: StorageAddress) -> None:
        super().__init__(address)
        try:
            import psycopg
        except ImportError as error:
            raise _missing("psycopg", address, error) from None
        from sqlalchemy import event, text
        from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

        self._driver_errors = (SQLAlchemyError, psycopg.Error)
        self._writing: tuple[int, Once] | None = None
        self._time_limit = text(f"SET LOCAL idle_in_transaction_session_timeout = '{SILENCE_SECONDS}s'")
        self._study = text("SELECT study_id FROM studies WHERE study_id = :study FOR UPDATE")
        self._trial = text(
            "SELECT 1 FROM trials"
            " JOIN trial_user_attributes c ON c.trial_id = trials.trial_id AND c.key = 'candidate' AND c.value_json = :candidate"
            " JOIN trial_user_attributes f ON f.trial_id = trials.trial_id AND f.key = 'fidelity' AND f.value_json = :fidelity"
            " WHERE trials.study_id = :study LIMIT 1"
        )
        self._attribute = text("SELECT 1 FROM study_user_attributes WHERE study_id = :study AND key = :name")
        self._keys = text(
            "SELECT c.value_json, f.value_json FROM trials"
            " JOIN trial_user_attributes c ON c.trial_id = trials.trial_id AND c.key = 'candidate'"
            " JOIN trial_user_attributes f ON f.trial_id = trials.trial_id AND f.key = 'fidelity'"
            " WHERE trials.study_id = :study AND trials.state IN ('COMPLETE', 'FAIL')"
        )
        # It says with a traceback what is handled here.
        logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
        with self.translated():
            for left in reversed(range(OPEN_TRIES)):
                try:
                    self._tables = _open_tables(address)
                    break
                except (IntegrityError, ProgrammingError):  # as where another driver makes the same table at that instant
                    if not left:
                        raise
        self.optuna = self._tables
        event.listen(self._tables.engine, "begin", self._look)

    @property
    def _errors(self) -> tuple[type[Exception], ...]:
        return self._driver_errors

    def stored(self, study_id: int) -> set[Key]:
        with self.translated(), self._tables.engine.connect() as connection:
            rows = connection.execute(self._keys, {"study": study_id}).all()
        return _keys((json.loads(candidate), json.loads(fidelity)) for candidate, fidelity in rows)

    def close(self) -> None:
        self._tables.engine.dispose()

    def _announce(self, study_id: int, what: Once | None) -> None:
        self._writing = None if what is None else (study_id, what)

    def _look(self, connection: Any) -> None:
        if self._writing is None:
            return
        study_id, what = self._writing
        # Where the network is lost in between, the server would keep the lock for hours.
        connection.execute(self._time_limit)
        connection.execute(self._study, {"study": study_id})
        if isinstance(what, Key):
            trial = {"candidate": json.dumps(what.candidate), "fidelity": json.dumps(what.fidelity.value)}
            found = connection.execute(self._trial, {"study": study_id, **trial})
        else:
            found = connection.execute(self._attribute, {"study": study_id, "name": what})
        if found.first() is not None:
            raise AlreadyStoredError


class _RedisStorage(SharedStorage):
    """Optuna's journal in Redis."""

    def __init__(self, address: StorageAddress) -> None:
        super().__init__(address)
        try:
            import redis
        except ImportError as error:
            raise _missing("redis", address, error) from None
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._driver_errors = (redis.RedisError,)
        client = redis.Redis(
            host=address.host,
            port=address.port or 6379,
            db=int(address.database),
            username=address.user,
            password=address.password,
            ssl=address.scheme == REDIS_TLS,
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=SILENCE_SECONDS,
            # By default an unanswered command is sent again, and would append an entry twice.
            retry=Retry(NoBackoff(), 0),
            client_name="hwsearch",
            ssl_ca_certs=address.options.get("ssl_ca_certs"),
        )
        self._journal = RedisJournal(client)
        with self.translated():
            self.optuna = JournalStorage(self._journal)

    @property
    def _errors(self) -> tuple[type[Exception], ...]:
        return self._driver_errors

    def stored(self, study_id: int) -> set[Key]:
        with self.translated():
            # Before the journal: what was appended with its name is in the journal that is read after it.
            names = self._journal.appended(study_id)
            trials = self.optuna.get_all_trials(study_id, deepcopy=False)
            found = _keys(
                (trial.user_attrs.get("candidate"), trial.user_attrs.get("fidelity"))
                for trial in trials
                if trial.state.is_finished()
            )
            attributes = self.optuna.get_study_user_attrs(study_id)
            # Someone has emptied the journal and left the names.
            self._journal.forget(study_id, names - {_name(key) for key in found} - attributes.keys())
        return found

    def claim(self, study_id: int, name: str, value: Mapping[str, Any]) -> None:
        self.stored(study_id)
        super().claim(study_id, name, value)

    def close(self) -> None:
        self._journal.close()

    def _announce(self, study_id: int, what: Once | None) -> None:
        self._journal.once = None if what is None else (study_id, _name(what))


class RedisJournal(BaseJournalBackend):
    """The entries of an Optuna journal in Redis, as `JournalRedisBackend` lays them, without its snapshots."""

    _APPEND = """
        if tonumber(redis.call('get', KEYS[1]) or -1) < tonumber(ARGV[3]) then return -1 end
        if ARGV[2] ~= '' and redis.call('hsetnx', KEYS[2], ARGV[2], 1) == 0 then return 0 end
        redis.call('setnx', KEYS[1], -1)
        redis.call('set', string.format(':log:%d', redis.call('incr', KEYS[1])), ARGV[1])
        return 1
    """
    """Atomic in Redis. The hash holds names of what was appended once, apart from the journal, which others may compact."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._last_read = -1
        self.once: tuple[int, str] | None = None
        """Study and name of what the next entry writes, if it may be written only once."""

    def appended(self, study_id: int) -> set[str]:
        """Names of what was appended once."""
        return {name.decode() for name in self._client.hkeys(_hash(study_id))}

    def forget(self, study_id: int, names: Collection[str]) -> None:
        """Let these be appended again."""
        if names:
            self._client.hdel(_hash(study_id), *names)

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Entries from a number on.

        Raises:
            StorageError: an entry is missing.
        """
        last = self._client.get(":log_number")
        for start in range(log_number_from, 0 if last is None else int(last) + 1, ENTRIES_PER_READ):
            numbers = range(start, min(start + ENTRIES_PER_READ, int(last) + 1))
            for number, entry in zip(numbers, self._client.mget([f":log:{number}" for number in numbers]), strict=True):
                if entry is None:
                    raise StorageError(f"entry {number} of its journal is missing")
                self._last_read = max(self._last_read, number)
                yield json.loads(entry)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append entries.

        Raises:
            AlreadyStoredError: what `once` announces was appended before.
            StorageError: the journal is shorter than what was read of it.
        """
        study_id, name = self.once or (0, "")
        for log in logs:
            keys = (":log_number", _hash(study_id))
            appended = self._client.eval(self._APPEND, len(keys), *keys, json.dumps(log), name, self._last_read)
            if appended < 0:
                raise StorageError("its journal was emptied")
            if appended == 0:
                raise AlreadyStoredError

    def close(self) -> None:
        """Give up the connection."""
        self._client.close()


def _open_tables(address: StorageAddress) -> RDBStorage:
    """Without credentials in the URL: they go to the driver, so that neither Optuna nor SQLAlchemy has them to show."""
    return RDBStorage(
        "postgresql+psycopg://",
        engine_kwargs={"connect_args": _connect_arguments(address), "pool_size": 1, "max_overflow": 2},
    )


def _connect_arguments(address: StorageAddress) -> dict[str, Any]:
    """What the driver is told; what the address does not say is left to it, such as the password to PGPASSWORD or a passfile."""
    named = {
        "host": address.host,
        "port": address.port,
        "dbname": address.database,
        "user": address.user,
        "password": address.password,
    }
    return {
        "application_name": "hwsearch",
        "connect_timeout": CONNECT_SECONDS,
        "keepalives_idle": SILENCE_SECONDS,
        "tcp_user_timeout": 1000 * SILENCE_SECONDS,
        **{name: value for name, value in named.items() if value},
        **address.options,
    }


def _missing(package: str, address: StorageAddress, error: ImportError) -> UserError:
    return UserError(f"storage {address}: the package '{package}' does not load ({error}); wanted pip install '{EXTRA}'")


def _keys(attributes: Iterable[tuple[object, object]]) -> set[Key]:
    """Keys of trials by their candidate and fidelity; trials that others have added have none."""
    known = {fidelity.value for fidelity in Fidelity}
    return {
        Key(candidate, Fidelity(fidelity))
        for candidate, fidelity in attributes
        if type(candidate) is int and isinstance(fidelity, str) and fidelity in known
    }


def _name(what: Once) -> str:
    return f"{what.candidate}@{what.fidelity.value}" if isinstance(what, Key) else what


def _hash(study_id: int) -> str:
    return f":hwsearch:{study_id}"
