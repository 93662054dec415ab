"""Addresses of Ray clusters: their form, and whether anything listens there."""

import re
import socket

from hwsearch.errors import UserError
from hwsearch.executor.reasons import one_line

CONNECT_SECONDS = 5.0
"""How long a cluster may take to answer."""


def check_reachable(address: str) -> None:
    """Refuse an address where nothing listens. Ray itself would try for minutes.

    Raises:
        UserError: the address does not have the form HOST:PORT, or no connection is made within a few seconds.
    """
    host_and_port(address)
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
        UserError: the text is no address, or the address of a Ray Client server, which is used from outside a cluster.
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
