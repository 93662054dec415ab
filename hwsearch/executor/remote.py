"""Code that runs on the nodes of Ray: the actor that does jobs, and the deletion of files that were sent there."""

import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hwsearch.errors import UserError
from hwsearch.executor.interface import this_process
from hwsearch.executor.portable import Portable, PortableJob, moved, unpack
from hwsearch.executor.reasons import attempt, one_error


class RemoteWorker:
    """The actor. It builds the work function once and keeps it."""

    def __init__(self, factory: list[Any], root: Path | None) -> None:
        self._factory = factory
        self._root = None if root is None else Path(tempfile.gettempdir()) / root
        # Jobs on one node may name the same file, and each deletes the files that came with it.
        self._jobs_root = None if self._root is None else self._root / f"jobs-{uuid.uuid4().hex}"
        self._work: Callable[[Any], Any] | None = None

    def where(self) -> tuple[str, str]:
        """Return node and host."""
        import ray

        return ray.get_runtime_context().get_node_id(), socket.gethostname()

    def build(self) -> tuple[str, str, str | None]:
        """Fetch the files that the work reads, and build it; return node, host, and the reason if that failed."""
        import ray

        failure = None
        try:
            factory, files = ray.get(self._factory.pop())
            if self._root is not None:
                self._root.mkdir(mode=0o700, exist_ok=True)
                if isinstance(factory, Portable):
                    # Workers of one node share the files, and the first one writes them.
                    for path in (path for path in files if not moved(path, self._root).is_file()):
                        unpack({path: ray.get(files[path])}, self._root)
                    factory = factory.below(self._root)
            self._work = factory()
        except UserError as error:
            failure = str(error)
        except Exception as error:  # noqa: BLE001 - foreign code; the driver says which node it failed on
            failure = f"a worker cannot start: {one_error(error)}"
        return (*self.where(), failure)

    def run(self, argument: Any, files: Mapping[Path, bytes]) -> tuple[Any, str | None, float, str, dict[Path, bytes]]:
        """Run a job, given the content of its files; return its outcome, this process, and the files that it wrote."""
        if self._work is None:
            raise RuntimeError("a worker was given a job before it was built")
        root = self._jobs_root
        if root is None or not isinstance(argument, PortableJob):
            return (*attempt(self._work, argument), this_process(), {})
        unpack(files, root)
        outcome = attempt(self._work, argument.below(root))
        left = {path: moved(path, root) for path in argument.results()}
        found = {path: there.read_bytes() for path, there in left.items() if there.is_file() and path not in files}
        for path in {*files, *found}:
            moved(path, root).unlink()
        return (*outcome, this_process(), found)


def delete_folder(root: Path) -> None:
    """Delete the files that were sent to this node. `root` is relative to the folder for temporary files."""
    shutil.rmtree(Path(tempfile.gettempdir()) / root, ignore_errors=True)
