"""How many threads a separation may take."""

import os

from hwsearch.errors import UserError

MOST_PER_CORE = 4
"""Threads for each core: more only take turns, and far more do not start."""


def check_threads(threads: int) -> None:
    """Refuse a number of threads that this machine cannot run; 0 leaves it to ONNX Runtime.

    Raises:
        UserError: names the number and the machine's cores.
    """
    cores = len(os.sched_getaffinity(0))
    if not 0 <= threads <= MOST_PER_CORE * cores:
        found = f"{cores} core{'s' * (cores != 1)}"
        raise UserError(f"{threads} threads; this machine has {found}: wanted 1 to {MOST_PER_CORE * cores} threads")
