"""The shared study of a run folder: finding or making it, and adding the results that it lacks."""

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
from hwsearch.search.studies.storage import StorageError, held_keys, opened_storage, translated
from hwsearch.search.studies.trials import METRIC_NAMES, SEARCH_ATTRIBUTE, Finished, Key, TrialWriter

LOCK_FILE = "publish.lock"


class ForeignStudyError(Exception):
    """The study of that name belongs to another search, which the message names."""


class PublishedStudy:
    """A study that holds each result of a record once."""

    def __init__(self, storage: BaseStorage, address: StorageAddress, header: Header) -> None:
        """Find the study or make it, and read which results it holds.

        Raises:
            StorageError: the storage fails.
            ForeignStudyError: the study belongs to another search.
        """
        self._storage = storage
        self._address = address
        self._writer = TrialWriter(header)
        with translated(address):
            self._study = _take_study(storage, header, self._writer)
            self._held = held_keys(storage, self._study, header.identity)

    def add(self, event: Scored | Failed, point: Point) -> bool:
        """Add a result, unless the study holds it. Return whether it was added.

        Raises:
            StorageError: the storage did not confirm the result. It may hold it: open the study again.
        """
        key = Key.of(event)
        if key in self._held:
            return False
        trial = self._writer.trial(event, point)
        with translated(self._address):
            # `Study.add_trial` would keep every trial in memory.
            self._storage.create_new_trial(self._study, template_trial=trial)
        self._held.add(key)
        return True


@contextmanager
def open_study(address: StorageAddress, folder: Path, header: Header) -> Iterator[PublishedStudy]:
    """Open the study of a run folder, for one process at a time.

    Raises:
        UserError: the driver of the storage is not installed.
        StorageError: the storage fails, or another process publishes this run folder.
        ForeignStudyError: the study belongs to another search.
    """
    if address.file == (folder / MIRROR_FILE).absolute():
        raise ForeignStudyError("the driver of the run folder writes this file itself; wanted another file")
    try:
        lock = Lock(folder / LOCK_FILE, "is publishing it")
    except UserError as error:
        raise StorageError(str(error)) from None
    with lock, opened_storage(address) as storage:
        yield PublishedStudy(storage, address, header)


def check_study(address: StorageAddress, name: str, experiment: str, record: Header | None) -> int | None:
    """Refuse an unusable storage or a study of another search, before hours go into a search.

    Args:
        address: of the storage.
        name: of the study.
        experiment: hash of the search's experiment.
        record: header of the run folder's record, if there is one.

    Returns:
        Number of trials in the study; None if there is no such study yet.

    Raises:
        UserError: the driver is not installed, the storage fails, or the study belongs to another search.
    """
    if address.file is not None and not address.file.exists():
        check_writable(address.file)
        return None
    with refusals(address), opened_storage(address) as storage, translated(address):
        study = _find(storage, name)
        if study is None:
            return None
        _is_owned(storage, study, name, experiment, None if record is None else record.identity)
        return storage.get_n_trials(study)


@contextmanager
def refusals(address: StorageAddress) -> Iterator[None]:
    """Turn `StorageError` and `ForeignStudyError` into `UserError`."""
    try:
        yield
    except (StorageError, ForeignStudyError) as error:
        wanted = "" if "wanted" in str(error) else "; wanted a storage that can be reached and lets this user in"
        raise UserError(f"storage {address}: {error}{wanted}") from None


def finished_results(folder: Path) -> Iterable[Finished]:
    """Read the results of a record that a study should hold: all except that of full precision."""
    points: dict[int, Point] = {}
    for event in read_record(folder)[1]:
        if isinstance(event, Asked):
            if event.point is not None:
                points[event.candidate] = event.point
        elif event.candidate != REFERENCE:
            yield event, points[event.candidate]


def _take_study(storage: BaseStorage, header: Header, writer: TrialWriter) -> int:
    """Return the id of the record's study, and make the study if there is none.

    A storage makes only one study of a name, so the driver that makes it owns it. A driver that was killed meanwhile leaves an
    empty study without an owner. Such a study is made again, so that only one of two drivers that find it becomes the owner.
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
    """Return the id of the study of a name, if there is one."""
    try:
        return storage.get_study_id_from_name(name)
    except KeyError:
        return None


def _is_owned(storage: BaseStorage, study: int, name: str, experiment: str, run: str | None) -> bool:
    """Whether a study belongs to this search; false for an empty study without an owner.

    Raises:
        ForeignStudyError: it belongs to another search.
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
