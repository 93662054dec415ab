"""Limits on threads and processes, from the number of cores."""

import os

from hwsearch.errors import UserError

MOST_THREADS = 4
"""Largest number of threads for each core. Threads wait by spinning, so more threads than cores slow each other down."""

MOST_PROCESSES = 64
"""Largest number of processes for each core. Each one loads its libraries."""


def available_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_threads(threads: int) -> None:
    """Raise `UserError` unless the number of threads is from 1 to `MOST_THREADS` for each core."""
    _check("threads", threads, MOST_THREADS)


def check_processes(processes: int) -> None:
    """Raise `UserError` unless the number of processes is from 1 to `MOST_PROCESSES` for each core."""
    _check("processes", processes, MOST_PROCESSES)


def _check(what: str, number: int, most_per_core: int) -> None:
    cores = available_cores()
    if not 1 <= number <= most_per_core * cores:
        found = f"{cores} core{'s' * (cores != 1)}"
        raise UserError(f"{number} {what}; this machine has {found}: wanted 1 to {most_per_core * cores} {what}")
