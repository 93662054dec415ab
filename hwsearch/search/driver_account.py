"""The drivers of a run folder: when each began, which step it reached, and how it ended, even if it wrote no record.

The driver that holds the folder writes them to a journal (`hwsearch.files.journal`) without seals. A driver that no longer holds
the folder and left no last line was killed.
"""

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, Field, TypeAdapter, ValidationError

from hwsearch.errors import UserError
from hwsearch.files.journal import Journal, read_lines
from hwsearch.printable import printable
from hwsearch.search.progress import INTERRUPTED, How
from hwsearch.search.studies.address import redact

DRIVERS_FILE = "drivers.jsonl"

_WHAT = "what drivers have said of themselves"


class Step(StrEnum):
    """The steps of a driver, in order. A step whose result exists takes no time."""

    DATA = "rooms and mixtures"
    BASE = "training of the base"
    PREPARATION = "base and calibration"
    """`search.hours` count from here on."""
    POOL = "training mixtures"
    SHARED = "shared network"
    SENSITIVITIES = "sensitivities"
    STRUCTURE = "what may be left out"
    NAS = "differentiable search"
    CANDIDATES = "candidates"


Moment = Annotated[AwareDatetime, Field(ge=datetime(1970, 1, 1, tzinfo=UTC), lt=datetime(9000, 1, 1, tzinfo=UTC))]
Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Began(BaseModel):
    event: Literal["began"] = "began"
    process: Count
    host: str
    time: Moment


class _Stepped(BaseModel):
    event: Literal["step"] = "step"
    step: Step
    done: Count | None = None
    total: Count | None = None
    time: Moment


class Ended(BaseModel):
    """How a driver ended."""

    event: Literal["ended"] = "ended"
    how: How
    reason: str
    time: Moment


_LINE: TypeAdapter[_Began | _Stepped | Ended] = TypeAdapter(Annotated[_Began | _Stepped | Ended, Field(discriminator="event")])


@dataclass(frozen=True)
class StepNews:
    """A step and how far it is."""

    step: Step
    since: datetime
    done: int | None
    """None if the step counts nothing, or if the record has the count."""
    total: int | None


@dataclass(frozen=True)
class Session:
    """The life of one driver, from its start to its end."""

    process: str
    """The process and its machine (`LockHolder.process`)."""
    began: datetime
    last_seen: datetime
    """When it last wrote to this journal."""
    searching: datetime | None = None
    """When `search.hours` began to count."""
    scoring: datetime | None = None
    """When it reached the candidates."""
    step: StepNews | None = None
    ended: Ended | None = None


class DriverAccount:
    """The account that a driver keeps of its own steps."""

    def __init__(self, journal: Journal) -> None:
        """Write that a driver, which holds the folder, begins.

        Raises:
            UserError: it cannot be written.
        """
        self._journal = journal
        self._said: tuple[Step, int] | None = None
        self._has_ended = False
        self._say(_Began(process=os.getpid(), host=socket.gethostname(), time=datetime.now(UTC)), durably=True)

    def step(self, step: Step, done: int | None = None, total: int | None = None) -> None:
        """Write which step is under way, at most a hundred times for each step.

        Raises:
            UserError: it cannot be written.
        """
        said = step, 100 * (done or 0) // max(total or 0, 1)
        if said != self._said:
            self._said = said
            self._say(_Stepped(step=step, done=done, total=total, time=datetime.now(UTC)))

    def end(self, how: How, reason: str) -> None:
        """Write how this driver ends; only the first call counts.

        Raises:
            UserError: it cannot be written.
        """
        if not self._has_ended:
            self._has_ended = True
            reason = printable(" ".join(redact(reason).split()))
            self._say(Ended(how=how, reason=reason, time=datetime.now(UTC)), durably=True)

    def _say(self, line: BaseModel, *, durably: bool = False) -> None:
        self._journal.append([line.model_dump_json(exclude_none=True).encode()], durably=durably)


@contextmanager
def driver_account(folder: Path) -> Iterator[DriverAccount]:
    """Keep the account of a driver that holds the folder. An error that leaves the block is written as the driver's end.

    Raises:
        UserError: it cannot be written.
    """
    with Journal(folder / DRIVERS_FILE, _WHAT, sealed=False) as journal:
        account = DriverAccount(journal)
        try:
            yield account
        except BaseException as error:
            with suppress(UserError):  # such as on a full disk, which is then what ended the driver
                if isinstance(error, KeyboardInterrupt):
                    account.end(How.INTERRUPTED, INTERRUPTED)
                else:
                    account.end(How.ERROR, str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
            raise
        account.end(How.FINISHED, "finished")


def read_sessions(folder: Path) -> tuple[Session, ...]:
    """Read the drivers of a run folder so far, in order. Torn lines and unknown ones are left out.

    Raises:
        UserError: it cannot be read.
    """
    path = folder / DRIVERS_FILE
    return tuple(_sessions(read_lines(path, _WHAT))) if path.exists() else ()


def _sessions(lines: Iterable[bytes]) -> list[Session]:
    found: list[Session] = []
    for text in lines:
        try:
            line = _LINE.validate_json(text, strict=True)
        except ValidationError:
            continue
        if isinstance(line, _Began):
            process = str(line.process) + ("" if line.host == socket.gethostname() else f" on {line.host}")
            found.append(Session(process, line.time, line.time))
        elif found:
            found[-1] = replace(_told(found[-1], line), last_seen=line.time)
    return found


def _told(session: Session, line: _Stepped | Ended) -> Session:
    if isinstance(line, Ended):
        return replace(session, ended=line)
    before, step = session.step, line.step
    since = before.since if before is not None and before.step is step else line.time
    return replace(
        session,
        step=StepNews(step, since, line.done, line.total),
        searching=session.searching or (None if step in {Step.DATA, Step.BASE} else line.time),
        scoring=session.scoring or (line.time if step is Step.CANDIDATES else None),
    )
