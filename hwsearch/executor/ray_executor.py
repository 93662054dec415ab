"""Jobs on Ray. `Attempts` keeps the jobs, `Actors` the workers, `Health` checks Ray, and `RayExecutor` connects the three."""

import logging
from types import TracebackType
from typing import Any, Generic, Self

from hwsearch.errors import UserError
from hwsearch.executor.actors import Actors, Worker
from hwsearch.executor.attempts import Attempts
from hwsearch.executor.health import Health, head_answers
from hwsearch.executor.interface import Argument, Factory, Outcome, Result
from hwsearch.executor.reasons import CONTINUE, one_error, times
from hwsearch.executor.session import check_fits, connect, disconnect, is_up
from hwsearch.experiment import WorkersConfig
from hwsearch.files.writing import atomic_write_bytes
from hwsearch.process.interrupts import checkpoint, pause

WAIT_SECONDS = 1.0
"""How long to wait for workers before checking whether this machine's node is alive."""

logger = logging.getLogger(__name__)


class RayExecutor(Generic[Argument, Result]):
    """Runs jobs on warm actors of Ray, each with the cores that the experiment gives it, and one job at a time.

    A job whose actor dies or does not answer within the time limit is tried again on a new one. Without an address, a fresh Ray
    is started on this machine, for this process only, and restarted if it dies. With an address, the jobs go to that cluster. Its
    nodes need no shared folder: files that a `Portable` factory or job names travel through Ray's object store, once to each
    node, and files that a job writes come back.
    """

    def __init__(
        self,
        factory: Factory[Argument, Result],
        workers: int,
        *,
        max_attempts: int = 3,
        ray_address: str | None = None,
        each: WorkersConfig | None = None,
    ) -> None:
        """Make an executor that connects to Ray and starts its workers with the first job.

        Args:
            factory: builds the work function, once per worker.
            workers: number of workers.
            max_attempts: most attempts at a job, most workers in a row that die at their start, and most deaths of a local Ray
                between two outcomes.
            ray_address: a cluster to join.
            each: resources and time limit of each worker; absent: one core, no limit.
        """
        self._address = ray_address
        self._each = each or WorkersConfig()
        self._max_attempts = max_attempts
        self._attempts = Attempts[Argument, Result, Worker](max_attempts, self._each.time_limit_s)
        self._health = Health(ray_address)
        self._actors = Actors(factory, workers, self._each, self._health, local=ray_address is None, max_deaths=max_attempts)
        self._restarts = 0
        """How often a local Ray was restarted since the last outcome."""
        self._has_begun = False
        self._owns_ray = False

    @property
    def capacity(self) -> int:
        """One job per worker, and one more per eight workers, which waits while the driver is busy.

        For a single worker no job waits, so that each proposal knows every earlier result, as without Ray.
        """
        workers = self._actors.count
        return 1 if workers == 1 else workers + (workers + 7) // 8

    @property
    def ready(self) -> int:
        """Number of outcomes that were not taken yet."""
        return len(self._attempts.outcomes)

    def submit(self, key: int, argument: Argument) -> None:
        """Queue a job; the first one starts Ray and the workers.

        Raises:
            UserError: no cluster answers, Ray does not start here, or a worker wants more than any node has.
        """
        if not self._has_begun:
            self._owns_ray = connect(self._actors.count, self._address, self._each)
            self._has_begun = True
            if self._address is None:  # a cluster may still start larger machines
                check_fits(self._each)
            self._begin()
        self._attempts.submit(key, argument)
        self._dispatch()

    def next_outcome(self) -> Outcome[Result]:
        """Wait for any job. See `Executor`.

        Raises:
            UserError: as in `Executor`; or Ray or all its nodes are gone for good.
        """
        attempts = self._attempts
        if not (attempts.outcomes or attempts.running or attempts.waiting):
            raise LookupError("no job is in flight")
        while True:
            checkpoint()
            # Do this even if an outcome is ready, so that workers go on while the driver is busy.
            self._look_after_ray()
            self._actors.start_missing(len(attempts.running))
            self._dispatch()
            if attempts.outcomes:
                break
            self._collect()
            self._actors.end_silent()
            for worker in attempts.end_overdue():
                self._actors.end(worker)
            self._health.tell_ready(self._ready_workers, self._actors.count)
        self._restarts = 0
        return attempts.outcomes.popleft()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self._has_begun and is_up():
                if self._health.own_node_lives() and head_answers():
                    self._actors.end_all(attempt.worker for attempt in self._attempts.running.values())
                else:
                    self._actors.delete_here()
        finally:
            if self._owns_ray and is_up():
                disconnect()
            self._health.close()
            self._actors.forget()
            self._attempts.clear()

    @property
    def _ready_workers(self) -> int:
        return len(self._attempts.running) + self._actors.unused

    def _begin(self) -> None:
        """Start every worker on the Ray that this process has just connected to."""
        self._health.begin()
        self._actors.start_missing(taken=0)

    def _dispatch(self) -> None:
        """Give jobs to workers."""
        attempts = self._attempts
        while attempts.waiting and self._health.is_trusted():
            worker = self._actors.take(len(attempts.waiting))
            if worker is None:
                return
            job = attempts.waiting.popleft()
            attempts.begin(self._actors.run(worker, job.argument), job, worker)

    def _collect(self) -> None:
        """Wait a while for the first answer, then take all that have arrived."""
        import ray

        waiting, left = [*self._attempts.running, *self._actors.awaited], self._attempts.seconds_left()
        seconds = WAIT_SECONDS if left is None else min(WAIT_SECONDS, left)
        if not waiting:
            pause(seconds)
            return
        first, _ = ray.wait(waiting, num_returns=1, timeout=seconds)
        if not first or not self._health.own_node_lives():
            return
        done, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        for reference in done:
            if reference in self._attempts.running:
                self._finish(reference)
            else:
                self._actors.hear(reference)

    def _finish(self, reference: Any) -> None:
        """Take in that a job is done, or its worker has died."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        attempt = self._attempts.running.pop(reference)
        try:
            result, error, seconds, name, files = ray.get(reference)
        except RayTaskError as failure:
            self._actors.rest(attempt.worker)
            if isinstance(failure.cause, UserError):
                raise failure.cause from None
            raise
        except RayError as death:
            self._actors.end(attempt.worker)
            self._attempts.lose(attempt, one_error(death))
            return
        for path, content in files.items():
            atomic_write_bytes(path, content)
        self._actors.rest(attempt.worker)
        self._attempts.outcomes.append(Outcome(attempt.job.key, result, error, attempt.job.attempts, seconds, name))

    def _look_after_ray(self) -> None:
        """Restart a local Ray whose node has died; wait, within limits, for a cluster that has lost its workers."""
        if not self._health.is_due():
            return
        nodes = self._health.look()
        if nodes is not None:
            ready = self._ready_workers
            self._health.wait_for_workers(ready, 0 if ready else self._actors.placed, nodes)
        elif self._address is None:
            self._restart()
        else:  # disconnect before Ray needs the node; code that still runs afterwards finds no Ray
            self._attempts.clear()
            self._actors.forget()
            disconnect()
            self._actors.delete_here()
            raise UserError(f"this machine's node of the Ray cluster at '{self._address}' has died; start it, and {CONTINUE}")

    def _restart(self) -> None:
        """Start a new local Ray with new workers. For jobs that ran on the old one, this counts as the death of a worker."""
        self._restarts += 1
        if self._restarts > self._max_attempts:
            raise UserError(f"Ray has died on this machine {times(self._restarts)} in a row; {CONTINUE}")
        logger.warning("Ray has died on this machine; starting it again")
        self._attempts.lose_all("Ray itself died on this machine")
        self._actors.forget()
        disconnect()
        connect(self._actors.count, None, self._each)
        self._begin()
