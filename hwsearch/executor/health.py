"""How the Ray that this process is connected to fares: its head, its nodes, and whether it has workers for us.

What changes is told to the log. A Ray that does not come back is given up, in one line that says what to do.
"""

import logging
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

from hwsearch.errors import UserError
from hwsearch.executor.nodes import NodeWatch, alive_nodes, head_answers
from hwsearch.executor.reasons import CONTINUE

CHECK_SECONDS = 5.0
"""How often the driver looks whether Ray itself is alive."""

HEAD_SECONDS = 30.0
"""How long a cluster's head may be silent: Ray ends the driver's process, without a word, after 60 s."""

PATIENCE_SECONDS = 600.0
"""How long the driver waits where no worker is ready: a cluster may be starting machines, a worker may hang as it loads."""

REMIND_SECONDS = 30.0
"""The least time between two messages that no worker is ready, or two that say how many are."""

NODES_NAMED = 5
"""When more nodes than this come or go together, a message names only so many."""

logger = logging.getLogger(__name__)


class Health:
    """Looks after one Ray after another; `begin` with each."""

    def __init__(self, address: str | None, patience_s: float = PATIENCE_SECONDS) -> None:
        """Nothing to look after yet; without an address Ray runs on this machine only."""
        self._address = address
        self._place = "this machine" if address is None else f"the Ray cluster at '{address}'"
        self._patience_s = patience_s
        self._watch: NodeWatch | None = None
        self._told_ready: int | None = None
        """How many workers were ready when that was last told."""

    def begin(self) -> None:
        """Look after the Ray that this process has just connected to."""
        import ray

        self._own_node = str(ray.get_runtime_context().get_node_id())
        self.close()
        self._watch = NodeWatch(self._own_node)
        self._news = None if self._address is None else NodeNews()
        self._checked = self._head_seen = self._worker_seen = self._reminded = self._told = time.monotonic()

    def close(self) -> None:
        """Look after it no longer."""
        if self._watch is not None:
            self._watch.close()

    def own_node_lives(self) -> bool:
        """Whether Ray may be asked for what it keeps on this machine: without its node it would end the process."""
        return self._watch is None or self._watch.lives()

    def doubt(self) -> None:
        """Something has died: look at Ray before it is trusted again."""
        self._checked = -math.inf

    def is_trusted(self) -> bool:
        """Whether Ray may be given something to keep: nothing has died since it was looked at.

        A worker may have died because this machine's node dies, and Ray says so before the node has ended. Ray ends this process
        where it stores anything on the node then.
        """
        return self._checked != -math.inf and self.own_node_lives()

    def is_due(self) -> bool:
        """Whether it is time to look."""
        return not self.own_node_lives() or time.monotonic() - self._checked >= CHECK_SECONDS

    def look(self) -> int | None:
        """Look at Ray: how many nodes live, 0 where the head is silent; None where this machine's node has died.

        Raises:
            UserError: the head is gone, or a cluster's has been silent for too long.
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
        if self._address is None:  # what this process keeps of a dead head ends it within a minute, even if a new one is started
            raise UserError(f"the head of Ray on this machine has died; {CONTINUE}")
        silent = self._checked - self._head_seen
        if silent >= HEAD_SECONDS:
            raise UserError(f"no answer from {self._place} for {silent:.0f} s; {CONTINUE} when there is")

    def wait_for_workers(self, ready: int, placed: int, nodes: int) -> None:
        """Say so where no worker is ready, and in the end give up: none was placed on a node, or those placed hang as they start.

        Raises:
            UserError: none has been ready for too long.
        """
        now = self._checked
        if ready:
            self._worker_seen = self._reminded = now
            return
        waited = now - self._worker_seen
        why = f"{placed} start and do not get ready" if placed else f"no room on its {nodes} nodes"
        state = f"no worker on {self._place} for {waited:.0f} s: {why}"
        if waited >= self._patience_s:
            raise UserError(f"{state}; {CONTINUE} when there is")
        if now - self._reminded >= REMIND_SECONDS:
            self._reminded = now
            logger.warning("%s; waiting %.0f s more", state, self._patience_s - waited)

    def tell_ready(self, ready: int, wanted: int) -> None:
        """Say how many workers are ready where that has changed, though not too often; at once where all are at the start."""
        if ready == self._told_ready:
            return
        now, first = time.monotonic(), self._told_ready is None and ready == wanted
        if first or now - self._told >= REMIND_SECONDS:
            level = logging.DEBUG if first else logging.INFO
            logger.log(level, "%d of %d workers are ready", ready, wanted)
            self._told, self._told_ready = now, ready


class NodeNews:
    """Tells of nodes of a cluster that come and go."""

    def __init__(self) -> None:
        """Those that are alive now are no news."""
        self._known = {node["NodeID"]: _name(node) for node in alive_nodes()}

    def tell(self, nodes: Iterable[Mapping[str, Any]]) -> None:
        """Say what has changed, given those that are alive."""
        found = {node["NodeID"]: _name(node) for node in nodes}
        for what, some, others in (("has lost", self._known, found), ("has got", found, self._known)):
            names = sorted(name for node, name in some.items() if node not in others)
            if names:
                count = "a node" if len(names) == 1 else f"{len(names)} nodes"
                more = "" if len(names) <= NODES_NAMED else f" and {len(names) - NODES_NAMED} more"
                logger.info("the cluster %s %s: %s%s", what, count, ", ".join(names[:NODES_NAMED]), more)
        self._known = found


def _name(node: Mapping[str, Any]) -> str:
    """A node as `ray.nodes` has it, in words."""
    return f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})"
