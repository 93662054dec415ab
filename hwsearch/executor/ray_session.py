"""Ray up: started on this machine and for this machine only, or a running cluster joined."""

import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hw_models
import hwsearch
from hwsearch.errors import UserError
from hwsearch.executor.base import one_error
from hwsearch.executor.preflight import check_reachable, knock
from hwsearch.experiment import WorkersConfig

OBJECT_STORE_BYTES = 128 * 2**20
"""Ray's shared memory on this machine: jobs are small; what is large goes through files or the factory."""


logger = logging.getLogger(__name__)

_sessions: list[int] = []
"""Of those that are open, the cores that a Ray on this machine is to have."""


@contextmanager
def ray_session(workers: int, each: WorkersConfig | None = None) -> Iterator[None]:
    """Keep Ray up, once an executor has started it, for those that follow: starting it takes longer than many of their jobs.

    Where no executor has a job, Ray is not started at all.

    Args:
        workers: the most that any of the executors has: a Ray on this machine gets cores for them.
        each: what each gets; absent: one core.
    """
    there_before = bool(_sessions) or is_up()
    _sessions.append(_cores(workers, each or WorkersConfig()))
    try:
        yield
    finally:
        _sessions.pop()
        if not there_before and is_up():
            import ray

            ray.shutdown()


def is_up() -> bool:
    """Whether this process is connected to Ray; imports nothing."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def connect(workers: int, address: str | None, each: WorkersConfig) -> bool:
    """Connect to Ray unless this process already is; whether the caller is to shut it down: this call did, outside any session.

    A local Ray is always a new one (`local` never attaches to what a killed driver left; those processes
    notice that their parent is gone and end by themselves), without the dashboard, and reachable from this
    machine only: on Linux Ray binds to the loopback address when it is told that it can form no cluster.

    A cluster gets this process's own `hwsearch` and `hw_models` through Ray's runtime environment, so that every node runs the
    code that the driver does; what these import must be installed there.

    Raises:
        UserError: no cluster answers at `address`, or one of another version of Python or Ray; or Ray does not start here.
    """
    if address is None:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    else:
        check_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray would print what it says of dead workers to this command's standard output; its own logs have it, too.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    import ray

    if ray.is_initialized():
        return False
    logger.info("starting Ray" if address is None else f"joining Ray at {address}")
    if address is None:
        try:
            with _own_sigterm():
                ray.init(
                    address="local",
                    num_cpus=max(_cores(workers, each), *_sessions, 1),
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        except OSError:  # which names its file, such as on a full disk
            raise
        except Exception as error:  # noqa: BLE001 - Ray has no type for it: a start that takes too long, too little shared memory
            raise UserError(f"Ray cannot be started on this machine ({one_error(error)}); --workers 0 does without") from None
        return not _sessions
    from ray.exceptions import RayError

    code = [str(Path(package.__file__ or "").parent) for package in (hwsearch, hw_models)]
    try:
        with _own_sigterm():
            ray.init(
                address=address,
                runtime_env={"py_modules": code, "excludes": ["__pycache__"]},
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (RuntimeError, ConnectionError, OSError, RayError) as error:
        raise UserError(
            f"cannot join the Ray cluster at '{address}' ({one_error(error)}); wanted a machine that is one of its nodes "
            "('ray start --address' makes it one), with the same versions of Python and Ray, and its token if it has one "
            "(RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH)"
        ) from None
    return not _sessions


def head_answers() -> bool:
    """Whether the head of the Ray that this process is connected to still listens."""
    import ray

    try:
        knock(ray.get_runtime_context().gcs_address)
    except OSError:
        return False
    return True


def alive_nodes() -> list[dict[str, Any]]:
    """What Ray says of its nodes that are alive; asked of the head, which must answer."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


class NodeWatch:
    """Tells at once when this machine's node of Ray has died: the kernel closes a socket of it that is held open here.

    Ray itself notices after some ten seconds, and ends the process without a word where it then needs what lay on that node.
    """

    def __init__(self, node: str) -> None:
        """Watch a node of this machine by its id; one that has gone already counts as dead."""
        self._socket = socket.socket(socket.AF_UNIX)
        names = [str(each["RayletSocketName"]) for each in alive_nodes() if each["NodeID"] == node]
        try:
            self._socket.connect(names[0].removeprefix("unix://") if names else "")
        except OSError:
            self.close()

    def lives(self) -> bool:
        """Whether the node's process is there."""
        try:
            return self._socket.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        """Stop watching."""
        self._socket.close()


def check_fits(each: WorkersConfig) -> None:
    """Refuse what no node has: Ray would wait for one that does.

    Raises:
        UserError: no node is large enough for one worker; names the resource.
    """
    wanted = {"CPU": ("cpus", each.cpus), "GPU": ("gpus", each.gpus), "memory": ("memory_bytes", each.memory_bytes or 0)}
    nodes = [node["Resources"] for node in alive_nodes()]
    for resource, (key, amount) in wanted.items():
        largest = max((node.get(resource, 0.0) for node in nodes), default=0.0)
        if nodes and amount > largest:
            raise UserError(f"workers.{key} is {amount:g}; the largest node of Ray has {largest:g}: wanted at most that")


def worker_environment(threads: int, *, local: bool) -> dict[str, str]:
    """Variables of a worker process; numerical libraries read their number of threads when they are loaded."""
    environment = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    if not local:
        return environment
    # Workers on this machine import what this process can import, from wherever it was started.
    return {**environment, "PYTHONPATH": os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path)}


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Give SIGTERM back to whoever handles it in this process: `ray.init` takes it, to print a stack and end."""
    before = signal.getsignal(signal.SIGTERM)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        yield
    except SystemExit as ended:  # the handler that is Ray's own in the meantime
        signal.signal(signal.SIGTERM, before)
        if ended.code == signal.SIGTERM:
            signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _cores(workers: int, each: WorkersConfig) -> int:
    """What a Ray on this machine says it has; sensitivities take a core for each worker, whatever the experiment says."""
    return max(workers, math.ceil(workers * each.cpus))
