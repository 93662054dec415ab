"""Jobs in this process, without Ray: for tests, for debugging, and as the reference for Ray's results."""

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType, TracebackType
from typing import Generic, Self

from hwsearch.errors import UserError
from hwsearch.executor.interface import Argument, Factory, Outcome, Result, this_process
from hwsearch.executor.reasons import attempt, no_answer, times
from hwsearch.process.interrupts import checkpoint

REPEAT_SECONDS = 1.0
"""The alarm fires again after this time, because its exception can be lost, for example inside a destructor."""


class LocalExecutor(Generic[Argument, Result]):
    """Runs jobs in this process, one after another, in the order they were submitted.

    A time limit is an alarm of the operating system. It interrupts Python code and sleep at once, and native code as soon as
    that returns. For jobs that may never return from native code, use Ray, which runs them in other processes.
    """

    capacity = 1
    ready = 0

    def __init__(self, factory: Factory[Argument, Result], *, max_attempts: int = 1, time_limit_s: float | None = None) -> None:
        """Make an executor that builds its work function at the first job.

        Args:
            factory: builds the work function.
            max_attempts: number of attempts at a job that does not answer in time. A job that ends this process ends everything.
            time_limit_s: time limit of one attempt.

        Raises:
            UserError: a time limit outside the main thread, where no alarm can be set.
        """
        if time_limit_s is not None and threading.current_thread() is not threading.main_thread():
            raise UserError("a time limit without Ray works in the main thread only; wanted workers on Ray, or no time limit")
        self._factory = factory
        self._max_attempts = max_attempts
        self._limit = time_limit_s or 0.0
        """Time limit of one attempt; 0 for none."""
        self._work: Callable[[Argument], Result] | None = None
        self._queue: deque[tuple[int, Argument]] = deque()

    def submit(self, key: int, argument: Argument) -> None:
        """Queue a job."""
        self._queue.append((key, argument))

    def next_outcome(self) -> Outcome[Result]:
        """Run the oldest job. See `Executor`."""
        if not self._queue:
            raise LookupError("no job is in flight")
        checkpoint()
        if self._work is None:
            self._work = self._factory()
        key, argument = self._queue.popleft()
        for attempts in range(1, self._max_attempts + 1):
            with suppress(_TimeIsUp), _alarm(self._limit) if self._limit else nullcontext():
                result, error, seconds = attempt(self._work, argument)
                return Outcome(key, result, error, attempts, seconds, this_process())
        reason = f"{no_answer(self._limit)}, {times(self._max_attempts)}"
        return Outcome(key, None, reason, self._max_attempts, self._limit, this_process())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._queue.clear()
        self._work = None


class _TimeIsUp(BaseException):
    """Raised by the alarm. It is no `Exception`, so that a job's own handlers let it pass."""


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise `_TimeIsUp` in the block after some seconds."""
    armed = True

    def ring(number: int, frame: FrameType | None) -> None:
        if armed:
            raise _TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds, REPEAT_SECONDS)
            yield
        finally:
            # An alarm that is due just now must not leave the timer running, or it would interrupt later work.
            armed = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
