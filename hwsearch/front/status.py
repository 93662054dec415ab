"""Where a search stands, from its record and its lock alone; also while a driver writes it."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from hwsearch.experiment import Experiment, Fidelity
from hwsearch.search.hypervolume import volumes_at
from hwsearch.search.log import LOG_FILE
from hwsearch.search.objectives import QUALITY, SIZE
from hwsearch.search.promotion import ALWAYS_PROMOTED
from hwsearch.search.record import (
    RECORD_FILE,
    REFERENCE,
    Asked,
    Event,
    Failed,
    Header,
    LockHolder,
    Scored,
    lock_holder,
    read_record,
)
from hwsearch.search.scoring import first_fidelity
from hwsearch.workspace import open_run

RECENT_SECONDS = 300.0
"""What counts as recent, where enough was finished meanwhile."""
RECENT_LEAST = 10
"""Finished candidates below which one looks farther back."""

CURVE_POINTS = 40
FEW_CURVE_POINTS = 8
"""Points of the hypervolume's curve, evenly spaced in candidates scored; few with more than two objectives, where each takes a
quarter of a second and more on a front of hundreds."""


@dataclass(frozen=True)
class VolumePoint:
    """The hypervolume when so many candidates were scored."""

    candidates: int
    seconds: float
    """Since the first candidate of the search was asked for, pauses included."""
    hypervolume: float
    """In the product of the objectives' units, against the worst of each; of candidates within the limits."""


@dataclass(frozen=True)
class RungStatus:
    """The candidates at one fidelity, the reference not among them."""

    fidelity: Fidelity
    scored: int
    failed: int
    in_flight: int | None
    """Asked and not settled; None above the first rung, where the record does not tell."""
    wanted: int
    """Candidates that are to be scored; of a rung above one that is not done yet, at most."""
    curve: tuple[VolumePoint, ...]

    @property
    def left(self) -> int:
        """Candidates still to be scored; only at the first rung another one takes the place of one that failed."""
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
    """Why candidates failed; reasons that differ in numbers alone count as one."""

    reason: str
    """As the last of them has it."""
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
    """When this was so, UTC."""
    driver: LockHolder | None
    """None: no driver is running."""
    rungs: tuple[RungStatus, ...]
    """Those of the experiment in rising fidelity."""
    fidelity: Fidelity
    """The rung at which anything was finished last."""
    reasons: tuple[Reason, ...]
    """The most frequent first."""
    per_second: float | None
    """Candidates finished at any fidelity, from the first one asked for to the last one finished, pauses included."""
    recent_per_second: float | None
    """The same at the present rung over the last minutes; where no driver runs, the last before it ended."""
    remaining_seconds: float | None
    """To the end of the present rung or of `search.hours`, at the recent rate."""
    workers: tuple[WorkerStatus, ...]
    """The one seen last first."""
    notable: tuple[Notable, ...]
    """The best within the limits at the highest fidelity."""
    record: Path
    log: Path | None

    @property
    def present(self) -> RungStatus:
        """The rung that is being scored, or was last."""
        return next((rung for rung in self.rungs if rung.fidelity is self.fidelity), self.rungs[0])


class Tally:
    """What a record comes to so far, event by event."""

    def __init__(self, header: Header, experiment: Experiment) -> None:
        self._header = header
        self._experiment = experiment
        self._first = first_fidelity(experiment)
        self._asked = 0
        self._begun: datetime | None = None
        self._scored: dict[Fidelity, list[Scored]] = {}
        self._times: dict[Fidelity, list[datetime]] = {}
        """When anything was finished, the reference among them."""
        self._last = self._first
        """Fidelity of what was finished last."""
        self._failed: Counter[Fidelity] = Counter()
        self._reasons: Counter[str] = Counter()
        self._latest_reason: dict[str, str] = {}
        self._workers: dict[str, tuple[int, float, datetime]] = {}
        """Finished candidates, seconds in all, and when last."""
        self._reference: dict[Fidelity, float] = {}

    def add(self, event: Event) -> None:
        """Take in the next event of the record."""
        time = datetime.fromisoformat(event.time)
        self._begun = self._begun or time
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

    def status(self, folder: Path, driver: LockHolder | None, taken: datetime) -> SearchStatus:
        """Where the search stands at a moment.

        Args:
            folder: of the run.
            driver: who holds it.
            taken: the moment.
        """
        log = folder / LOG_FILE
        rungs = self._rungs()
        finished = sorted(time for times in self._times.values() for time in times)
        status = SearchStatus(
            name=self._header.name,
            taken=taken,
            driver=driver,
            rungs=rungs,
            fidelity=self._last,
            reasons=tuple(Reason(self._latest_reason[key], count) for key, count in self._reasons.most_common()),
            per_second=None if self._begun is None or not finished else _rate(len(finished), finished[-1] - self._begun),
            recent_per_second=None,
            remaining_seconds=None,
            workers=self._worker_statuses(),
            notable=self._notable(),
            record=folder / RECORD_FILE,
            log=log if log.is_file() else None,
        )
        rate = self._recent_rate(status.present.fidelity, driver, taken)
        left = remaining_seconds(status.present, rate, driver, self._experiment.search.hours, taken)
        return SearchStatus(**{**vars(status), "recent_per_second": rate, "remaining_seconds": left})

    def _recent_rate(self, fidelity: Fidelity, driver: LockHolder | None, taken: datetime) -> float | None:
        times = self._times.get(fidelity, [])
        if self._begun is None or not times:
            return None
        # Rungs follow one another: what came before the present one says nothing of its pace.
        since = max([self._begun, *(other[-1] for name, other in self._times.items() if name is not fidelity)])
        if driver is None:
            return recent_rate(times, times[-1], since)
        return recent_rate(times, taken, max(since, driver.since))

    def _rungs(self) -> tuple[RungStatus, ...]:
        search = self._experiment.search
        rungs = [self._rung(self._first, search.trials, in_flight=True)]
        for promotion in search.promotions:
            if promotion.fidelity is self._first:
                continue
            below = rungs[-1]
            scored = self._scored.get(below.fidelity, [])
            always = sum(event.strategy in ALWAYS_PROMOTED for event in scored)
            contest = sum(event.strategy not in ALWAYS_PROMOTED and self._fits(event) for event in scored)
            done = below.left <= 0
            wanted = min(promotion.keep, contest) + always if done else promotion.keep + always
            rungs.append(self._rung(promotion.fidelity, wanted, in_flight=False))
        return tuple(rungs)

    def _rung(self, fidelity: Fidelity, wanted: int, *, in_flight: bool) -> RungStatus:
        scored, failed = len(self._scored.get(fidelity, [])), self._failed[fidelity]
        finished = scored + failed + (fidelity in self._reference)
        unsettled = self._asked - finished if in_flight else None
        return RungStatus(fidelity, scored, failed, unsettled, wanted, self._curve(fidelity))

    def _curve(self, fidelity: Fidelity) -> tuple[VolumePoint, ...]:
        scored = self._scored.get(fidelity, [])
        if not scored or self._begun is None:
            return ()
        directions = [objective.direction for objective in self._header.objectives]
        values = np.array(
            [list(self._objectives(event).values()) if self._fits(event) else [np.nan] * len(directions) for event in scored]
        )
        points = CURVE_POINTS if len(directions) == 2 else FEW_CURVE_POINTS
        counts = sorted({*np.linspace(1, len(scored), points).round().astype(int).tolist(), *quarters(len(scored))})
        seconds = [(datetime.fromisoformat(scored[count - 1].time) - self._begun).total_seconds() for count in counts]
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
        return {objective.column: values[objective.column] or 0.0 for objective in self._header.objectives}

    def _fits(self, event: Scored) -> bool:
        costs = {name: value for name, value in event.costs.items() if value is not None}
        return all(costs.get(name, np.inf) <= limit for name, limit in self._experiment.search.limits.items())


def read_status(folder: Path) -> SearchStatus:
    """Where the search of a run folder stands now; changes nothing there.

    Raises:
        UserError: not a run folder, no search has begun there, or its record is damaged.
    """
    experiment = open_run(folder)
    driver = lock_holder(folder)
    return read_tally(folder, experiment).status(folder, driver, datetime.now(UTC))


def read_tally(folder: Path, experiment: Experiment) -> Tally:
    """What the record of a run folder comes to.

    Raises:
        UserError: no record, or a damaged one.
    """
    header, events = read_record(folder)
    tally = Tally(header, experiment)
    for event in events:
        tally.add(event)
    return tally


def quarters(count: int) -> tuple[int, int, int, int]:
    """How many candidates were scored at 25, 50, 75 and 100 % of a count of at least one."""
    first, second, third = (max(1, round(count * share)) for share in (0.25, 0.5, 0.75))
    return first, second, third, count


def recent_rate(times: Sequence[datetime], now: datetime, since: datetime) -> float | None:
    """Candidates finished per second over the last minutes; over the last few candidates where those took longer.

    Args:
        times: when each was finished, rising.
        now: end of the time looked at.
        since: when the driver or the rung began; what was finished before does not count.
    """
    start = max(since, now - timedelta(seconds=RECENT_SECONDS))
    if sum(time > start for time in times) < RECENT_LEAST:
        # From the candidate before the last few on, or all that this driver has finished.
        start = max(since, min(start, times[-RECENT_LEAST - 1])) if len(times) > RECENT_LEAST else since
    return _rate(sum(time > start for time in times), now - start)


def remaining_seconds(
    rung: RungStatus, rate: float | None, driver: LockHolder | None, hours: float | None, now: datetime
) -> float | None:
    """Time to the end of a rung at a rate, or to the end of the hours that a running driver may take; None if unknown."""
    if rung.left <= 0:
        return 0.0
    found = [rung.left / rate] if rate else []
    if driver is not None and hours is not None:
        found.append(max(0.0, (driver.since + timedelta(hours=hours) - now).total_seconds()))
    return min(found, default=None)


def to_json(status: SearchStatus) -> dict[str, Any]:
    """The status as JSON: times in ISO 8601, paths and fidelities as text."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        if isinstance(value, datetime):
            return value.isoformat(timespec="milliseconds")
        if isinstance(value, Path | Fidelity):
            return str(value)
        return value

    return {key: plain(value) for key, value in asdict(status).items()}


def _rate(count: int, duration: timedelta) -> float | None:
    seconds = duration.total_seconds()
    return count / seconds if count and seconds > 0 else None
