"""Where pure jobs run: in this process, or on Ray.

A factory builds the function that does the work. It is a picklable callable: a module-level function, a `functools.partial` of
one, or an instance of a class. Every worker calls it once, so data that are slow to load are loaded once per worker. Jobs are
pure, so a job whose worker died is run again.

`interface` defines executors. `local` runs jobs in this process, and `ray_executor` runs them on warm actors of Ray. For the
latter, `attempts` keeps the jobs, `actors` keeps the workers, and `health` checks whether Ray is alive. `session` starts Ray here
or joins a cluster, and `preflight` checks beforehand whether that can work. `remote` runs on the nodes, and `portable` brings
files to machines that do not share them.
"""

from hwsearch.executor.interface import Argument, Executor, Factory, Outcome, Result, run_jobs
from hwsearch.executor.local import LocalExecutor
from hwsearch.executor.preflight import check_workers
from hwsearch.executor.ray_executor import RayExecutor
from hwsearch.executor.reasons import NO_ANSWER
from hwsearch.executor.session import ray_session, start_seconds
from hwsearch.experiment import WorkersConfig

__all__ = [
    "NO_ANSWER",
    "Executor",
    "Factory",
    "LocalExecutor",
    "Outcome",
    "RayExecutor",
    "check_workers",
    "open_executor",
    "ray_session",
    "run_jobs",
    "start_seconds",
]


def open_executor(
    factory: Factory[Argument, Result],
    workers: int,
    *,
    max_attempts: int,
    ray_address: str | None,
    each: WorkersConfig,
) -> Executor[Argument, Result]:
    """Make an executor.

    Args:
        factory: builds the work function.
        workers: number of Ray workers; with 0, this process does the work.
        max_attempts: number of attempts at a job whose worker dies or does not answer.
        ray_address: a cluster to join.
        each: resources and time limit of each worker.
    """
    if workers == 0:
        return LocalExecutor(factory, max_attempts=max_attempts, time_limit_s=each.time_limit_s)
    return RayExecutor(factory, workers, max_attempts=max_attempts, ray_address=ray_address, each=each)
