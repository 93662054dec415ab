"""The mirror: an Optuna journal file in the run folder with every finished candidate, for Optuna's own tools.

Its content follows from the record alone. A driver that starts writes the same bytes again before it adds to them, so that a tool
that has the file open reads on.
"""

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import TrialState, create_trial

from hwsearch.errors import UserError
from hwsearch.files.writing import atomic_write
from hwsearch.search.record import Failed, Header, Scored
from hwsearch.search.space import Point
from hwsearch.search.studies.trials import METRIC_NAMES, SEARCH_ATTRIBUTE, Finished, TrialWriter

MIRROR_FILE = "optuna-journal.log"

_OF_ONE_TRIAL = ("datetime_start", "datetime_complete", "state", "value", "values", "params", "user_attrs")
"""Keys of a journal entry that differ from trial to trial. Parameters are positions of their categories, as in points."""

_WRITER = "hwsearch"
"""The author of the entries. Optuna itself draws a new name in every process."""


class StudyMirror:
    """An Optuna journal file of the finished candidates, made at the start of a driver and appended to."""

    def __init__(self, path: Path, header: Header, finished: Iterable[Finished]) -> None:
        """Write the results of the record atomically, in a folder that this driver has locked."""
        self._writer = TrialWriter(header)
        self._path = path
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        head, self._form = self._forms(header)

        def write(temporary: Path) -> None:
            with temporary.open("wb") as stream:
                stream.write(head)
                stream.writelines(self._line(event, point) for event, point in finished)

        atomic_write(path, write)

    def add(self, event: Scored | Failed, point: Point) -> None:
        """Add a finished candidate.

        Optuna's own file backend flushes every line to the disk and leaves a lock behind when it is killed. The mirror needs
        neither: the record is durable, the folder is locked, and a torn mirror is written again.

        Raises:
            UserError: the file cannot be written, for example because the disk is full.
        """
        try:
            with self._path.open("ab") as stream:
                stream.write(self._line(event, point))
        except OSError as error:
            raise UserError(
                f"{self._path}: cannot be written ({error.strerror}); the record beside it is whole: make room, and the same "
                "command goes on"
            ) from None

    def _forms(self, header: Header) -> tuple[bytes, bytes]:
        """Let Optuna write a study with one trial. Return the lines of the study, and the trial without `_OF_ONE_TRIAL`.

        All trials share this form, because Optuna takes milliseconds to write hundreds of distributions.
        """
        journal = _Journal()
        storage = JournalStorage(journal)
        study = optuna.create_study(
            storage=storage,
            study_name=header.name,
            directions=[objective.direction.value for objective in header.objectives],
        )
        storage.set_study_system_attr(storage.get_study_id_from_name(header.name), METRIC_NAMES, self._writer.metric_names)
        study.set_user_attr(SEARCH_ATTRIBUTE, self._writer.study_attributes())
        study.add_trial(
            create_trial(
                state=TrialState.FAIL,
                params={site: widths.choices[0] for site, widths in self._writer.distributions.items()},
                distributions=dict(self._writer.distributions),
            )
        )
        *head, form = [{**log, "worker_id": _WRITER} for log in journal.logs]
        form = {key: value for key, value in form.items() if key not in _OF_ONE_TRIAL}
        # JSON within JSON; Optuna puts spaces into it.
        form["distributions"] = {site: _json(json.loads(text)).decode() for site, text in form["distributions"].items()}
        return b"".join(_json(log) + b"\n" for log in head), _json(form)[:-1]

    def _line(self, event: Scored | Failed, point: Point) -> bytes:
        start, end = (_utc(time) for time in self._writer.times(event))
        own = {
            "datetime_start": start,
            "datetime_complete": end,
            "state": int(self._writer.state(event)),
            "value": None,
            "values": self._writer.values(event),
            "params": dict(zip(self._writer.distributions, point, strict=True)),
            "user_attrs": self._writer.attributes(event),
        }
        return self._form + b"," + _json(own)[1:] + b"\n"


def _utc(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="microseconds")


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


class _Journal(BaseJournalBackend):
    """A journal in memory that keeps what Optuna writes."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        yield from self.logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.logs += [json.loads(_json(log)) for log in logs]
