"""The nodes of the Ray that this process is connected to: which of them are alive, and the files to delete there."""

import socket
from pathlib import Path
from typing import Any

from hwsearch.executor.address import knock
from hwsearch.executor.remote import delete_folder

CLEANUP_SECONDS = 10.0
"""How long nodes may take to delete the files they were sent."""


def head_answers() -> bool:
    """Whether the head of the Ray that this process is connected to still listens."""
    import ray

    try:
        knock(ray.get_runtime_context().gcs_address)
    except OSError:
        return False
    return True


def alive_nodes() -> list[dict[str, Any]]:
    """Return Ray's description of each node that is alive. It comes from the head, which must answer."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


class NodeWatch:
    """Notices at once when this machine's node of Ray dies: it holds a connection to the node, which the kernel then closes.

    Ray itself notices after some ten seconds. If it needs something that lay on that node, it ends this process without a
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


def delete_files(root: Path, nodes: set[str]) -> None:
    """Delete the files that were sent to nodes, below each node's folder for temporary files, on the nodes that still live."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = nodes & {node["NodeID"] for node in alive_nodes()}
    delete = ray.remote(delete_folder)
    waiting = [
        delete.options(num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            root
        )
        for node in alive
    ]
    if waiting:
        ray.wait(waiting, num_returns=len(waiting), timeout=CLEANUP_SECONDS)
