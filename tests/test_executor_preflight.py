"""Workers that cannot be had are refused before anything long begins."""

import logging
import socket
from pathlib import Path

import pytest

from hwsearch.errors import UserError
from hwsearch.executor import preflight
from hwsearch.executor.preflight import check_workers, host_and_port
from hwsearch.experiment import WorkersConfig
from tests.tiny import hwsearch, refusal, write_tiny

ONE = WorkersConfig()


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "available_cores", lambda: 2)
    monkeypatch.setattr(preflight.os, "sysconf", {"SC_PAGE_SIZE": 1000, "SC_PHYS_PAGES": 3}.__getitem__)


@pytest.mark.parametrize(
    ("workers", "each", "message"),
    [
        (1, WorkersConfig(cpus=64), "workers.cpus is 64; this machine has 2: wanted at most that"),
        (
            1,
            WorkersConfig(memory_bytes=2**50),
            "workers.memory_bytes is 1125899906842624; this machine has 3000: wanted at most that",
        ),
        (
            100_000,
            ONE,
            "--workers is 100000; this machine has 2 cores: wanted at most 128 workers (64 for each), or a cluster",
        ),
    ],
)
@pytest.mark.usefixtures("two_cores")
def test_more_than_the_machine_can_run_is_refused(workers: int, each: WorkersConfig, message: str) -> None:
    with pytest.raises(UserError) as refused:
        check_workers(workers, None, each)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("workers", "each", "warned"),
    [
        (0, WorkersConfig(cpus=64), []),
        (4, ONE, []),
        (20, WorkersConfig(cpus=0.25), []),
        (9, ONE, ["9 workers of 1 core share the 2 cores of this machine: more than 2 do not make it faster"]),
        (5, WorkersConfig(cpus=2), ["5 workers of 2 cores share the 2 cores of this machine: more than 1 do not make it faster"]),
    ],
)
@pytest.mark.usefixtures("two_cores")
def test_many_more_workers_than_cores_are_warned_of(
    workers: int, each: WorkersConfig, warned: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        check_workers(workers, None, each)
    assert caplog.messages == warned


def test_addresses_of_clusters() -> None:
    assert host_and_port("head.example:6379") == ("head.example", 6379)
    assert host_and_port("[::1]:6379") == ("::1", 6379)


def refused(folder: Path, address: str, *options: object, command: str = "search") -> str:
    """The line with which a command refuses an address before anything is built."""
    file, runs = write_tiny(folder / "tiny.toml"), folder / "runs"
    line = refusal(hwsearch(command, file, "--runs-dir", runs, "--ray-address", address, *options))
    assert not runs.exists()
    return line


@pytest.mark.parametrize(
    ("command", "address"),
    [
        *(("search", each) for each in ("", "auto", ":6379", "host:", "host:port", "host:0", "host:70000", "http://host:1")),
        *((command, "nonsense") for command in ("run", "sensitivity")),
    ],
)
def test_what_is_no_address_is_refused(tmp_path: Path, command: str, address: str) -> None:
    line = refused(tmp_path, address, command=command)
    assert line == f"the address of the Ray cluster is '{address}'; wanted HOST:PORT, such as 10.0.0.1:6379"


def test_an_address_of_ray_client_is_refused(tmp_path: Path) -> None:
    line = refused(tmp_path, "ray://127.0.0.1:10001")
    wanted = "the address of the Ray cluster is 'ray://127.0.0.1:10001'; wanted HOST:PORT of its head, on a machine"
    assert line.startswith(wanted)


def test_an_address_where_nobody_listens_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert refused(tmp_path, f"127.0.0.1:{port}").startswith(f"no Ray cluster answers at '127.0.0.1:{port}' (")


def test_what_listens_and_is_no_cluster_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "ANSWER_SECONDS", 8.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        line = refused(tmp_path, address)
    assert line == f"what listens at '{address}' is no Ray cluster, or does not answer; wanted HOST:PORT of one"


def test_a_cluster_for_no_workers_is_refused(tmp_path: Path) -> None:
    line = refused(tmp_path, "127.0.0.1:1", "--workers", 0)
    assert line == "--ray-address is '127.0.0.1:1' and --workers is 0, which uses no Ray; wanted workers, or no address"
