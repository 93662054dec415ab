"""Where pure jobs run: in this process, or on Ray.

An executor is given a factory, a picklable callable (a module-level function, or a `functools.partial` of one) that builds the
function which does the work. Every worker calls it once, so that data that are slow to load are loaded once per worker and
shared by its jobs. Jobs are pure and idempotent: a job whose worker died is simply run again.

`interface` defines what an executor does. `local` runs jobs in this process, and `ray_executor` runs them on warm actors of Ray.
For the latter, `attempts` keeps the jobs, `actors` keeps the workers, and `health` checks whether Ray is alive. `session` starts
Ray here or joins a cluster, `preflight` checks beforehand whether that can work, `remote` runs on the nodes, and `portable`
brings files to machines that do not share them.
"""

from hwsearch.executor.interface import Argument, Executor, Factory, Outcome, Result, run_jobs
from hwsearch.executor.local import LocalExecutor
from hwsearch.executor.preflight import check_workers
from hwsearch.executor.ray_executor import RayExecutor
from hwsearch.executor.reasons import NO_ANSWER
from hwsearch.executor.session import ray_session
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
]


def open_executor(
    factory: Factory[Argument, Result],
    workers: int,
    *,
    max_attempts: int,
    ray_address: str | None,
    each: WorkersConfig | None = None,
) -> Executor[Argument, Result]:
    """Make an executor with a number of Ray workers. With 0, this process does the work.

    Args:
        factory: builds the work function.
        workers: on Ray.
        max_attempts: how often a job is tried whose worker dies or does not answer.
        ray_address: a cluster to join.
        each: what each worker gets; absent: one core, no time limit.
    """
    each = each or WorkersConfig()
    if workers == 0:
        return LocalExecutor(factory, max_attempts=max_attempts, time_limit_s=each.time_limit_s)
    return RayExecutor(factory, workers, max_attempts=max_attempts, ray_address=ray_address, each=each)
