"""Where pure jobs run: in this process, or on Ray.

An executor is given a factory, a picklable callable (a module-level function, or a `functools.partial` of
one) that builds the function which does the work. Every worker calls it once, so whatever is dear to load is
loaded once per worker and shared by its jobs. Jobs are pure and idempotent: a job whose worker died is simply
run again.
"""

import logging
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from hwsearch.errors import UserError

Argument = TypeVar("Argument")
Result = TypeVar("Result")
Argument_contra = TypeVar("Argument_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)

Factory = Callable[[], Callable[[Argument], Result]]

OBJECT_STORE_BYTES = 128 * 2**20
"""Ray's shared memory on this machine: jobs are small; what is large goes through files or the factory."""

CONNECT_SECONDS = 5.0
"""How long a cluster may take to answer."""

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""One thread per worker: numerical libraries read this when they are loaded."""


@dataclass(frozen=True)
class Outcome(Generic[Result_co]):
    """What became of a job: its result, or why there is none."""

    key: int
    result: Result_co | None
    error: str | None
    """None if the job succeeded; else the exception, or how its workers died."""
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

    def submit(self, key: int, argument: Argument_contra) -> None:
        """Queue a job; its outcome carries `key`."""
        ...

    def next_outcome(self) -> Outcome[Result_co]:
        """Wait for any job in flight to finish.

        A job that raises, or whose worker keeps dying, gives an outcome with its error. A `UserError`, or any
        failure to build the work function, concerns every job and is raised.

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


class LocalExecutor(Generic[Argument, Result]):
    """Runs jobs in this process, one after another, in the order they were submitted."""

    capacity = 1

    def __init__(self, factory: Factory[Argument, Result]) -> None:
        self._factory = factory
        self._work: Callable[[Argument], Result] | None = None
        self._queue: deque[tuple[int, Argument]] = deque()

    def submit(self, key: int, argument: Argument) -> None:
        """Queue a job."""
        self._queue.append((key, argument))

    def next_outcome(self) -> Outcome[Result]:
        """Run the oldest job; see `Executor`."""
        if not self._queue:
            raise LookupError("no job is in flight")
        if self._work is None:
            self._work = self._factory()
        key, argument = self._queue.popleft()
        result, error, seconds = _attempt(self._work, argument)
        return Outcome(key, result, error, attempts=1, seconds=seconds, worker=_this_process())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._queue.clear()
        self._work = None


class RayExecutor(Generic[Argument, Result]):
    """Runs jobs on Ray: warm actors with one core and one thread each, one job at a time per actor.

    A job whose actor dies (a crash, memory, a lost node) is tried again on a new one, `max_attempts` times in
    all. Without an address a fresh Ray is started on this machine, for this process only; with one, the jobs
    go to that cluster, whose nodes must have this package and the files that the factory names.
    """

    def __init__(
        self,
        factory: Factory[Argument, Result],
        workers: int,
        *,
        max_attempts: int = 3,
        ray_address: str | None = None,
    ) -> None:
        """Connect to Ray and start the workers.

        Raises:
            UserError: no cluster answers at `ray_address`.
        """
        self._workers = workers
        self._max_attempts = max_attempts
        self._queue: deque[_Job[Argument]] = deque()
        self._running: dict[Any, tuple[Any, _Job[Argument]]] = {}
        self._owns_ray = _connect_ray(workers, ray_address)
        import ray

        self._factory = ray.put(factory)
        self._actor_class = ray.remote(_RayWorker).options(
            num_cpus=1,
            max_restarts=0,
            runtime_env={"env_vars": _worker_environment(local=ray_address is None)},
        )
        self._idle: list[Any] = [self._start_actor() for _ in range(workers)]

    @property
    def capacity(self) -> int:
        """One job per worker, and one waiting per eight workers to bridge the driver's time."""
        return self._workers + (self._workers + 7) // 8

    def submit(self, key: int, argument: Argument) -> None:
        """Queue a job."""
        self._queue.append(_Job(key, argument))
        self._dispatch()

    def next_outcome(self) -> Outcome[Result]:
        """Wait for any job; see `Executor`."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        while self._running:
            (done, *_), _ = ray.wait(list(self._running), num_returns=1)
            actor, job = self._running.pop(done)
            try:
                result, error, seconds, worker = ray.get(done)
            except RayTaskError as failure:
                self._idle.append(actor)
                if isinstance(failure.cause, UserError):
                    raise failure.cause from None
                raise
            except RayError as death:
                lost = self._replace(actor, job, death)
                if lost is not None:
                    return lost
                continue
            self._idle.append(actor)
            self._dispatch()
            return Outcome(job.key, result, error, job.attempts, seconds, worker)
        raise LookupError("no job is in flight")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        import ray

        for actor in (*self._idle, *(actor for actor, _ in self._running.values())):
            ray.kill(actor)
        self._idle.clear()
        self._running.clear()
        self._queue.clear()
        if self._owns_ray:
            ray.shutdown()

    def _start_actor(self) -> Any:
        return self._actor_class.remote(self._factory)

    def _dispatch(self) -> None:
        while self._idle and self._queue:
            actor, job = self._idle.pop(), self._queue.popleft()
            self._running[actor.run.remote(job.argument)] = (actor, job)

    def _replace(self, actor: Any, job: "_Job[Argument]", death: Exception) -> Outcome[Result] | None:
        """Replace a dead actor and requeue its job; the outcome instead if the attempts are spent."""
        import ray

        ray.kill(actor)
        self._idle.append(self._start_actor())
        spent = job.attempts >= self._max_attempts
        if not spent:
            self._queue.appendleft(_Job(job.key, job.argument, job.attempts + 1))
        self._dispatch()
        if not spent:
            return None
        reason = f"its worker died {job.attempts} times; the last time: {type(death).__name__}: {_one_line(death)}"
        return Outcome(job.key, None, reason, job.attempts, seconds=0.0, worker="")


def open_executor(
    factory: Factory[Argument, Result], workers: int, *, max_attempts: int, ray_address: str | None
) -> Executor[Argument, Result]:
    """An executor with so many Ray workers; with none, this process does the work.

    Raises:
        UserError: no cluster answers at `ray_address`.
    """
    if workers == 0:
        return LocalExecutor(factory)
    return RayExecutor(factory, workers, max_attempts=max_attempts, ray_address=ray_address)


@contextmanager
def ray_session(workers: int, ray_address: str | None) -> Iterator[None]:
    """Keep Ray up for several executors in a row: starting it takes longer than many of their jobs.

    Raises:
        UserError: no cluster answers at `ray_address`.
    """
    owns = _connect_ray(workers, ray_address)
    try:
        yield
    finally:
        if owns:
            import ray

            ray.shutdown()


@dataclass(frozen=True)
class _Job(Generic[Argument]):
    key: int
    argument: Argument
    attempts: int = 1


class _RayWorker:
    """The actor: builds the work function at its first job and keeps it."""

    def __init__(self, factory: Factory[Any, Any]) -> None:
        self._factory = factory
        self._work: Callable[[Any], Any] | None = None

    def run(self, argument: Any) -> tuple[Any, str | None, float, str]:
        if self._work is None:
            self._work = self._factory()
        return (*_attempt(self._work, argument), _this_process())


def _attempt(work: Callable[[Argument], Result], argument: Argument) -> tuple[Result | None, str | None, float]:
    """Run a job; its result, or its exception in one line, and the seconds it took."""
    start = time.perf_counter()
    try:
        return work(argument), None, time.perf_counter() - start
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - a job is foreign code; what it raises is its outcome, and others go on
        return None, f"{type(error).__name__}: {_one_line(error)}", time.perf_counter() - start


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]


def _this_process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _worker_environment(*, local: bool) -> dict[str, str]:
    if not local:
        return ONE_THREAD
    # Workers on this machine import what this process can import, from wherever it was started.
    return {**ONE_THREAD, "PYTHONPATH": os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path)}


def _connect_ray(workers: int, address: str | None) -> bool:
    """Connect to Ray unless this process already is; whether this call did.

    A local Ray is always a new one (`local` never attaches to what a killed driver left; those processes
    notice that their parent is gone and end by themselves), without the dashboard, and reachable from this
    machine only: on Linux Ray binds to the loopback address when it is told that it can form no cluster.
    """
    if address is None:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    else:
        _check_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        return False
    if address is None:
        ray.init(
            address="local",
            num_cpus=workers,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    else:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    return True


def _check_reachable(address: str) -> None:
    """Refuse an address where nothing listens; Ray itself would try for minutes.

    Raises:
        UserError: not of the form HOST:PORT, or no connection within a few seconds.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"no Ray cluster answers at '{address}' ({_one_line(error)}); wanted HOST:PORT of a running one"
        ) from None
