"""What can be said of the workers wanted before anything is started for them."""

import logging
import os
import subprocess
import sys

from hwsearch.errors import UserError
from hwsearch.executor.address import check_reachable
from hwsearch.experiment import WorkersConfig
from hwsearch.process.cores import MOST_PROCESSES, available_cores

ANSWER_SECONDS = 30.0
"""How long a cluster may take to say that it is one, and to look at the token."""

TOKEN_WORDS = ("AuthenticationError", "authentication_token_loader")
"""What Ray's errors say when the token is a wrong one, and when its file cannot be read."""

CROWDED = 4
"""Workers that ask for more than this many times the machine's cores get a warning."""

logger = logging.getLogger(__name__)


def check_workers(workers: int, address: str | None, each: WorkersConfig) -> None:
    """Refuse, before anything long begins, workers that cannot be had; warn of many more than there are cores.

    Raises:
        UserError: a cluster for no workers, no address, none that answers, not its token, more than this machine can run, or
            GPUs that workers would not see.
    """
    if address is None:  # a cluster's nodes look for theirs when they start to work
        from hwsearch.process.device import check_device  # torch takes long to load

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
    """Refuse what listens and is no cluster, or one that this process has not the token of.

    Asked by a process of its own: in this one Ray would try for 20 s, and write a line of its own each time.

    Raises:
        UserError: the token is missing or wrong, or it does not say that it is well.
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
