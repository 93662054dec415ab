"""Jobs on Ray: warm actors, one job at a time each, replaced when they die or do not answer."""

import logging
import math
import time
import uuid
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, NoReturn, Self

from hwsearch.errors import UserError
from hwsearch.executor.base import (
    Argument,
    Factory,
    Outcome,
    Result,
    no_answer,
    one_error,
    times,
)
from hwsearch.executor.portable import Portable, PortableJob, contents
from hwsearch.executor.ray_nodes import NodeNews, NodeWatch, alive_nodes, delete_files, head_answers
from hwsearch.executor.ray_session import check_fits, connect, disconnect, is_up, worker_environment
from hwsearch.executor.ray_worker import RayWorker, delete_folder
from hwsearch.experiment import WorkersConfig
from hwsearch.files import atomic_write_bytes
from hwsearch.interrupts import checkpoint, pause

CHECK_SECONDS = 5.0
"""How often the driver looks whether Ray itself is alive."""

HEAD_SECONDS = 30.0
"""How long a cluster's head may be silent: Ray ends the driver's process, without a word, after 60 s."""

PATIENCE_SECONDS = 600.0
"""How long the driver waits where no worker is ready: a cluster may be starting machines, a worker may hang as it loads."""

REMIND_SECONDS = 30.0
"""How often it says so; the start of a worker alone is no reason to. How many are ready it says no more often, either."""

WAIT_SECONDS = 1.0
"""How long it waits for workers before it looks whether this machine's node lives."""

RESTED_SECONDS = 1.0
"""A worker that was last heard of longer ago is asked whether it lives before it is given a job: one that died without work would
cost the job an attempt."""

ANSWER_SECONDS = 30.0
"""How long it may take to answer."""

WITH_ITS_NODE = "its node has died"
"""How Ray says what an actor has died of; it has no type for that."""

CONTINUE = "run the same command again to continue"

logger = logging.getLogger(__name__)


class RayExecutor(Generic[Argument, Result]):
    """Runs jobs on Ray: warm actors with the cores that the experiment gives each, one job at a time per actor.

    A job whose actor dies (a crash, memory, a lost node) or does not answer within the time limit is tried again on a new one,
    `max_attempts` times in all. Without an address a fresh Ray is started on this machine, for this process only, and started
    again if it dies; with one, the jobs go to that cluster. Its nodes need no file of this machine: those that a `Portable`
    factory or job names travel through Ray's object store, once to each node, and what a job writes comes back.
    """

    def __init__(
        self,
        factory: Factory[Argument, Result],
        workers: int,
        *,
        max_attempts: int = 3,
        ray_address: str | None = None,
        each: WorkersConfig | None = None,
        patience_s: float = PATIENCE_SECONDS,
    ) -> None:
        """An executor that connects to Ray and starts its workers with the first job.

        Args:
            factory: builds the work function, once per worker.
            workers: how many.
            max_attempts: times that a job is tried, that workers in a row may die at their start, and a local Ray on its own.
            ray_address: a cluster to join.
            each: what each worker gets.
            patience_s: how long to wait for workers where none is ready.
        """
        self._plain_factory = factory
        self._workers = workers
        self._max_attempts = max_attempts
        self._address = ray_address
        self._each = each or WorkersConfig()
        self._patience_s = patience_s
        self._queue: deque[_Job[Argument]] = deque()
        self._outcomes: deque[Outcome[Result]] = deque()
        self._starting: dict[Any, _Start] = {}
        self._idle: list[_Worker] = []
        self._asked: dict[Any, tuple[_Worker, float]] = {}
        """Idle ones that were asked whether they live, by their answers to come; and when, by `time.monotonic`."""
        self._running: dict[Any, tuple[_Worker, _Job[Argument], float]] = {}
        """By what `ray.wait` waits for; the last is when it began, by `time.monotonic`."""
        self._deaths_at_start: list[str] = []
        """In a row, each of a worker that was started after the one before had died: what takes many at once counts once."""
        self._start_death_seen = -math.inf
        """When the last of them was noticed, by `time.monotonic`."""
        self._root: Path | None = None
        """Where the files lie that travelled, below each node's folder for temporary files; None where none travel."""
        self._restarts = 0
        """How often a local Ray was started again since the last outcome."""
        self._nodes: set[str] = set()
        """That may hold files."""
        self._factory: Any = None
        """With its files, as Ray holds them; None while no worker starts."""
        self._watch: NodeWatch | None = None
        self._news: NodeNews | None = None
        self._told_ready: int | None = None
        """How many workers were ready when that was last told."""
        self._has_begun = False
        self._owns_ray = False

    @property
    def capacity(self) -> int:
        """One job per worker, and one waiting per eight workers to bridge the driver's time.

        A single worker has none waiting, so that each proposal knows of every result before it, as it does without Ray.
        """
        return 1 if self._workers == 1 else self._workers + (self._workers + 7) // 8

    @property
    def ready(self) -> int:
        """Outcomes that have come and were not taken."""
        return len(self._outcomes)

    def submit(self, key: int, argument: Argument) -> None:
        """Queue a job; the first one starts Ray and the workers.

        Raises:
            UserError: no cluster answers, Ray does not start here, or no node has what one worker wants.
        """
        if not self._has_begun:
            self._owns_ray = connect(self._workers, self._address, self._each)
            self._has_begun = True
            if self._address is None:  # a cluster may be about to start larger machines
                check_fits(self._each)
            self._start_all()
        self._queue.append(_Job(key, argument))
        self._dispatch()

    def next_outcome(self) -> Outcome[Result]:
        """Wait for any job; see `Executor`.

        Raises:
            UserError: also where Ray or all its nodes are gone for good.
        """
        if not (self._outcomes or self._running or self._queue):
            raise LookupError("no job is in flight")
        while True:
            checkpoint()
            # Before an outcome is given, too: workers go on while the driver thinks.
            self._look_after_ray()
            self._start_missing()
            self._dispatch()
            if self._outcomes:
                break
            self._collect()
            self._end_overdue()
            self._check_starts()
            self._tell_ready()
        self._restarts = 0
        return self._outcomes.popleft()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self._has_begun and is_up():
                self._tidy_up()
        finally:
            if self._owns_ray and is_up():
                disconnect()
            if self._watch is not None:
                self._watch.close()
            self._forget_actors()
            self._queue.clear()
            self._outcomes.clear()

    def _tidy_up(self) -> None:
        """End the workers and delete what was sent to nodes, as far as these can be reached."""
        if not (self._own_node_lives() and head_answers()):
            if self._root is not None:
                delete_folder(self._root)
            return
        self._end_actors()
        if self._root is not None:
            begun = (_node_of(start.where) for start in self._starting.values())
            delete_files(self._root, self._nodes.union(node for node, _ in filter(None, begun)))

    def _start_all(self) -> None:
        """Start every worker.

        Raises:
            UserError: no room for what they read.
        """
        import ray

        local = self._address is None
        self._factory = None
        self._root = None if local else Path(f"hwsearch-{uuid.uuid4().hex}")  # a name that nobody can guess
        self._actor_class = ray.remote(RayWorker).options(
            num_cpus=self._each.cpus,
            num_gpus=self._each.gpus,
            memory=self._each.memory_bytes,
            max_restarts=0,
            runtime_env={"env_vars": worker_environment(self._each.threads, local=local)},
        )
        self._own_node = str(ray.get_runtime_context().get_node_id())
        if self._watch is not None:
            self._watch.close()
        self._watch = NodeWatch(self._own_node)
        self._news = None if local else NodeNews()
        now = time.monotonic()
        self._checked, self._head_seen, self._worker_seen, self._reminded, self._told = now, now, now, now, now
        self._start_missing()

    def _start_missing(self) -> None:
        """Start as many workers as there are too few.

        Raises:
            UserError: no room for what they read.
        """
        there = len(self._starting) + len(self._idle) + len(self._asked) + len(self._running)
        for _ in range(self._workers - there):
            if not self._own_node_lives():  # `_look_after_ray` sees to it
                return
            if self._factory is None:
                self._factory = self._hand_over()
            # In a list the reference travels as it is, and the actor itself resolves it, where it can say what went wrong.
            actor = self._actor_class.remote([self._factory], self._root)
            where = actor.where.remote()
            self._starting[actor.build.remote()] = _Start(actor, where, time.monotonic())

    def _hand_over(self) -> Any:
        """Give Ray the factory and its files, for as long as workers start.

        Where this process owns something that lay on a node which has died, Ray tries to write down that it is lost, and ends
        the process where that was the node of this machine.

        Raises:
            UserError: no room for it.
        """
        import ray
        from ray.exceptions import ObjectStoreFullError, OutOfDiskError

        factory, files = self._plain_factory, dict[Path, Any]()
        try:
            if self._address is not None and isinstance(factory, Portable):
                files = {path: ray.put(path.read_bytes()) for path in factory.files()}
            return ray.put((factory, files))
        except (ObjectStoreFullError, OutOfDiskError) as error:
            raise UserError(f"Ray has no room for what workers read ({one_error(error)}); make room, and {CONTINUE}") from None

    def _own_node_lives(self) -> bool:
        """Whether Ray may be asked for what it keeps on this machine: without its node it would end the process."""
        return self._watch is None or self._watch.lives()

    @property
    def _in_doubt(self) -> bool:
        """Whether something has died since Ray was looked at."""
        return self._checked == -math.inf

    def _dispatch(self) -> None:
        """Give jobs to idle workers, but not where something has died since Ray was looked at: it may have died of this machine's
        node, which Ray says before the node has ended, and what were stored there then would end this process.
        """
        while not self._in_doubt and self._own_node_lives() and self._idle and len(self._queue) > len(self._asked):
            worker = self._idle.pop()
            if time.monotonic() - worker.heard > RESTED_SECONDS:
                self._asked[worker.actor.where.remote()] = worker, time.monotonic()
                continue
            job = self._queue.popleft()
            files = contents(job.argument.files()) if self._root is not None and isinstance(job.argument, PortableJob) else {}
            self._running[worker.actor.run.remote(job.argument, files)] = (worker, job, time.monotonic())

    def _collect(self) -> None:
        """Wait a while for whatever comes first, then take all that has come."""
        import ray

        waiting = [*self._running, *self._starting, *self._asked]
        first, _ = ray.wait(waiting, num_returns=1, timeout=self._seconds_to_wait()) if waiting else ([], [])
        if not first:
            if not waiting:
                pause(self._seconds_to_wait())
            return
        if not self._own_node_lives():
            return
        done, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        for reference in done:
            if reference in self._starting:
                self._started(reference)
            elif reference in self._asked:
                self._answered(reference)
            else:
                self._finished(reference)

    def _seconds_to_wait(self) -> float:
        limit = self._each.time_limit_s
        if limit is None or not self._running:
            return WAIT_SECONDS
        oldest = min(since for _, _, since in self._running.values())
        return min(WAIT_SECONDS, max(0.0, oldest + limit - time.monotonic()))

    def _started(self, reference: Any) -> None:
        """A worker is ready, or has died on the way.

        Raises:
            UserError: it cannot build the work; names the node.
        """
        import ray
        from ray.exceptions import RayError

        start = self._starting.pop(reference)
        try:
            node, host, failure = ray.get(reference)
        except RayError as death:
            if start.began > self._start_death_seen and WITH_ITS_NODE not in str(death):
                self._deaths_at_start.append(f"{_place(start.where)}: {one_error(death)}")
                self._start_death_seen = time.monotonic()
            logger.debug("a worker died as it started on %s: %s; another one is started", _place(start.where), one_error(death))
            self._checked = -math.inf
            ray.kill(start.actor)
            return
        self._nodes.add(node)
        if not self._starting:
            self._factory = None
        if failure is not None:
            if self._address is None:
                raise UserError(failure)
            raise UserError(f"node {host} of the Ray cluster: {failure}; {CONTINUE} when that is mended")
        self._deaths_at_start.clear()
        self._idle.append(_Worker(start.actor, time.monotonic(), f"{host} ({node[:8]})"))

    def _answered(self, reference: Any) -> None:
        """An idle worker lives, or has died meanwhile."""
        import ray
        from ray.exceptions import RayError

        worker, _ = self._asked.pop(reference)
        try:
            ray.get(reference)
        except RayError as death:
            logger.debug("a worker without a job died on node %s: %s; another one is started", worker.place, one_error(death))
            self._end_worker(worker)
            return
        self._heard_of(worker)

    def _heard_of(self, worker: "_Worker") -> None:
        self._idle.append(replace(worker, heard=time.monotonic()))

    def _check_starts(self) -> None:
        """Give up where no worker comes up.

        Raises:
            UserError: workers keep dying at their start; names the last one's node.
        """
        deaths = len(self._deaths_at_start)
        if deaths >= self._max_attempts:
            raise UserError(
                f"workers die at their start, {times(deaths)} in a row, the last on {self._deaths_at_start[-1]}; "
                f"{CONTINUE} when that is mended"
            )

    def _finished(self, reference: Any) -> None:
        """A job is done, or its worker has died.

        Raises:
            UserError: the job raised one, which concerns every job.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        worker, job, _ = self._running.pop(reference)
        try:
            result, error, seconds, name, files = ray.get(reference)
        except RayTaskError as failure:
            self._heard_of(worker)
            if isinstance(failure.cause, UserError):
                raise failure.cause from None
            raise
        except RayError as death:
            self._replace(worker, job, one_error(death), hung=False)
            return
        for path, content in files.items():
            atomic_write_bytes(path, content)
        self._heard_of(worker)
        self._outcomes.append(Outcome(job.key, result, error, job.attempts, seconds, name))

    def _end_overdue(self) -> None:
        now, limit = time.monotonic(), self._each.time_limit_s
        for reference, (worker, asked) in list(self._asked.items()):
            if now - asked >= ANSWER_SECONDS:
                del self._asked[reference]
                logger.debug("a worker without a job on node %s does not answer; another one is started", worker.place)
                self._end_worker(worker)
        if limit is None:
            return
        for reference, (worker, job, since) in list(self._running.items()):
            if now - since >= limit:
                del self._running[reference]
                self._replace(worker, job, f"no answer within {limit:g} s", hung=True)

    def _replace(self, worker: "_Worker", job: "_Job[Argument]", what: str, *, hung: bool) -> None:
        """Replace a dead or hung actor and requeue its job, or give the job's outcome if its attempts are spent."""
        self._end_worker(worker)
        more = job.attempts < self._max_attempts
        fate = f"is tried again, attempt {job.attempts + 1} of {self._max_attempts}" if more else "has failed"
        how = what if hung else f"died ({what})"
        logger.debug("a worker on node %s: %s; another one is started, and its job %d %s", worker.place, how, job.key, fate)
        hangs = job.hangs + hung
        if more:
            self._queue.appendleft(replace(job, attempts=job.attempts + 1, hangs=hangs))
            return
        if hangs == job.attempts and self._each.time_limit_s is not None:
            reason = no_answer(self._each.time_limit_s, job.attempts)
        elif hangs:
            reason = f"its worker died or gave no answer {times(job.attempts)}; the last time: {what}"
        else:
            reason = f"its worker died {times(job.attempts)}; the last time: {what}"
        seconds = self._each.time_limit_s if hung and self._each.time_limit_s is not None else 0.0
        self._outcomes.append(Outcome(job.key, None, reason, job.attempts, seconds, worker=""))

    def _end_worker(self, worker: "_Worker") -> None:
        """Let go of a dead or hung actor, whose place another one takes; more may have died with it, such as all of a node."""
        import ray

        ray.kill(worker.actor)
        self._checked = -math.inf
        self._idle = [replace(idle, heard=-math.inf) for idle in self._idle]

    def _look_after_ray(self) -> None:
        """Start a local Ray again whose node has died; wait for a cluster that has lost its workers, though not for ever.

        Raises:
            UserError: the head or this machine's node of a cluster is gone, no worker has come for too long, or a local Ray
                dies again and again.
        """
        now, own_node_lives = time.monotonic(), self._own_node_lives()
        if own_node_lives and now - self._checked < CHECK_SECONDS:
            return
        self._checked = now
        if self._address is None:
            nodes = self._look_after_own_ray(own_node_lives=own_node_lives)
        else:
            nodes = self._look_after_cluster(now, own_node_lives=own_node_lives)
        self._wait_for_workers(now, nodes)

    def _look_after_own_ray(self, *, own_node_lives: bool) -> int:
        if not head_answers():  # what this process keeps of a dead head ends it within a minute, even if a new one is started
            raise UserError(f"the head of Ray on this machine has died; {CONTINUE}")
        nodes = [node["NodeID"] for node in alive_nodes()]
        if not own_node_lives or self._own_node not in nodes:
            self._restart()
        return len(nodes)

    def _look_after_cluster(self, now: float, *, own_node_lives: bool) -> int:
        if not own_node_lives:
            self._leave()
        if head_answers():
            self._head_seen = now
            nodes = alive_nodes()
            if self._news is not None:
                self._news.tell(nodes)
            if self._own_node not in [node["NodeID"] for node in nodes]:
                self._leave()
            return len(nodes)
        if now - self._head_seen >= HEAD_SECONDS:
            raise UserError(
                f"no answer from the Ray cluster at '{self._address}' for {now - self._head_seen:.0f} s; {CONTINUE} when there is"
            )
        return 0

    def _leave(self) -> NoReturn:
        """Let go of a cluster whose node here has died, before Ray needs it; whoever outlives this call finds no Ray.

        Raises:
            UserError: always; says so.
        """
        self._forget_actors()
        disconnect()
        if self._root is not None:  # other nodes are out of reach from here
            delete_folder(self._root)
        raise UserError(f"this machine's node of the Ray cluster at '{self._address}' has died; start it, and {CONTINUE}")

    def _tell_ready(self) -> None:
        """Say how many workers there are where that has changed, though not too often; all of them at once at the start."""
        now, ready = time.monotonic(), len(self._running) + len(self._idle) + len(self._asked)
        if ready == self._told_ready:
            return
        first = self._told_ready is None and ready == self._workers
        if first or now - self._told >= REMIND_SECONDS:
            level = logging.DEBUG if first else logging.INFO
            logger.log(level, "%d of %d workers are ready", ready, self._workers)
            self._told, self._told_ready = now, ready

    def _wait_for_workers(self, now: float, nodes: int) -> None:
        """Say so where there is no worker for us, and in the end give up: none was placed, or those placed hang as they start.

        Raises:
            UserError: none has come for too long.
        """
        if self._running or self._idle or self._asked:
            self._worker_seen = self._reminded = now
            return
        waited = now - self._worker_seen
        where = "this machine" if self._address is None else f"the Ray cluster at '{self._address}'"
        placed = sum(_node_of(start.where) is not None for start in self._starting.values())
        why = f"{placed} start and do not get ready" if placed else f"no room on its {nodes} nodes"
        state = f"no worker on {where} for {waited:.0f} s: {why}"
        if waited >= self._patience_s:
            raise UserError(f"{state}; {CONTINUE} when there is")
        if now - self._reminded >= REMIND_SECONDS:
            self._reminded = now
            logger.warning("%s; waiting %.0f s more", state, self._patience_s - waited)

    def _restart(self) -> None:
        """A new local Ray with new workers; the jobs that ran on the old one count it as a death of their worker.

        Raises:
            UserError: Ray has died before, and no job was done in between.
        """
        self._restarts += 1
        if self._restarts > self._max_attempts:
            raise UserError(f"Ray has died on this machine {times(self._restarts)} in a row; {CONTINUE}")
        logger.warning("Ray has died on this machine; starting it again")
        lost = [job for _, job, _ in self._running.values()]
        self._forget_actors()
        self._deaths_at_start.clear()
        disconnect()
        connect(self._workers, None, self._each)
        for job in reversed(lost):
            if job.attempts < self._max_attempts:
                self._queue.appendleft(replace(job, attempts=job.attempts + 1))
            else:
                reason = f"its worker died {times(job.attempts)}; the last time: Ray itself died on this machine"
                self._outcomes.append(Outcome(job.key, None, reason, job.attempts, seconds=0.0, worker=""))
        self._start_all()

    def _end_actors(self) -> None:
        import ray

        for actor in (
            *(worker.actor for worker in self._idle),
            *(worker.actor for worker, _ in self._asked.values()),
            *(worker.actor for worker, _, _ in self._running.values()),
            *(start.actor for start in self._starting.values()),
        ):
            ray.kill(actor)

    def _forget_actors(self) -> None:
        self._factory = None
        self._idle.clear()
        self._asked.clear()
        self._running.clear()
        self._starting.clear()


@dataclass(frozen=True)
class _Job(Generic[Argument]):
    key: int
    argument: Argument
    attempts: int = 1
    hangs: int = 0
    """Attempts before this one that were not answered in time."""


@dataclass(frozen=True)
class _Worker:
    """A ready actor, and when it was last heard of, by `time.monotonic`."""

    actor: Any
    heard: float
    place: str
    """Host and node."""


@dataclass(frozen=True)
class _Start:
    """An actor that is building its work since a time by `time.monotonic`; `where` is answered before that."""

    actor: Any
    where: Any
    began: float


def _node_of(where: Any) -> tuple[str, str] | None:
    """Node and host of an actor, if it has said where it is."""
    import ray
    from ray.exceptions import RayError

    try:
        node, host = ray.get(where, timeout=0)
    except RayError:
        return None
    return node, host


def _place(where: Any) -> str:
    """The node of an actor as an error names it."""
    found = _node_of(where)
    return "a node that is not known" if found is None else f"node {found[1]} ({found[0][:8]})"
