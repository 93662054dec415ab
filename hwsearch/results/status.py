"""The state of a search, read from its record, its lock and the journal of its drivers, even while a driver writes."""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from hwsearch.experiment import Experiment, Fidelity
from hwsearch.files.locks import LockHolder
from hwsearch.search.driver_account import Ended, Session, StepNews, read_sessions
from hwsearch.search.experiment_space import experiment_space
from hwsearch.search.log import LOG_FILE
from hwsearch.search.objectives import QUALITY, SIZE, is_count, objectives_of
from hwsearch.search.pareto import volumes_at
from hwsearch.search.progress import How
from hwsearch.search.record import (
    RECORD_FILE,
    REFERENCE,
    Asked,
    Event,
    Failed,
    Header,
    Scored,
    has_begun,
    lock_holder,
    read_record,
)
from hwsearch.search.scoring import first_fidelity, later_rungs
from hwsearch.search.space import ALWAYS_PROMOTED, ends_seeds, uniform_seeds
from hwsearch.workspace import open_run

RECENT_SECONDS = 300.0
"""Seconds that count as recent, if enough candidates finished in them."""
RECENT_LEAST = 10
"""With fewer finished candidates than this, recent times reach farther back."""

THIS_PROCESS = "this process"
"""Name of the driver when it reads the status of its own search."""

CURVE_POINTS = 40
"""Points of the hypervolume's curve, evenly spaced in candidates scored."""


class WorkingTime:
    """The working time of a search: the time of its drivers, without the pauses between them.

    A driver's time runs from the moment it reached the candidates to its last entry in the record. The last driver's time goes
    on. Entries from before the first known driver count as one more driver, whose time begins at the first entry.
    """

    def __init__(self, starts: Sequence[datetime], entries: Sequence[datetime]) -> None:
        """Take the times when drivers reached the candidates, and the times of entries. Both rise."""
        if entries and (not starts or entries[0] < starts[0]):
            starts = [entries[0], *starts]
        before = [bisect_left(entries, following) for following in starts[1:]]
        ends = [max([start, *entries[max(0, count - 1) : count]]) for start, count in zip(starts, before, strict=False)]
        self._spans = list(zip(starts, [*ends, datetime.max.replace(tzinfo=UTC)], strict=False))

    def seconds(self, moment: datetime) -> float:
        """Return the seconds worked until a moment."""
        return sum((min(max(start, moment), end) - start).total_seconds() for start, end in self._spans)


@dataclass(frozen=True)
class VolumePoint:
    """The hypervolume after a number of scored candidates."""

    candidates: int
    seconds: float
    """Time that drivers had worked until then: see `WorkingTime`."""
    hypervolume: float
    """In the product of the objectives' units, against the worst value of each, over the candidates within the limits."""


@dataclass(frozen=True)
class RungStatus:
    """The candidates at one fidelity, without the reference."""

    fidelity: Fidelity
    scored: int
    failed: int
    in_flight: int | None
    """Candidates asked for and not finished; None above the first rung, for which the record does not say."""
    wanted: int
    """Number of candidates to be scored."""
    final: bool
    """Whether `wanted` is final. Until the rung below is done, it is only an upper bound."""
    curve: tuple[VolumePoint, ...]

    @property
    def left(self) -> int:
        """Number of candidates still to be scored. Only at the first rung does another candidate replace one that failed."""
        return self.wanted - self.scored - (self.failed if self.in_flight is None else 0)


@dataclass(frozen=True)
class WorkerStatus:
    """A process that has finished candidates."""

    worker: str
    finished: int
    mean_seconds: float
    last_seen: datetime


@dataclass(frozen=True)
class Reason:
    """A reason why candidates failed. Reasons that differ only in numbers count as one."""

    reason: str
    """The wording of the last such failure."""
    count: int


@dataclass(frozen=True)
class Notable:
    """A candidate worth naming."""

    why: str
    candidate: int
    fidelity: Fidelity
    values: Mapping[str, float]
    """Objectives by column."""


@dataclass(frozen=True)
class SearchStatus:
    """Where a search stands."""

    name: str
    taken: datetime
    """When the status was taken, UTC."""
    driver: LockHolder | None
    """None: no driver is running."""
    step: StepNews | None
    """The step that the driver is at; None: no driver is running, or it does not say."""
    last_end: Ended | None
    """How the last driver ended; None: one is running, or the last one had a version that does not say."""
    rungs: tuple[RungStatus, ...]
    """The rungs of the experiment in their order, and `finetuned` if any candidate is."""
    fidelity: Fidelity
    """The rung at which a candidate last finished."""
    reasons: tuple[Reason, ...]
    """The most frequent first."""
    per_second: float | None
    """Candidates finished at any fidelity while drivers worked (`WorkingTime`), until the last one finished."""
    recent_per_second: float | None
    """Candidates finished at the present rung over the last minutes; without a driver, over the last minutes before its end."""
    remaining_seconds: float | None
    """Time to the end of the present rung at the recent rate, without later promotions, or to the end of `search.hours` if that
    comes first. 0: the rung is done, or the same command would stop again at once."""
    hours_left_seconds: float | None
    """Time to the end of `search.hours`; None: no driver is running, or it has no such limit."""
    workers: tuple[WorkerStatus, ...]
    """Workers, the one seen last first."""
    notable: tuple[Notable, ...]
    """The best candidates within the limits at the highest fidelity."""
    record: Path
    log: Path | None

    @property
    def present(self) -> RungStatus:
        """The rung that is being scored, or was scored last."""
        return _present(self.rungs, self.fidelity)


class Tally:
    """Counts the events of a record, one by one."""

    def __init__(self, header: Header | None, experiment: Experiment) -> None:
        """Start without events. Without a header, the search has not begun yet."""
        self._name = experiment.name if header is None else header.name
        self._columns = objectives_of(experiment.search.objectives) if header is None else header.objectives
        self._experiment = experiment
        self._header = header
        self._first = first_fidelity(experiment)
        self._entered: list[datetime] = []
        """Times at which a candidate was asked for or finished."""
        self._asked = 0
        self._scored: dict[Fidelity, list[Scored]] = {}
        self._times: dict[Fidelity, list[datetime]] = {}
        """Times at which a candidate finished, including the reference."""
        self._last = self._first
        """Fidelity of the candidate that finished last."""
        self._failed: Counter[Fidelity] = Counter()
        self._reasons: Counter[str] = Counter()
        self._latest_reason: dict[str, str] = {}
        self._workers: dict[str, tuple[int, float, datetime]] = {}
        """What each worker has done: its number of candidates, the seconds they took, and when it finished the last one."""
        self._reference: dict[Fidelity, float] = {}

    def add(self, event: Event) -> None:
        """Take in the next event of the record."""
        time = datetime.fromisoformat(event.time)
        self._entered.append(time)
        if isinstance(event, Asked):
            self._asked += 1
            return
        self._times.setdefault(event.fidelity, []).append(time)
        self._last = event.fidelity
        if event.worker:
            count, seconds, _ = self._workers.get(event.worker, (0, 0.0, time))
            self._workers[event.worker] = count + 1, seconds + event.seconds, time
        if isinstance(event, Failed):
            key = re.sub(r"\b(?=\w*\d)\w+\b", "#", event.reason)
            self._failed[event.fidelity] += 1
            self._reasons[key] += 1
            self._latest_reason[key] = event.reason
        elif event.candidate == REFERENCE:
            self._reference[event.fidelity] = event.metrics[QUALITY]
        else:
            self._scored.setdefault(event.fidelity, []).append(event)

    def status(self, folder: Path, driver: LockHolder | None, taken: datetime, sessions: Sequence[Session] = ()) -> SearchStatus:
        """Return the state of the search in a run folder, which `driver` holds, at the moment `taken`.

        `sessions` are the known drivers so far, in order. A running one that has made itself known is the last.
        """
        log = folder / LOG_FILE
        running = None if driver is None else self._session_of(driver, sessions)
        last_end = _end_of(sessions[-1], self._entered) if driver is None and sessions else None
        since = None if running is None else running.scoring
        starts = {session.scoring for session in sessions} | {since}
        work = WorkingTime(sorted(start for start in starts if start is not None), sorted(self._entered))
        rungs = self._rungs(work)
        present = _present(rungs, self._last)
        rate = self._recent_rate(work, present.fidelity, taken, since)
        hours_left = None if running is None else self._hours_left(running, taken)
        finished = max((times[-1] for times in self._times.values()), default=None)
        return SearchStatus(
            name=self._name,
            taken=taken,
            driver=None if driver is None or running is None else replace(driver, since=running.began),
            step=None if running is None else running.step,
            last_end=last_end,
            rungs=rungs,
            fidelity=self._last,
            reasons=tuple(Reason(self._latest_reason[key], count) for key, count in self._reasons.most_common()),
            per_second=None if finished is None else _rate(sum(map(len, self._times.values())), work.seconds(finished)),
            recent_per_second=rate,
            remaining_seconds=remaining_seconds(present, rate, hours_left, last_end),
            hours_left_seconds=hours_left,
            workers=self._worker_statuses(),
            notable=self._notable(),
            record=folder / RECORD_FILE,
            log=log if log.is_file() else None,
        )

    def _session_of(self, driver: LockHolder, sessions: Sequence[Session]) -> Session:
        """Return the session of the running driver, or what the record tells of a driver that has not made itself known."""
        if sessions and sessions[-1].ended is None and driver.process in {sessions[-1].process, "unknown", THIS_PROCESS}:
            return sessions[-1]
        scoring = min((time for time in self._entered if time >= driver.since), default=None)
        return Session(driver.process, driver.since, driver.since, driver.since, scoring)

    def _hours_left(self, running: Session, taken: datetime) -> float | None:
        hours = self._experiment.search.hours
        used = 0.0 if running.searching is None else (taken - running.searching).total_seconds()
        return None if hours is None else max(0.0, 3600 * hours - used)

    def _recent_rate(self, work: WorkingTime, fidelity: Fidelity, taken: datetime, since: datetime | None) -> float | None:
        """Compute the candidates per second of a rung at the moment `taken`, or of the last driver at its end.

        `since` is the time when the running driver reached the candidates; None if there is none.
        """
        times = self._times.get(fidelity, [])
        if not times:
            return None
        # Rungs follow one another: earlier ones say nothing about the pace of the present one.
        starts = [self._entered[0], *(other[-1] for name, other in self._times.items() if name is not fidelity)]
        worked = [work.seconds(time) for time in times]
        begin = max(map(work.seconds, starts if since is None else [*starts, since]))
        return recent_rate(worked, worked[-1] if since is None else work.seconds(taken), begin)

    @cached_property
    def _always_promoted(self) -> int:
        """Number of candidates that go on to every rung, if all of them are scored."""
        space = experiment_space(self._experiment) if self._header is None else self._header.space
        return len(uniform_seeds(space) + ends_seeds(space))

    def _rungs(self, work: WorkingTime) -> tuple[RungStatus, ...]:
        search = self._experiment.search
        rungs = [self._rung(self._first, search.trials, work, final=True)]
        later = later_rungs(self._experiment)
        for place, rung in enumerate(later):
            below = rungs[-1]
            # Rungs follow one another, even if a budget ended one of them early.
            final = below.left <= 0 or any(follower.fidelity in self._times for follower in later[place:])
            wanted = min(rung.keep + self._always_promoted, below.wanted)
            if final:
                scored = self._scored.get(below.fidelity, [])
                always = sum(event.strategy in ALWAYS_PROMOTED for event in scored)
                contest = sum(event.strategy not in ALWAYS_PROMOTED and self._fits(event) for event in scored)
                wanted = min(rung.keep, contest) + always
            rungs.append(self._rung(rung.fidelity, wanted, work, final=final))
        if finetuned := self._scored.get(Fidelity.FINETUNED):
            rungs.append(self._rung(Fidelity.FINETUNED, len(finetuned), work, final=True))
        return tuple(rungs)

    def _rung(self, fidelity: Fidelity, wanted: int, work: WorkingTime, *, final: bool) -> RungStatus:
        scored, failed = len(self._scored.get(fidelity, [])), self._failed[fidelity]
        finished = scored + failed + (fidelity in self._reference)
        unsettled = self._asked - finished if fidelity is self._first else None
        return RungStatus(fidelity, scored, failed, unsettled, wanted, final, self._curve(fidelity, work))

    def _curve(self, fidelity: Fidelity, work: WorkingTime) -> tuple[VolumePoint, ...]:
        scored = self._scored.get(fidelity, [])
        if not scored:
            return ()
        directions = [objective.direction for objective in self._columns]
        values = np.array(
            [list(self._objectives(event).values()) if self._fits(event) else [np.nan] * len(directions) for event in scored]
        )
        counts = sorted({*np.linspace(1, len(scored), CURVE_POINTS).round().astype(int).tolist(), *quarters(len(scored))})
        seconds = [work.seconds(datetime.fromisoformat(scored[count - 1].time)) for count in counts]
        return tuple(map(VolumePoint, counts, seconds, volumes_at(values, directions, counts)))

    def _worker_statuses(self) -> tuple[WorkerStatus, ...]:
        found = [WorkerStatus(worker, count, total / count, last) for worker, (count, total, last) in self._workers.items()]
        return tuple(sorted(found, key=lambda status: status.last_seen, reverse=True))

    def _notable(self) -> tuple[Notable, ...]:
        fidelity = max(self._scored, key=list(Fidelity).index, default=self._first)
        fitting = [event for event in self._scored.get(fidelity, []) if self._fits(event)]
        if not fitting:
            return ()
        named = [("best quality", max(fitting, key=lambda event: event.metrics[QUALITY]))]
        allowed = self._experiment.export.max_drop_db
        near = [e for e in fitting if self._reference.get(fidelity, np.inf) - e.metrics[QUALITY] <= allowed and e.costs.get(SIZE)]
        if near:
            named.append(
                (f"smallest that loses at most {allowed:g} dB", min(near, key=lambda event: event.costs[SIZE] or np.inf))
            )
        return tuple(Notable(why, event.candidate, fidelity, self._objectives(event)) for why, event in named)

    def _objectives(self, event: Scored) -> dict[str, float]:
        values = {**event.costs, **event.metrics}
        return {objective.column: values[objective.column] or 0.0 for objective in self._columns}

    def _fits(self, event: Scored) -> bool:
        costs = {name: value for name, value in event.costs.items() if value is not None}
        return all(costs.get(name, np.inf) <= limit for name, limit in self._experiment.search.limits.items())


def read_status(folder: Path) -> SearchStatus:
    """Read the state of the search in a run folder; change nothing there.

    Raises:
        UserError: the folder is no run folder, no search has begun there, or its record is damaged.
    """
    experiment = open_run(folder)
    # The order matters: a driver writes that it ends before it releases the folder.
    driver = lock_holder(folder)
    sessions = read_sessions(folder)
    begun = has_begun(folder) or not (driver or sessions)
    tally = read_tally(folder, experiment) if begun else Tally(None, experiment)
    return tally.status(folder, driver, datetime.now(UTC), sessions)


def read_tally(folder: Path, experiment: Experiment) -> Tally:
    """Count the events in the record of a run folder.

    Raises:
        UserError: no record, or a damaged one.
    """
    header, events = read_record(folder)
    tally = Tally(header, experiment)
    for event in events:
        tally.add(event)
    return tally


def quarters(count: int) -> tuple[int, ...]:
    """Return 25, 50, 75 and 100 % of a count of at least one, as numbers of candidates."""
    return tuple(max(1, round(count * share)) for share in (0.25, 0.5, 0.75, 1.0))


def recent_rate(times: Sequence[float], now: float, since: float) -> float | None:
    """Compute the candidates finished per second over the last minutes, or over the last few candidates if they took longer.

    `times` are when candidates finished, rising, in seconds of working time. Those before `since`, when the driver or the rung
    began, do not count.
    """
    start = max(since, now - RECENT_SECONDS)
    if sum(time > start for time in times) < RECENT_LEAST:
        # From the candidate before the last few, or from the first of this driver.
        start = max(since, min(start, times[-RECENT_LEAST - 1])) if len(times) > RECENT_LEAST else since
    return _rate(sum(time > start for time in times), now - start)


def remaining_seconds(rung: RungStatus, rate: float | None, hours_left: float | None, last_end: Ended | None) -> float | None:
    """Compute the time to the end of a rung at a rate, or to the end of the running driver's hours; None if unknown.

    It is 0 if the next driver would end at once, as the last one did.
    """
    if rung.left <= 0 or (last_end is not None and last_end.how in {How.STALLED, How.EXHAUSTED}):
        return 0.0
    found = [rung.left / rate] if rate else []
    if hours_left is not None:
        found.append(hours_left)
    return min(found, default=None)


def to_json(status: SearchStatus) -> dict[str, Any]:
    """Convert a status to JSON values: times in ISO 8601, paths and fidelities as text."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: int(item) if is_count(key) and isinstance(item, float) else plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        if isinstance(value, BaseModel):
            return plain(value.model_dump(exclude={"event"}))
        if isinstance(value, datetime):
            return value.isoformat(timespec="milliseconds")
        if isinstance(value, Path | StrEnum):
            return str(value)
        return value

    return {key: plain(value) for key, value in asdict(status).items()}


def _present(rungs: tuple[RungStatus, ...], fidelity: Fidelity) -> RungStatus:
    return next((rung for rung in rungs if rung.fidelity is fidelity), rungs[0])


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if count and seconds > 0 else None


def _end_of(session: Session, entered: Sequence[datetime]) -> Ended:
    """Return how a driver ended that runs no more."""
    last = max([session.last_seen, *entered[-1:]])
    return session.ended or Ended(how=How.KILLED, reason="it was killed, or its machine went down", time=last)
