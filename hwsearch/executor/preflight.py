"""Checks of the wanted workers, and of the address of a cluster, that start nothing."""

import logging
import os
import re
import socket
import subprocess
import sys

from hwsearch.errors import UserError
from hwsearch.executor.reasons import one_line
from hwsearch.experiment import WorkersConfig
from hwsearch.process.cores import MOST_PROCESSES, available_cores

CONNECT_SECONDS = 5.0
"""How long a cluster may take to accept a connection."""

ANSWER_SECONDS = 30.0
"""How long a cluster may take to answer and to check the token."""

TOKEN_WORDS = ("AuthenticationError", "authentication_token_loader")
"""Words in Ray's errors that mean a wrong token, or a token file that cannot be read."""

CROWDED = 4
"""The user gets a warning if workers ask for more than this many times the machine's cores."""

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
    elif workers:
        _check_machine(workers, each)


def _check_machine(workers: int, each: WorkersConfig) -> None:
    cores, memory = available_cores(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for key, wanted, there in (("cpus", each.cpus, cores), ("memory_bytes", each.memory_bytes or 0, memory)):
        if wanted > there:
            raise UserError(f"workers.{key} is {wanted:.16g}; this machine has {there}: wanted at most that")
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
    """
    try:
        asked = subprocess.run(  # noqa: S603 - the address has been checked
            [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_SECONDS,
            check=False,
        )
        code, said = asked.returncode, asked.stderr
    except subprocess.TimeoutExpired:
        code, said = None, ""
    if any(word in said for word in TOKEN_WORDS):
        raise UserError(
            f"the Ray cluster at '{address}' wants its token, which is missing here or another one; wanted "
            "RAY_AUTH_MODE=token, and the token in RAY_AUTH_TOKEN, in the file RAY_AUTH_TOKEN_PATH or in ~/.ray/auth_token"
        )
    if code != 0:
        raise UserError(f"what listens at '{address}' is no Ray cluster, or does not answer; wanted HOST:PORT of one")


def check_reachable(address: str) -> None:
    """Refuse an address where nothing listens. Ray itself would try for minutes.

    Raises:
        UserError: the address does not have the form HOST:PORT, or no connection is made within a few seconds.
    """
    try:
        knock(address)
    except OSError as error:
        raise UserError(f"no Ray cluster answers at '{address}' ({one_line(error)}); wanted HOST:PORT of a running one") from None


def knock(address: str) -> None:
    """Connect to an address, and close the connection.

    Raises:
        OSError: nothing listens there.
    """
    socket.create_connection(host_and_port(address), timeout=CONNECT_SECONDS).close()


def host_and_port(address: str) -> tuple[str, int]:
    """Split an address into host and port.

    Raises:
        UserError: the text is no address, or that of a Ray Client server, which is used from outside a cluster.
    """
    if address.startswith("ray://"):
        raise UserError(
            f"the address of the Ray cluster is '{address}'; wanted HOST:PORT of its head, on a machine that is one of its nodes "
            "('ray start --address=HOST:PORT' makes it one): Ray Client is not supported"
        )
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:/@\[\]]+):([0-9]{1,5})", address)
    if found is None or not 0 < int(found[2]) < 2**16:
        raise UserError(f"the address of the Ray cluster is '{address}'; wanted HOST:PORT, such as 10.0.0.1:6379")
    return found[1].strip("[]"), int(found[2])


def _cores(count: float) -> str:
    return "1 core" if count == 1 else f"{count:g} cores"
