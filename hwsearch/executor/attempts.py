"""Jobs from their submission to their outcome, with every attempt and the reason of a failure.

Nothing here knows Ray. The caller names each attempt by any hashable value, and reports its end.
"""

import logging
import time
from collections import deque
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

from hwsearch.executor.interface import Argument, Outcome, Result
from hwsearch.executor.reasons import no_answer, times

Worker = TypeVar("Worker")

logger = logging.getLogger(__name__)


class Job(NamedTuple, Generic[Argument]):
    """A job."""

    key: int
    argument: Argument
    attempts: int = 1
    """Number of the present or next attempt."""
    hangs: int = 0
    """Number of earlier attempts that ran out of time."""


class Attempt(NamedTuple, Generic[Argument, Worker]):
    """A job that a worker runs."""

    job: Job[Argument]
    worker: Worker
    since: float
    """Its start, by `time.monotonic`."""


class Attempts(Generic[Argument, Result, Worker]):
    """The jobs of an executor. A job that is tried again goes before those that never ran."""

    def __init__(self, max_attempts: int, time_limit_s: float | None) -> None:
        """Start without jobs, with a time limit for each attempt."""
        self._max_attempts = max_attempts
        self._time_limit_s = time_limit_s
        self.waiting: deque[Job[Argument]] = deque()
        self.running: dict[Hashable, Attempt[Argument, Worker]] = {}
        """Attempts by name, the oldest first."""
        self.outcomes: deque[Outcome[Result]] = deque()
        """Outcomes that were not taken yet."""

    def submit(self, key: int, argument: Argument) -> None:
        """Add a job to the end of the queue."""
        self.waiting.append(Job(key, argument))

    def begin(self, name: Hashable, job: Job[Argument], worker: Worker) -> None:
        """Note that a worker begins a job."""
        self.running[name] = Attempt(job, worker, time.monotonic())

    def lose(self, attempt: Attempt[Argument, Worker], death: str) -> None:
        """Note that the worker of an attempt, which was removed from `running`, has died."""
        self._fail(attempt, death, f"died ({death})")

    def end_overdue(self) -> list[Worker]:
        """End the attempts that are out of time; return their workers."""
        limit, ended = self._time_limit_s, list[Worker]()
        while limit is not None and self.seconds_left() == 0.0:
            attempt, late = self.running.pop(next(iter(self.running))), no_answer(limit)
            self._fail(attempt._replace(job=attempt.job._replace(hangs=attempt.job.hangs + 1)), late, late, limit)
            ended.append(attempt.worker)
        return ended

    def lose_all(self, death: str) -> None:
        """Note that all workers have died at once."""
        for attempt in reversed(self.running.values()):
            self._retry(attempt.job, death)
        self.running.clear()

    def seconds_left(self) -> float | None:
        """Return the seconds until an attempt is out of time; None without a limit or attempts."""
        if self._time_limit_s is None or not self.running:
            return None
        oldest = next(iter(self.running.values()))
        return max(0.0, oldest.since + self._time_limit_s - time.monotonic())

    def clear(self) -> None:
        """Forget every job."""
        self.waiting.clear()
        self.running.clear()
        self.outcomes.clear()

    def _fail(self, attempt: Attempt[Argument, Worker], why: str, how: str, seconds: float = 0.0) -> None:
        """Queue the job of an attempt again, or give its outcome; log which."""
        job = attempt.job
        again = self._retry(job, why, seconds)
        fate = f"is tried again, attempt {job.attempts + 1} of {self._max_attempts}" if again else "has failed"
        logger.debug("a worker on node %s: %s; another one is started, and its job %d %s", attempt.worker, how, job.key, fate)

    def _retry(self, job: Job[Argument], why: str, seconds: float = 0.0) -> bool:
        """Queue a job again, or give its outcome if its attempts are spent; return whether it is queued."""
        again = job.attempts < self._max_attempts
        if again:
            self.waiting.appendleft(job._replace(attempts=job.attempts + 1))
        else:
            self.outcomes.append(Outcome(job.key, None, self._reason(job, why), job.attempts, seconds, worker=""))
        return again

    def _reason(self, job: Job[Argument], last: str) -> str:
        """Say why a job has failed, given the reason of its last attempt."""
        if job.hangs == job.attempts:
            return f"{last}, {times(job.attempts)}"
        what = "died or gave no answer" if job.hangs else "died"
        return f"its worker {what} {times(job.attempts)}; the last time: {last}"
