"""Workers on Ray: warm actors, which are started, checked for life, replaced when they die, and ended."""

import logging
import math
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hwsearch.errors import UserError
from hwsearch.executor.health import Health, alive_nodes
from hwsearch.executor.interface import Factory
from hwsearch.executor.portable import Portable, PortableJob, contents
from hwsearch.executor.reasons import CONTINUE, one_error, times
from hwsearch.executor.remote import RemoteWorker, delete_folder
from hwsearch.executor.session import worker_environment
from hwsearch.experiment import WorkersConfig

RESTED_SECONDS = 1.0
"""A worker that was silent for longer is asked whether it lives before it gets a job, because a dead one costs an attempt."""

ANSWER_SECONDS = 30.0
"""How long a worker may take to answer."""

CLEANUP_SECONDS = 10.0
"""How long nodes may take to delete the files they were sent."""

WITH_ITS_NODE = "its node has died"
"""Words of Ray's error when an actor died with its node. Ray has no type for this."""

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Worker:
    """An actor that can do jobs."""

    actor: Any
    place: str
    """Its host and node."""
    heard: float
    """Time of its last answer, by `time.monotonic`."""

    def __str__(self) -> str:
        return self.place


@dataclass(frozen=True)
class Start:
    """An actor that is building its work."""

    actor: Any
    where: Any
    """Reference to its node and host, which it reports before it builds."""
    began: float
    """Its start, by `time.monotonic`."""


class Actors:
    """The workers of an executor. Each is starting, idle, being asked whether it lives, or taken."""

    def __init__(
        self, factory: Factory[Any, Any], count: int, each: WorkersConfig, health: Health, *, local: bool, max_deaths: int
    ) -> None:
        """Start without workers.

        If Ray is `local`, it runs on this machine only, and no files travel. At most `max_deaths` workers in a row may die at
        their start.
        """
        self.count = count
        self._plain_factory = factory
        self._each = each
        self._health = health
        self._max_deaths = max_deaths
        self._root = None if local else Path(f"hwsearch-{uuid.uuid4().hex}")  # a name that nobody can guess
        """Folder of the files that are sent, below each node's folder for temporary files."""
        self._nodes: set[str] = set()
        """Nodes that may hold files."""
        self._factory: Any = None
        """Reference to the factory with its files in Ray; None while no worker is starting."""
        self._starting: dict[Any, Start] = {}
        self._idle: list[Worker] = []
        self._asked: dict[Any, tuple[Worker, float]] = {}
        """Workers that were asked whether they live, with the time by `time.monotonic`, by the reference to their answer."""
        self._deaths: list[str] = []
        """Deaths in a row of starting workers. If one cause ends many at once, it counts once."""
        self._death_seen = -math.inf
        """Time of the last such death, by `time.monotonic`."""

    @property
    def unused(self) -> int:
        """Number of workers that are ready and have no job."""
        return len(self._idle) + len(self._asked)

    @property
    def placed(self) -> int:
        """Number of workers that are starting on a node, and not waiting for room."""
        return sum(_node_of(start.where) is not None for start in self._starting.values())

    @property
    def awaited(self) -> list[Any]:
        """The references to wait for. `hear` takes each one that is ready."""
        return [*self._starting, *self._asked]

    def start_missing(self, taken: int) -> None:
        """Start the missing workers, given the number of those taken.

        Raises:
            UserError: Ray has no room for the files, or workers keep dying at their start.
        """
        if len(self._deaths) >= self._max_deaths:
            raise UserError(
                f"workers die at their start, {times(len(self._deaths))} in a row, the last on {self._deaths[-1]}; "
                f"{CONTINUE} when that is mended"
            )
        for _ in range(self.count - taken - self.unused - len(self._starting)):
            if not self._health.own_node_lives():
                return
            if self._factory is None:
                self._factory = self._hand_over()
            # Ray does not resolve a reference in a list. The actor resolves it, and can report a failure.
            actor = self._actor_class.remote([self._factory], self._root)
            where = actor.where.remote()
            self._starting[actor.build.remote()] = Start(actor, where, time.monotonic())

    def take(self, jobs: int) -> Worker | None:
        """Take a live worker, if there is one. The caller must call `rest` or `end` afterwards.

        Silent workers are first asked whether they live, at most one for each job.
        """
        while self._idle and len(self._asked) < jobs:
            worker = self._idle.pop()
            if time.monotonic() - worker.heard <= RESTED_SECONDS:
                return worker
            self._asked[worker.actor.where.remote()] = worker, time.monotonic()
        return None

    def run(self, worker: Worker, argument: Any) -> Any:
        """Give a job to a taken worker; return the reference to its outcome."""
        files = contents(argument.files()) if self._root is not None and isinstance(argument, PortableJob) else {}
        return worker.actor.run.remote(argument, files)

    def rest(self, worker: Worker) -> None:
        """Take back a worker that has just answered."""
        worker.heard = time.monotonic()
        self._idle.append(worker)

    def end(self, worker: Worker) -> None:
        """End a dead or hung worker, which will be replaced. Other workers of its node may have died, too."""
        import ray

        ray.kill(worker.actor)
        self._health.doubt()
        for idle in self._idle:
            idle.heard = -math.inf

    def hear(self, reference: Any) -> None:
        """Take in that a worker has answered or died, as it started or when it was asked.

        Raises:
            UserError: the worker cannot build the work. The message names the node.
        """
        import ray
        from ray.exceptions import RayError

        if reference in self._starting:
            self._hear_of_start(reference)
            return
        worker, _ = self._asked.pop(reference)
        try:
            ray.get(reference)
        except RayError as death:
            logger.debug("a worker without a job died on node %s: %s; another one is started", worker, one_error(death))
            self.end(worker)
            return
        self.rest(worker)

    def end_silent(self) -> None:
        """End the workers that were asked too long ago."""
        for reference, (worker, asked) in list(self._asked.items()):
            if time.monotonic() - asked >= ANSWER_SECONDS:
                del self._asked[reference]
                logger.debug("a worker without a job on node %s does not answer; another one is started", worker)
                self.end(worker)

    def end_all(self, taken: Iterable[Worker]) -> None:
        """End every worker, including those taken, and delete the files on the nodes. Ray must be running."""
        import ray

        ready = [*taken, *self._idle, *(worker for worker, _ in self._asked.values())]
        for actor in [*(worker.actor for worker in ready), *(start.actor for start in self._starting.values())]:
            ray.kill(actor)
        if self._root is not None:
            begun = filter(None, (_node_of(start.where) for start in self._starting.values()))
            _delete_files(self._root, self._nodes.union(node for node, _ in begun))

    def delete_here(self) -> None:
        """Delete the files on this machine's node; other nodes are out of reach."""
        if self._root is not None:
            delete_folder(self._root)

    def forget(self) -> None:
        """Forget every worker."""
        self._factory = None
        self._starting.clear()
        self._idle.clear()
        self._asked.clear()
        self._deaths.clear()

    @cached_property
    def _actor_class(self) -> Any:
        import ray

        return ray.remote(RemoteWorker).options(
            num_cpus=self._each.cpus,
            num_gpus=self._each.gpus,
            memory=self._each.memory_bytes,
            max_restarts=0,
            runtime_env={"env_vars": worker_environment(self._each.threads, local=self._root is None)},
        )

    def _hand_over(self) -> Any:
        """Store the factory and its files in Ray, but only while workers start.

        When this machine's node dies, Ray ends a process that owns an object there.
        """
        import ray
        from ray.exceptions import ObjectStoreFullError, OutOfDiskError

        factory, files = self._plain_factory, dict[Path, Any]()
        try:
            if self._root is not None and isinstance(factory, Portable):
                files = {path: ray.put(path.read_bytes()) for path in factory.files()}
            return ray.put((factory, files))
        except (ObjectStoreFullError, OutOfDiskError) as error:
            raise UserError(f"Ray has no room for what workers read ({one_error(error)}); make room, and {CONTINUE}") from None

    def _hear_of_start(self, reference: Any) -> None:
        import ray
        from ray.exceptions import RayError

        start = self._starting.pop(reference)
        try:
            node, host, failure = ray.get(reference)
        except RayError as death:
            place = _place(start.where)
            if start.began > self._death_seen and WITH_ITS_NODE not in str(death):
                self._deaths.append(f"{place}: {one_error(death)}")
                self._death_seen = time.monotonic()
            logger.debug("a worker died as it started on %s: %s; another one is started", place, one_error(death))
            self._health.doubt()
            ray.kill(start.actor)
            return
        self._nodes.add(node)
        if not self._starting:
            self._factory = None
        if failure is not None:
            if self._root is None:
                raise UserError(failure)
            raise UserError(f"node {host} of the Ray cluster: {failure}; {CONTINUE} when that is mended")
        self._deaths.clear()
        self._idle.append(Worker(start.actor, f"{host} ({node[:8]})", time.monotonic()))


def _node_of(where: Any) -> tuple[str, str] | None:
    """Return node and host of an actor, if it has reported them."""
    import ray
    from ray.exceptions import RayError

    try:
        node, host = ray.get(where, timeout=0)
    except RayError:
        return None
    return node, host


def _place(where: Any) -> str:
    found = _node_of(where)
    return "a node that is not known" if found is None else f"node {found[1]} ({found[0][:8]})"


def _delete_files(root: Path, nodes: set[str]) -> None:
    """Delete a folder below the folder for temporary files of each of the nodes that still live."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    delete = ray.remote(num_cpus=0, max_retries=0)(delete_folder)
    waiting = [
        delete.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(root)
        for node in nodes & {node["NodeID"] for node in alive_nodes()}
    ]
    if waiting:
        ray.wait(waiting, num_returns=len(waiting), timeout=CLEANUP_SECONDS)
