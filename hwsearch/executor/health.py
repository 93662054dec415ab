"""The health of the Ray that this process is connected to: its head, its nodes, and whether workers are ready.

Changes are logged. If Ray does not come back, the command gives up with one line that says what to do.
"""

import logging
import math
import socket
import time
from collections.abc import Iterable, Mapping
from typing import Any

from hwsearch.errors import UserError
from hwsearch.executor.preflight import knock
from hwsearch.executor.reasons import CONTINUE

CHECK_SECONDS = 5.0
"""How often the driver checks whether Ray itself is alive."""

HEAD_SECONDS = 30.0
"""How long a cluster's head may be silent. After 60 s, Ray would end the driver's process without a message."""

PATIENCE_SECONDS = 600.0
"""How long the driver waits if no worker is ready: a cluster may be starting machines, or a worker may hang as it loads."""

REMIND_SECONDS = 30.0
"""Least time between two messages about how many workers are ready."""

NODES_NAMED = 5
"""Most nodes that a message names when several come or go together."""

logger = logging.getLogger(__name__)


def head_answers() -> bool:
    """Whether the head of the Ray that this process is connected to still listens."""
    import ray

    try:
        knock(ray.get_runtime_context().gcs_address)
    except OSError:
        return False
    return True


def alive_nodes() -> list[dict[str, Any]]:
    """Return Ray's description of each live node. It comes from the head, which must answer."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


class Health:
    """Watches one Ray after another; call `begin` for each."""

    def __init__(self, address: str | None) -> None:
        """Start with no Ray to watch. Without an address, Ray runs on this machine only."""
        self._address = address
        self._place = "this machine" if address is None else f"the Ray cluster at '{address}'"
        self._watch: NodeWatch | None = None
        self._told_ready: int | None = None
        """Number of ready workers in the last message about it."""

    def begin(self) -> None:
        """Watch the Ray that this process has just connected to."""
        import ray

        self._own_node = str(ray.get_runtime_context().get_node_id())
        self.close()
        self._watch = NodeWatch(self._own_node)
        self._news = None if self._address is None else NodeNews()
        self._checked = self._head_seen = self._worker_seen = self._reminded = self._told = time.monotonic()

    def close(self) -> None:
        """Stop watching."""
        if self._watch is not None:
            self._watch.close()

    def own_node_lives(self) -> bool:
        """Whether this machine's node is alive. If it is not, asking Ray for an object here would end the process."""
        return self._watch is None or self._watch.lives()

    def doubt(self) -> None:
        """Note that something has died, so that Ray is checked before it is trusted again."""
        self._checked = -math.inf

    def is_trusted(self) -> bool:
        """Whether Ray may be given something to store: nothing has died since the last check.

        Ray reports a dead worker before it reports the node that took it along. If anything is stored on this machine's node
        meanwhile, Ray ends this process.
        """
        return self._checked != -math.inf and self.own_node_lives()

    def is_due(self) -> bool:
        """Whether it is time for the next check."""
        return not self.own_node_lives() or time.monotonic() - self._checked >= CHECK_SECONDS

    def look(self) -> int | None:
        """Check Ray; return the number of live nodes, 0 if the head is silent, or None if this machine's node has died.

        Raises:
            UserError: the local head is gone, or a cluster's has been silent for too long.
        """
        self._checked = time.monotonic()
        if self._address is not None and not self.own_node_lives():
            return None
        if not head_answers():
            self._miss_head()
            return 0
        self._head_seen = self._checked
        nodes = alive_nodes()
        if self._news is not None:
            self._news.tell(nodes)
        in_place = self.own_node_lives() and self._own_node in [node["NodeID"] for node in nodes]
        return len(nodes) if in_place else None

    def _miss_head(self) -> None:
        if self._address is None:  # a dead head ends this process within a minute, even if a new one is started
            raise UserError(f"the head of Ray on this machine has died; {CONTINUE}")
        silent = self._checked - self._head_seen
        if silent >= HEAD_SECONDS:
            raise UserError(f"no answer from {self._place} for {silent:.0f} s; {CONTINUE} when there is")

    def wait_for_workers(self, ready: int, placed: int, nodes: int) -> None:
        """Warn if no worker is ready, because no node has room or the placed workers hang as they start; give up in the end.

        Raises:
            UserError: no worker has been ready for too long.
        """
        now = self._checked
        if ready:
            self._worker_seen = self._reminded = now
            return
        waited = now - self._worker_seen
        why = f"{placed} start and do not get ready" if placed else f"no room on its {nodes} nodes"
        state = f"no worker on {self._place} for {waited:.0f} s: {why}"
        if waited >= PATIENCE_SECONDS:
            raise UserError(f"{state}; {CONTINUE} when there is")
        if now - self._reminded >= REMIND_SECONDS:
            self._reminded = now
            logger.warning("%s; waiting %.0f s more", state, PATIENCE_SECONDS - waited)

    def tell_ready(self, ready: int, wanted: int) -> None:
        """Log the number of ready workers when it has changed, but not too often; at once if all are ready at the start."""
        if ready == self._told_ready:
            return
        now, first = time.monotonic(), self._told_ready is None and ready == wanted
        if first or now - self._told >= REMIND_SECONDS:
            level = logging.DEBUG if first else logging.INFO
            logger.log(level, "%d of %d workers are ready", ready, wanted)
            self._told, self._told_ready = now, ready


class NodeWatch:
    """Notices at once when this machine's node of Ray dies: it holds a connection to the node, which the kernel then closes.

    Ray itself notices after some ten seconds. If it needs an object of that node meanwhile, it ends this process without a
    message.
    """

    def __init__(self, node: str) -> None:
        """Watch a node of this machine by its id. A node that has already gone counts as dead."""
        self._socket = socket.socket(socket.AF_UNIX)
        names = [str(each["RayletSocketName"]) for each in alive_nodes() if each["NodeID"] == node]
        try:
            self._socket.connect(names[0].removeprefix("unix://") if names else "")
        except OSError:
            self.close()

    def lives(self) -> bool:
        """Whether the node's process is alive."""
        try:
            return self._socket.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        """Stop watching."""
        self._socket.close()


class NodeNews:
    """Logs the nodes of a cluster that come and go."""

    def __init__(self) -> None:
        """Start with the nodes that are alive now."""
        self._known = _names(alive_nodes())

    def tell(self, nodes: Iterable[Mapping[str, Any]]) -> None:
        """Log the changes, given the live nodes."""
        found = _names(nodes)
        for what, some, others in (("has lost", self._known, found), ("has got", found, self._known)):
            names = sorted(name for node, name in some.items() if node not in others)
            if names:
                count = "a node" if len(names) == 1 else f"{len(names)} nodes"
                more = "" if len(names) <= NODES_NAMED else f" and {len(names) - NODES_NAMED} more"
                logger.info("the cluster %s %s: %s%s", what, count, ", ".join(names[:NODES_NAMED]), more)
        self._known = found


def _names(nodes: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Name each node by its host and the start of its id."""
    return {node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})" for node in nodes}
