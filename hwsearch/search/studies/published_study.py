"""The study of a run folder's record on a storage, and what is missing in it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.storages import BaseStorage
from optuna.study import StudyDirection

from hwsearch.errors import UserError
from hwsearch.files.locks import Lock
from hwsearch.files.writing import check_writable
from hwsearch.search.record import REFERENCE, Asked, Failed, Header, Scored, read_record
from hwsearch.search.space import Point
from hwsearch.search.studies.address import StorageAddress
from hwsearch.search.studies.mirror import MIRROR_FILE
from hwsearch.search.studies.storage import Key, StorageError, close_storage, held_keys, open_storage, translated
from hwsearch.search.studies.trials import METRIC_NAMES, SEARCH_ATTRIBUTE, Finished, TrialWriter

LOCK_FILE = "publish.lock"


class ForeignStudyError(Exception):
    """The study of that name belongs to someone else; the message says to whom."""


class PublishedStudy:
    """A study that belongs to a record. It takes each result of the record once."""

    def __init__(self, storage: BaseStorage, address: StorageAddress, header: Header) -> None:
        """Find the study, or make it, and read which results it holds.

        Raises:
            StorageError: the storage does not do it.
            ForeignStudyError: the study belongs to someone else.
        """
        self._storage = storage
        self._address = address
        self._writer = TrialWriter(header)
        with translated(address):
            self._study = _take_study(storage, header, self._writer)
            self._held = held_keys(storage, self._study, header.identity)

    def add(self, event: Scored | Failed, point: Point) -> bool:
        """Add a result, unless the study holds it.

        Returns:
            Whether it was added.

        Raises:
            StorageError: the storage did not say that the result is there. It may be: open the study anew.
        """
        key = key_of(event)
        if key in self._held:
            return False
        trial = self._writer.trial(event, point)
        with translated(self._address):
            # Not `Study.add_trial`: it keeps every trial in memory.
            self._storage.create_new_trial(self._study, template_trial=trial)
        self._held.add(key)
        return True


@contextmanager
def open_study(address: StorageAddress, folder: Path, header: Header) -> Iterator[PublishedStudy]:
    """Open the study of a run folder's record. One process at a time does so.

    Raises:
        UserError: the storage's driver is not installed.
        StorageError: the storage does not do it, or another process publishes this run folder.
        ForeignStudyError: the study belongs to someone else.
    """
    if address.file == (folder / MIRROR_FILE).absolute():
        raise ForeignStudyError("the driver of the run folder writes this file itself; wanted another file")
    try:
        lock = Lock(folder / LOCK_FILE, "is publishing it")
    except UserError as error:
        raise StorageError(str(error)) from None
    with lock:
        storage = open_storage(address)
        try:
            yield PublishedStudy(storage, address, header)
        finally:
            close_storage(storage)


def check_study(address: StorageAddress, name: str, experiment: str, record: Header | None) -> int | None:
    """Refuse, before hours go into a search, a storage that cannot be reached or a study that is someone else's.

    Args:
        address: of the storage.
        name: of the study.
        experiment: hash of the search's experiment.
        record: header of the run folder's record, where there is one.

    Returns:
        Trials that the study holds; None: there is no such study yet.

    Raises:
        UserError: the driver is not installed, the storage cannot be reached or refuses, or the study belongs to another search.
    """
    if address.file is not None and not address.file.exists():
        check_writable(address.file)
        return None
    with refusals(address):
        storage = open_storage(address)
        try:
            with translated(address):
                study = _find(storage, name)
                if study is None:
                    return None
                _is_owned(storage, study, name, experiment, None if record is None else record.identity)
                return storage.get_n_trials(study)
        finally:
            close_storage(storage)


@contextmanager
def refusals(address: StorageAddress) -> Iterator[None]:
    """Turn what a storage does not do, and a study of someone else, into a `UserError`."""
    try:
        yield
    except StorageError as error:
        wanted = "" if "wanted" in str(error) else "; wanted a storage that can be reached and lets this user in"
        raise UserError(f"storage {address}: {error}{wanted}") from None
    except ForeignStudyError as error:
        raise UserError(f"storage {address}: {error}") from None


def finished_results(folder: Path) -> Iterable[Finished]:
    """What a record holds that a study should hold: all results but that of full precision."""
    points: dict[int, Point] = {}
    for event in read_record(folder)[1]:
        if isinstance(event, Asked):
            if event.point is not None:
                points[event.candidate] = event.point
        elif event.candidate != REFERENCE:
            yield event, points[event.candidate]


def key_of(event: Scored | Failed) -> Key:
    """What the trial of a result is known by."""
    return Key(event.candidate, event.fidelity.value)


def _take_study(storage: BaseStorage, header: Header, writer: TrialWriter) -> int:
    """The number of the record's study, which is made if there is none.

    Who makes a study owns it, since a storage makes only one of a name. A driver that was killed as it made one leaves it empty
    and without an owner. It is made anew, so that of two drivers that find it one owns it.
    """
    directions = [StudyDirection[objective.direction.name] for objective in header.objectives]
    study = _find(storage, header.name)
    if study is not None:
        if _is_owned(storage, study, header.name, header.experiment, header.identity):
            return study
        if storage.get_study_directions(study) != directions:
            raise _made_by_something_else(header.name)
        storage.delete_study(study)
    study = storage.create_new_study(directions, header.name)
    storage.set_study_system_attr(study, METRIC_NAMES, writer.metric_names)
    storage.set_study_user_attr(study, SEARCH_ATTRIBUTE, writer.study_attributes())
    return study


def _find(storage: BaseStorage, name: str) -> int | None:
    """The number of the study of a name, if there is one."""
    try:
        return storage.get_study_id_from_name(name)
    except KeyError:
        return None


def _is_owned(storage: BaseStorage, study: int, name: str, experiment: str, run: str | None) -> bool:
    """Whether a study belongs to this search. If not, it is an empty one without an owner.

    Raises:
        ForeignStudyError: it is someone else's.
    """
    attributes = storage.get_study_user_attrs(study)
    owner = attributes.get(SEARCH_ATTRIBUTE)
    if owner is None:
        if attributes or storage.get_n_trials(study):
            raise _made_by_something_else(name)
        return False
    if owner["experiment"] != experiment:
        other = owner["experiment"][:12]
        raise ForeignStudyError(
            f"study '{name}' belongs to a search of another experiment ({other}, not {experiment[:12]}); wanted another name"
        )
    if owner["run"] != run:
        raise ForeignStudyError(
            f"study '{name}' belongs to the same experiment's search in another run folder, begun {owner['begun']}; wanted "
            "that folder, another name, or the study deleted"
        )
    return True


def _made_by_something_else(name: str) -> ForeignStudyError:
    return ForeignStudyError(f"study '{name}' was made by something else; wanted another name of the experiment")
