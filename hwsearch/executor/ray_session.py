"""Ray up: started on this machine and for this machine only, or a running cluster joined."""

import logging
import math
import os
import signal
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


@contextmanager
def ray_session(workers: int, ray_address: str | None, each: WorkersConfig | None = None) -> Iterator[None]:
    """Keep Ray up for several executors in a row: starting it takes longer than many of their jobs.

    Raises:
        UserError: no cluster answers at `ray_address`.
    """
    owns = connect(workers, ray_address, each or WorkersConfig())
    try:
        yield
    finally:
        if owns:
            import ray

            ray.shutdown()


def connect(workers: int, address: str | None, each: WorkersConfig) -> bool:
    """Connect to Ray unless this process already is; whether this call did.

    A local Ray is always a new one (`local` never attaches to what a killed driver left; those processes
    notice that their parent is gone and end by themselves), without the dashboard, and reachable from this
    machine only: on Linux Ray binds to the loopback address when it is told that it can form no cluster.

    A cluster gets this process's own `hwsearch` and `hw_models` through Ray's runtime environment, so that every node runs the
    code that the driver does; what these import must be installed there.

    Raises:
        UserError: no cluster answers at `address`, or one of another version of Python or Ray.
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
    with _sigterm_kept():
        _init(workers, address, each)
    return True


def _init(workers: int, address: str | None, each: WorkersConfig) -> None:
    import ray

    if address is None:
        ray.init(
            address="local",
            num_cpus=max(workers, math.ceil(workers * each.cpus)),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        return
    from ray.exceptions import RayError

    code = [str(Path(package.__file__ or "").parent) for package in (hwsearch, hw_models)]
    try:
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


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Leave SIGTERM as it is heard: Ray takes it, to end the process without tidying up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
