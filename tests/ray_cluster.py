"""A Ray cluster of several nodes on this machine, reachable from this machine only."""

import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.sockets import named

RAY = """\
from ray._private import services
from ray.scripts.scripts import main
services.resolve_ip_for_localhost = lambda host: host
main()
"""
"""The command `ray`, but that Ray takes a node at 127.0.0.1 for a mistake and listens to the whole network instead."""

LOOPBACK = "127.0.0.1"
SECONDS_TO_START = 120
NAMESPACE = ("unshare", "--map-root-user", "--mount")


@dataclass
class RayCluster:
    """A head without cores, and nodes that come and go; all its processes are in sessions of their own, and end with it.

    Attributes:
        folder: a short path, for sockets lie below it.
        head_cpus: of the head.
    """

    folder: Path
    head_cpus: int = 0
    port: int = 0
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """For a driver: the cluster's token, and that Ray keeps to this machine."""
        return {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "token").write_text(secrets.token_hex(32))
        with socket.create_server((LOOPBACK, 0)) as free:
            self.port = free.getsockname()[1]
        head = ["--head", f"--port={self.port}", "--include-dashboard=false", f"--temp-dir={self.folder / 'ray'}"]
        try:
            self._start("head", [*head, f"--num-cpus={self.head_cpus}"], {}, ())
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for name in reversed(list(self.nodes)):
            self.kill(name)

    def add(self, name: str, cpus: int, environment: Mapping[str, str] | None = None, hidden: Sequence[Path] = ()) -> None:
        """A node that works in a folder of its own, and is not told where this project's code lies.

        Args:
            name: of the node.
            cpus: of it.
            environment: variables of its own.
            hidden: folders that are empty for it: it has a view of its own of the file system (`can_hide`).
        """
        self._start(name, [f"--address={self.address}", f"--num-cpus={cpus}"], environment or {}, hidden)

    def kill(self, name: str) -> None:
        """SIGKILL for every process of a node, as when its machine loses power."""
        node = self.nodes.pop(name)
        for group in _groups_of_session(node.pid):
            os.killpg(group, signal.SIGKILL)
        node.wait()

    def end_raylet(self, name: str, how: signal.Signals) -> None:
        """A signal for a node's raylet alone, where SIGTERM is what `ray stop` sends.

        The `ray start` above it, which would end the node's other processes, is stopped.
        """
        os.kill(self.nodes[name].pid, signal.SIGSTOP)
        (raylet,) = named(self.nodes[name].pid, "raylet")
        os.kill(raylet, how)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def _start(self, name: str, arguments: list[str], environment: Mapping[str, str], hidden: Sequence[Path]) -> None:
        here = self.folder / name
        (here / "tmp").mkdir(parents=True, exist_ok=True)
        variables = {**self.environment, "TMPDIR": str(here / "tmp"), **environment}
        if name != "head":
            variables["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "1"
        if "PYTHONPATH" not in environment:
            variables.pop("PYTHONPATH", None)
        common = ["--block", f"--node-ip-address={LOOPBACK}", "--object-store-memory=100000000", "--disable-usage-stats"]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.nodes[name] = subprocess.Popen(
                [*_hide(hidden), sys.executable, "-c", RAY, "start", *arguments, *common],
                cwd=here,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

        for _ in range(10 * SECONDS_TO_START):
            assert self.nodes[name].poll() is None, self.log(name)
            if "Ray runtime started" in self.log(name):
                return
            time.sleep(0.1)
        raise TimeoutError(self.log(name))


def can_hide() -> bool:
    """Whether processes here may have a view of their own of the file system."""
    return subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0


def _hide(folders: Sequence[Path]) -> list[str]:
    """A command line's beginning, for which these folders are empty."""
    if not folders:
        return []
    mounts = "".join(f"mount -t tmpfs none {shlex.quote(str(folder))} && " for folder in folders)
    return [*NAMESPACE, "sh", "-c", f'{mounts}exec "$@"', "sh"]


def _groups_of_session(session: int) -> set[int]:
    """Process groups of a session: Ray gives some of its processes groups of their own."""
    groups = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        if int(fields[3]) == session:
            groups.add(int(fields[2]))
    return groups
