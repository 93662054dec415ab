"""The connection to Ray: a new Ray on and for this machine only, or a running cluster."""

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import hw_models
from hwsearch.errors import UserError
from hwsearch.executor.health import alive_nodes
from hwsearch.executor.preflight import check_reachable
from hwsearch.executor.reasons import one_error, one_line
from hwsearch.experiment import WorkersConfig
from hwsearch.process.interrupts import interrupts_held

OBJECT_STORE_BYTES = 128 * 2**20
"""Ray's shared memory on this machine. Jobs are small; large data go through files or the factory."""

logger = logging.getLogger(__name__)

_sessions: list[int] = []
"""Number of cores that each open session wants Ray to have on this machine."""

_left = threading.Event()
"""Set once this process is no longer connected to Ray."""


@contextmanager
def ray_session(workers: int, each: WorkersConfig) -> Iterator[None]:
    """Keep Ray running between executors, because starting it takes longer than many of their jobs.

    The first executor that has a job starts Ray. If none has a job, Ray is not started at all.

    Args:
        workers: the largest number of workers of any executor. A Ray on this machine gets cores for them.
        each: resources of each worker.
    """
    there_before = bool(_sessions) or is_up()
    _sessions.append(_cores(workers, each))
    try:
        yield
    finally:
        _sessions.pop()
        if not there_before and is_up():
            disconnect()


def is_up() -> bool:
    """Whether this process is connected to Ray. It does not import Ray."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def connect(workers: int, address: str | None, each: WorkersConfig) -> bool:
    """Connect to Ray, unless this process is connected already.

    A local Ray is always a new one. It never attaches to processes that a killed driver left; those notice that their parent is
    gone, and end by themselves. It has no dashboard, and is reachable from this machine only: on Linux, Ray binds to the loopback
    address when it is told that it can form no cluster.

    A cluster gets this process's own `hwsearch` and `hw_models` through Ray's runtime environment, so that every node runs the
    same code as the driver. Packages that these two import must be installed there.

    Returns:
        Whether the caller must shut Ray down, because this call connected, outside any session.

    Raises:
        UserError: no cluster answers at `address`, it has another version of Python or Ray, or Ray does not start here.
    """
    if address is not None:
        check_reachable(address)
    if is_up():
        return False
    # Ray reads these when it is imported.
    if address is None:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    # Otherwise Ray prints messages about dead workers to this command's standard output; its logs have them, too.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    logger.info("starting Ray" if address is None else f"joining Ray at {address}")
    start = partial(_start_here, max(_cores(workers, each), *_sessions, 1)) if address is None else partial(_join, address)
    try:
        _undisturbed(start)
    except BaseException:
        if not _sessions and is_up():  # Ctrl-C came while Ray started; a session would disconnect by itself
            disconnect()
        raise
    return not _sessions


def start_seconds() -> float:
    """Start Ray on this machine as a search does, end it, and return the seconds until it was there.

    Raises:
        UserError: Ray does not start.
    """
    start = time.monotonic()
    must_end = connect(1, None, WorkersConfig())
    seconds = time.monotonic() - start
    if must_end:
        disconnect()
    return seconds


def disconnect() -> None:
    """Disconnect from Ray. A Ray that this process started ends."""
    import ray

    try:
        ray.shutdown()
    finally:
        _left.set()


def _start_here(cores: int) -> None:
    try:
        _do_without_api_server()
        _init(
            address="local",
            num_cpus=cores,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
        )
    except OSError as error:
        raise UserError(
            f"Ray cannot be started on this machine ({error.filename or 'its files'}: {error.strerror or one_line(error)}); "
            "wanted room and the right to write for its token in the home folder (HOME names another one) and for its files "
            "(RAY_TMPDIR names another folder for them), or --workers 0"
        ) from None
    except Exception as error:  # noqa: BLE001 - Ray has no type for it: a start that takes too long, too little shared memory
        raise UserError(f"Ray cannot be started on this machine ({one_error(error)}); --workers 0 does without") from None


def _do_without_api_server() -> None:
    """Keep Ray from starting its dashboard's server, which asks the network which cloud this machine is in."""
    from ray._private.node import Node

    def start_nothing(node: Any, *, include_dashboard: bool | None, raise_on_failure: bool) -> None:
        del node, include_dashboard, raise_on_failure

    Node.start_api_server = start_nothing


def _join(address: str) -> None:
    from ray.exceptions import RayError

    code = [str(Path(__file__).parents[1]), str(Path(hw_models.__file__ or "").parent)]
    try:
        _init(address=address, runtime_env={"py_modules": code, "excludes": ["__pycache__"]})
    except (RuntimeError, ConnectionError, OSError, RayError) as error:
        raise UserError(
            f"cannot join the Ray cluster at '{address}' ({one_error(error)}); wanted a machine that is one of its nodes "
            "('ray start --address' makes it one), with the same versions of Python and Ray, and its token if it has one "
            "(RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH)"
        ) from None


def _init(**arguments: Any) -> None:
    import ray

    ray.init(log_to_driver=False, logging_level=logging.ERROR, **arguments)


def _undisturbed(start: Callable[[], None]) -> None:
    """Call `start` in a thread, and hold `KeyboardInterrupt` until it is done.

    Inside `ray.init`, the exception would leave a Ray that crashes the process at its end; inside an import it may be lost.
    Outside the main thread, Ray does not replace Python's handler of SIGTERM. It still installs one below Python's.
    """
    failures: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            start()
        except BaseException as error:  # noqa: BLE001 - raised below, whatever it is
            failures.append(error)
        finally:
            done.set()
        if not failures:
            _left.wait()  # processes of Ray end with the thread that started them

    with interrupts_held():
        _left.clear()
        threading.Thread(target=run, name="Ray", daemon=True).start()
        done.wait()
    if failures:
        raise failures[0]


def check_fits(each: WorkersConfig) -> None:
    """Refuse workers that need more than Ray has on this machine, because it would wait without end.

    Raises:
        UserError: one worker needs too much. The message names the resource.
    """
    for node in alive_nodes():  # there is only one
        for key, resource, amount in (("gpus", "GPU", each.gpus), ("memory_bytes", "memory", each.memory_bytes or 0)):
            if amount > (there := node["Resources"].get(resource, 0.0)):
                raise UserError(f"workers.{key} is {amount:g}; Ray has {there:g} here: wanted at most that")


def worker_environment(threads: int, *, local: bool) -> dict[str, str]:
    """Return the environment variables of a worker. Numerical libraries read their number of threads when they are loaded."""
    environment = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    if not local:
        return environment
    # Workers on this machine import what this process can import, from wherever it was started.
    return {**environment, "PYTHONPATH": os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path)}


def _cores(workers: int, each: WorkersConfig) -> int:
    """Return the number of cores that a local Ray claims. Sensitivities take one per worker, even if scorers take less."""
    return max(workers, math.ceil(workers * each.cpus))
