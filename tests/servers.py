"""Real servers for the storage tests: those that the environment names, some to kill, and a wire to cut."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import optuna
import psycopg
import pytest
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from psycopg import sql

from tests.sockets import descendants

VARIABLE = "HWSEARCH_TEST_POSTGRES"
"""Environment variable that holds the address of a throwaway PostgreSQL server on this machine; `.ci/services` starts one."""


@contextlib.contextmanager
def fresh_database() -> Iterator[str]:
    """The address of an empty database on the server that the environment names; skips the test where it names none."""
    server = os.environ.get(VARIABLE)
    if not server:
        pytest.skip(f"no {VARIABLE}: wanted the address of a throwaway server on this machine; .ci/services starts one")
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
        try:
            yield urlsplit(server)._replace(path=f"/{name}").geturl()
        finally:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


def optuna_storage(address: str) -> BaseStorage:
    """How people open it: with Optuna's own classes."""
    if address.startswith("journal:///"):
        return JournalStorage(JournalFileBackend(address.removeprefix("journal:///")))
    return RDBStorage(address.replace("postgresql://", "postgresql+psycopg://"))


def load_study(address: str, name: str = "synthetic") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=optuna_storage(address))


def everything_stored(address: str) -> str:
    """All that a PostgreSQL database holds, as text."""
    with psycopg.connect(address) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        return "\n".join(
            str(connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(table))).fetchall()) for (table,) in tables
        )


class Mortal:
    """A PostgreSQL server of the test's own, to be killed by SIGKILL and started again on what it left."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="hwsearch-server-"))
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._user: str | None = None
        self.address = f"postgresql://hwsearch@127.0.0.1:{self._port}/postgres"
        if os.geteuid() == 0:
            # It refuses to run as root.
            self._user = "postgres"
            shutil.chown(self._folder, self._user)
        initdb = (_program("initdb"), "-D", self._folder / "data", "-U", "hwsearch", "--auth=trust", "--no-locale", "-E", "UTF8")
        subprocess.run(initdb, check=True, capture_output=True, cwd="/", user=self._user)

    def start(self) -> None:
        command = (_program("postgres"), "-D", self._folder / "data", "-h", "127.0.0.1", "-p", str(self._port), "-k", "")
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd="/", stdout=log, stderr=log, user=self._user)
        wait_for(self._answers)

    def kill(self) -> None:
        """Kill every process of it at once."""
        assert self._process is not None
        for child in descendants(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self._process.wait()

    def remove(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
        shutil.rmtree(self._folder)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "log").read_text()
        try:
            with psycopg.connect(self.address, connect_timeout=2):
                return True
        except psycopg.Error:
            return False


class Wire:
    """Forwards connections to a server, until it is cut, or swallows an answer."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        assert parts.hostname
        assert parts.port
        self._server = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        user, _, _ = parts.netloc.rpartition("@")
        self.address = parts._replace(netloc=f"{user}@127.0.0.1:{self._listener.getsockname()[1]}").geturl()
        self._write, self._end, self._late = b"", b"", 0.0
        self._written = False
        self.swallowed = 0
        self._blocked = threading.Event()
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def swallow_answer(self, write: bytes, end: bytes, late: float = 0.0) -> None:
        """Break the connection at the next request with `end` in it after one with `write`, whose answer is lost.

        The server gets that request so many seconds later.
        """
        self._written, self._write, self._end, self._late = False, write, end, late

    def block(self) -> None:
        """Take everything and deliver nothing from now on, as a network that lost the server."""
        self._blocked.set()

    def close(self) -> None:
        self._listener.close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                self._open |= {client, server}
                swallow = threading.Event()
                threading.Thread(target=self._requests, args=(client, server, swallow), daemon=True).start()
                threading.Thread(target=self._answers, args=(server, client, swallow), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket, swallow: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                self._written = self._written or (bool(self._write) and self._write in data)
                if self._written and self._end in data:
                    self._write, self._written = b"", False
                    swallow.set()
                    if self._late:
                        self.swallowed += 1
                        client.shutdown(socket.SHUT_RDWR)
                        time.sleep(self._late)
                if not self._blocked.is_set():
                    server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _answers(self, server: socket.socket, client: socket.socket, swallow: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                if swallow.is_set():
                    self.swallowed += not self._late
                    break
                if not self._blocked.is_set():
                    client.sendall(data)
            for connection in (client, server):
                connection.shutdown(socket.SHUT_RDWR)


def wait_for(condition: Callable[[], bool]) -> None:
    """Until it holds; a minute is far more than anything here takes."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _program(name: str) -> str:
    """A server's program, which Debian keeps off the path, by version; skips the test where it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    program = str(found[-1]) if found else shutil.which(name)
    if program is None:
        pytest.skip(f"no program {name} here; wanted Debian's package postgresql")
    return program
