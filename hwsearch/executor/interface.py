"""What every executor gives: outcomes of jobs by key, as they finish."""

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
    """What became of a job: its result, or why there is none."""

    key: int
    result: Result_co | None
    error: str | None
    """None if the job succeeded; else the exception, or what its workers died of."""
    attempts: int
    seconds: float
    """Time the job itself took, in its last attempt."""
    worker: str
    """Host and process that ran it."""


class Executor(Protocol[Argument_contra, Result_co]):
    """Runs jobs; used as a context manager."""

    @property
    def capacity(self) -> int:
        """How many jobs to keep in flight: enough that no worker waits for the next one."""
        ...

    @property
    def ready(self) -> int:
        """How many outcomes can be had without waiting for any."""
        ...

    def submit(self, key: int, argument: Argument_contra) -> None:
        """Queue a job; its outcome carries `key`."""
        ...

    def next_outcome(self) -> Outcome[Result_co]:
        """Wait for any job in flight to finish.

        A job that raises, that never answers within the time limit, or whose worker keeps dying, gives an outcome with its
        error. A `UserError`, or any failure to build the work function, concerns every job and is raised.

        Raises:
            LookupError: nothing is in flight.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def run_jobs(executor: Executor[Argument, Result], arguments: Iterable[Argument]) -> Iterator[Outcome[Result]]:
    """Run one job per argument, `capacity` at a time; outcomes come as they finish, keyed by position."""
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
    """Host and process."""
    return f"{socket.gethostname()}:{os.getpid()}"
