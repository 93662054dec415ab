"""The interface of executors, which give outcomes of jobs by key as they finish."""

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")
Argument_contra = TypeVar("Argument_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)

Factory = Callable[[], Callable[[Argument], Result]]


@dataclass(frozen=True)
class Outcome(Generic[Result_co]):
    """The outcome of a job: its result, or why there is none."""

    key: int
    result: Result_co | None
    error: str | None
    """None if the job succeeded; otherwise its exception, or the reason why its workers died."""
    attempts: int
    seconds: float
    """Time of the last attempt."""
    worker: str
    """Host and process that ran the job."""


class Executor(Protocol[Argument_contra, Result_co]):
    """Runs jobs; used as a context manager."""

    @property
    def capacity(self) -> int:
        """Number of jobs to keep in flight so that no worker waits for the next one."""
        ...

    @property
    def ready(self) -> int:
        """Number of outcomes that are available without waiting."""
        ...

    def submit(self, key: int, argument: Argument_contra) -> None:
        """Queue a job. Its outcome carries `key`."""
        ...

    def next_outcome(self) -> Outcome[Result_co]:
        """Wait for any job in flight to finish.

        If a job raises, never answers within the time limit, or loses a worker in each attempt, its outcome holds the error. A
        `UserError`, or a failure to build the work function, concerns every job and is raised.

        Raises:
            LookupError: nothing is in flight.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def run_jobs(executor: Executor[Argument, Result], arguments: Iterable[Argument]) -> Iterator[Outcome[Result]]:
    """Run one job per argument, `capacity` at a time. Yield outcomes as they finish, keyed by position."""
    in_flight = 0
    for key, argument in enumerate(arguments):
        if in_flight == executor.capacity:
            yield executor.next_outcome()
            in_flight -= 1
        executor.submit(key, argument)
        in_flight += 1
    for _ in range(in_flight):
        yield executor.next_outcome()


def this_process() -> str:
    """Return host and process of this process."""
    return f"{socket.gethostname()}:{os.getpid()}"
