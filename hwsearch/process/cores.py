"""How many threads and processes this machine can be asked for."""

import os

from hwsearch.errors import UserError

MOST_THREADS = 4
"""Threads for each core. They wait by spinning, so that more of them than cores only hold each other up."""

MOST_PROCESSES = 64
"""Processes for each core. All of them are started, and each loads the libraries that it needs."""


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_threads(threads: int) -> None:
    """Refuse a number of threads that this machine cannot run.

    Raises:
        UserError: it is below 1 or above `MOST_THREADS` for each core.
    """
    _check("threads", threads, MOST_THREADS)


def check_processes(processes: int) -> None:
    """Refuse a number of processes that this machine cannot run.

    Raises:
        UserError: it is below 1 or above `MOST_PROCESSES` for each core.
    """
    _check("processes", processes, MOST_PROCESSES)


def _check(what: str, number: int, most_per_core: int) -> None:
    cores = available_cores()
    if not 1 <= number <= most_per_core * cores:
        found = f"{cores} core{'s' * (cores != 1)}"
        raise UserError(f"{number} {what}; this machine has {found}: wanted 1 to {most_per_core * cores} {what}")
