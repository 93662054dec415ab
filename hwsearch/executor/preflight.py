"""Checks of the wanted workers that need nothing to be started."""

import logging
import os
import subprocess
import sys

from hwsearch.errors import UserError
from hwsearch.executor.address import check_reachable
from hwsearch.experiment import WorkersConfig
from hwsearch.process.cores import MOST_PROCESSES, available_cores

ANSWER_SECONDS = 30.0
"""How long a cluster may take to answer and to check the token."""

TOKEN_WORDS = ("AuthenticationError", "authentication_token_loader")
"""Words in Ray's errors that mean a wrong token, or a token file that cannot be read."""

CROWDED = 4
"""If workers ask for more than this many times the machine's cores, the user gets a warning."""

logger = logging.getLogger(__name__)


def check_workers(workers: int, address: str | None, each: WorkersConfig) -> None:
    """Refuse impossible workers before long work begins; warn if they want far more cores than there are.

    Raises:
        UserError: a cluster is named but no workers, the address is malformed or does not answer, the token is wrong, this
            machine cannot run so many, or workers would not see the GPUs.
    """
    if address is None:  # a cluster's nodes check for GPUs when workers start
        from hwsearch.process.device import check_device  # torch is slow to load

        check_device(each.device)
    if workers and each.device == "cuda" and each.gpus == 0:
        raise UserError(
            "workers.gpus is 0 and workers.device 'cuda', but Ray hides GPUs from workers without a share; wanted one, such as "
            "workers.gpus = 0.5, or --workers 0"
        )
    if address is not None:
        if workers == 0:
            raise UserError(f"--ray-address is '{address}' and --workers is 0, which uses no Ray; wanted workers, or no address")
        check_reachable(address)
        check_cluster(address)
        return
    cores = available_cores()
    if workers and each.cpus > cores:
        raise UserError(f"workers.cpus is {each.cpus:g}; this machine has {cores}: wanted at most that")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if workers and (each.memory_bytes or 0) > memory:
        raise UserError(f"workers.memory_bytes is {each.memory_bytes}; this machine has {memory}: wanted at most that")
    if workers > MOST_PROCESSES * cores:
        raise UserError(
            f"--workers is {workers}; this machine has {_cores(cores)}: wanted at most {MOST_PROCESSES * cores} workers "
            f"({MOST_PROCESSES} for each), or a cluster"
        )
    if workers * each.cpus > CROWDED * cores:
        logger.warning(
            "%d workers of %s share the %s of this machine: more than %d do not make it faster",
            workers,
            _cores(each.cpus),
            _cores(cores),
            max(1, int(cores / each.cpus)),
        )


def check_cluster(address: str) -> None:
    """Refuse an address at which no Ray cluster answers, or whose token this process does not have.

    A separate process asks, because in this one Ray would try for 20 s and write a line each time.

    Raises:
        UserError: the token is missing or wrong, or the cluster does not report that it is well.
    """
    try:
        asked = subprocess.run(  # noqa: S603 - the address has been looked at
            [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"what listens at '{address}' is no Ray cluster, or does not answer; wanted HOST:PORT of one") from None
    if any(word in asked.stderr for word in TOKEN_WORDS):
        raise UserError(
            f"the Ray cluster at '{address}' wants its token, which is missing here or another one; wanted "
            "RAY_AUTH_MODE=token, and the token in RAY_AUTH_TOKEN, in the file RAY_AUTH_TOKEN_PATH or in ~/.ray/auth_token"
        )
    if asked.returncode:
        raise UserError(f"what listens at '{address}' does not say that it is a Ray cluster; wanted HOST:PORT of one")


def _cores(count: float) -> str:
    return "1 core" if count == 1 else f"{count:g} cores"
