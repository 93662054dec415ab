"""Searches on a cluster of real nodes on this machine: what travels to them, and what happens when they go."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import hwsearch
from hwsearch.search.log import LOG_FILE
from hwsearch.search.record import RECORD_FILE, Asked, Scored
from tests.cluster_driver import BROKEN, SLOW
from tests.ray_cluster import RayCluster, can_hide
from tests.search.synthetic import essence, events
from tests.sockets import descendants, is_loopback, listening, named
from tests.tiny import HWSEARCH, Tiny, write_tiny

ROOT = Path(__file__).parents[1]
CODE_HERE = {"PYTHONPATH": str(ROOT)}
MANY = 100_000


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """A head without cores; each test adds its nodes."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder, RayCluster(Path(folder)) as started:
        yield started


def start_driver(folder: Path, address: str, trials: int, environment: dict[str, str], workers: int = 2) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.cluster_driver", str(folder), address, str(trials), str(workers)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_more(folder: Path, driver: subprocess.Popen[str], count: int) -> None:
    """Until the record has grown by so many lines."""
    path = folder / RECORD_FILE

    def lines() -> int:
        return path.read_bytes().count(b"\n") if path.exists() else 0

    before = lines()
    while lines() < before + count:
        assert driver.poll() is None, driver.stderr.read() if driver.stderr else ""
        time.sleep(0.02)


def last_line(driver: subprocess.Popen[str]) -> str:
    return all_lines(driver)[-1]


def all_lines(driver: subprocess.Popen[str]) -> list[str]:
    output, errors = driver.communicate(timeout=300)
    assert (driver.returncode, output) == (2, ""), errors
    return errors.splitlines()


def assert_once(folder: Path) -> int:
    """No candidate is lost or counted twice; how many there are."""
    found = events(folder)
    scored = [event.candidate for event in found if isinstance(event, Scored)]
    assert len(set(scored)) == len(scored) == len({tuple(e.allocation.values()) for e in found if isinstance(e, Scored)})
    asked = [event.candidate for event in found if isinstance(event, Asked)]
    assert asked == list(range(len(asked)))
    assert set(scored) <= set(asked)
    return len(scored)


@pytest.mark.skipif(not can_hide(), reason="a node that cannot see the run folder wants 'unshare --map-root-user --mount'")
def test_a_node_that_sees_neither_run_folder_nor_code_scores_alike(cluster: RayCluster, tiny: Tiny, tmp_path: Path) -> None:
    """Code, base, calibration and mixtures come through Ray, and nothing of them stays."""
    runs = tmp_path / "runs"
    for shared in ("data", "corpora"):
        shutil.copytree(tiny.runs / shared, runs / shared)
    code = Path(hwsearch.__file__).parents[1]
    cluster.add("far", cpus=1, hidden=[runs, tiny.runs, code / "hwsearch", code / "hw_models"])
    command = [HWSEARCH, "search", tiny.file, "--runs-dir", runs, "--workers", "1", "--ray-address", cluster.address]
    ended = subprocess.run(
        [*map(str, command), "--processes", "1"], capture_output=True, text=True, check=False, env=cluster.environment, cwd=ROOT
    )
    left = list((cluster.folder / "far" / "tmp").iterdir())
    cluster.kill("far")
    assert ended.returncode == 0, ended.stderr
    assert essence(runs / "tiny") == essence(tiny.folder)
    assert left == []


@pytest.mark.slow
def test_a_cluster_may_lose_nodes_and_get_new_ones(cluster: RayCluster, tmp_path: Path) -> None:
    for name in ("one", "two"):
        cluster.add(name, cpus=1, environment=CODE_HERE)
    with start_driver(tmp_path, cluster.address, MANY, cluster.environment) as driver:
        wait_for_more(tmp_path, driver, 40)
        assert [address for address in listening(descendants(os.getpid())) if not is_loopback(address[0])] == []
        cluster.kill("two")
        wait_for_more(tmp_path, driver, 60)
        cluster.kill("one")
        cluster.add("three", cpus=2, environment=CODE_HERE)
        wait_for_more(tmp_path, driver, 40)
        cluster.kill("three")
        *said, line = all_lines(driver)
    host = os.uname().nodename
    lost, got = (
        [name for line in said if line.startswith(f"the cluster has {what} ") for name in re.findall(rf"{host} \((\w+)\)", line)]
        for what in ("lost", "got")
    )
    # Ray takes some ten seconds to notice that a node is gone: one of the test before may be among them.
    assert len(set(lost)) == len(lost) in {3, 4}, said
    assert len(got) == 1, said
    assert line.startswith(f"error: no worker on the Ray cluster at '{cluster.address}' for 6")
    assert line.endswith("run the same command again to continue when there is")
    found = assert_once(tmp_path)

    cluster.add("four", cpus=2, environment=CODE_HERE)
    with start_driver(tmp_path, cluster.address, found + 20, cluster.environment) as driver:
        output, errors = driver.communicate(timeout=300)
    cluster.kill("four")
    assert f"done: {found + 20} of {found + 20} candidates scored, 0 failed" in output, errors
    assert assert_once(tmp_path) == found + 21


@pytest.mark.slow
def test_a_node_that_dies_while_workers_start_on_it_takes_nothing_else_along(cluster: RayCluster, tmp_path: Path) -> None:
    cluster.add("slow", cpus=4, environment={**CODE_HERE, SLOW: "1"})
    with start_driver(tmp_path, cluster.address, 20, cluster.environment, workers=4) as driver:
        for _ in range(600):
            if len(list((cluster.folder / "slow" / "tmp").glob("starting-*"))) == 4:
                break
            time.sleep(0.1)
        cluster.kill("slow")
        cluster.add("next", cpus=4, environment=CODE_HERE)
        output, errors = driver.communicate(timeout=300)
    cluster.kill("next")
    assert "done: 20 of 20 candidates scored, 0 failed" in output, errors


def test_a_node_that_cannot_start_workers_is_named(cluster: RayCluster, tmp_path: Path) -> None:
    cluster.add("broken", cpus=2, environment={**CODE_HERE, BROKEN: "1"})
    with start_driver(tmp_path, cluster.address, 20, cluster.environment) as driver:
        line = last_line(driver)
    left = list((cluster.folder / "broken" / "tmp").iterdir())
    cluster.kill("broken")
    assert line.startswith(
        f"error: node {os.uname().nodename} of the Ray cluster: a worker cannot start: FileNotFoundError: no lib"
    )
    assert left == []


@pytest.mark.parametrize("given", ["another", pytest.param("no file", marks=pytest.mark.slow), "nothing"])
def test_a_driver_without_the_clusters_token_is_refused_before_anything_is_built(
    cluster: RayCluster, tmp_path: Path, given: str
) -> None:
    token = tmp_path / "token"
    if given == "another":
        token.write_text("0" * 64)
    environment = {**cluster.environment, "RAY_AUTH_TOKEN_PATH": str(token), "HOME": str(tmp_path)}
    if given == "nothing":
        del environment["RAY_AUTH_TOKEN_PATH"], environment["RAY_AUTH_MODE"]
    file, runs = write_tiny(tmp_path / "tiny.toml"), tmp_path / "runs"
    command = [HWSEARCH, "search", file, "--runs-dir", runs, "--ray-address", cluster.address]
    ended = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 2
    assert line.startswith(f"hwsearch: error: the Ray cluster at '{cluster.address}' wants its token, which is missing here or")
    assert not runs.exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_driver_whose_own_node_dies_says_so_and_goes_on(tiny: Tiny, tmp_path: Path, how: signal.Signals) -> None:
    """The head lives, and another node: Ray would end the driver's process without a word."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder, RayCluster(Path(folder)) as cluster:
        cluster.add("one", cpus=1, environment=CODE_HERE)
        runs, tmp = tmp_path / "runs", tmp_path / "tmp"
        shutil.copytree(tiny.runs, runs)
        tmp.mkdir()
        command = [HWSEARCH, "search", tiny.file, "--runs-dir", runs, "--trials", "5000", "--workers", "1"]
        environment = {**cluster.environment, "TMPDIR": str(tmp)}
        before = len(events(runs / "tiny"))
        with subprocess.Popen(
            [*map(str, command), "--ray-address", cluster.address], stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        ) as driver:
            while len(events(runs / "tiny")) < before + 10:
                assert driver.poll() is None, driver.communicate()[1]
                time.sleep(0.1)
            cluster.end_raylet("head", how)
            killed = time.monotonic()
            said = driver.communicate(timeout=60)[1].splitlines()
        seconds = time.monotonic() - killed
    line = f"this machine's node of the Ray cluster at '{cluster.address}' has died; start it, and run the same command again"
    assert said[-1].startswith(f"hwsearch: error: {line}"), said
    assert driver.returncode == 2
    assert seconds < 15
    assert line in (runs / "tiny" / LOG_FILE).read_text().splitlines()[-1]
    assert list(tmp.glob("hwsearch-*")) == []


@pytest.mark.slow
def test_a_cluster_without_its_head_and_this_machines_node_is_given_up_at_once(cluster: RayCluster, tmp_path: Path) -> None:
    """The last of this file: the cluster is gone."""
    cluster.add("five", cpus=2, environment=CODE_HERE)
    (tmp_path / "tmp").mkdir()
    with start_driver(tmp_path, cluster.address, MANY, {**cluster.environment, "TMPDIR": str(tmp_path / "tmp")}) as driver:
        wait_for_more(tmp_path, driver, 30)
        before = processor_seconds(driver.pid)
        os.kill(cluster.nodes["head"].pid, signal.SIGSTOP)
        for process in (*named(cluster.nodes["head"].pid, "raylet"), *named(cluster.nodes["head"].pid, "gcs_server")):
            os.kill(process, signal.SIGKILL)
        spent = 0.0
        while driver.poll() is None:
            spent = processor_seconds(driver.pid) - before
            time.sleep(0.1)
        line = last_line(driver)
    wanted = f"this machine's node of the Ray cluster at '{cluster.address}' has died; start it, and run the same command again"
    assert line.startswith(f"error: {wanted}")
    assert spent < 10.0
    assert list((tmp_path / "tmp").glob("hwsearch-*")) == []
    assert assert_once(tmp_path) >= 10


def processor_seconds(process: int) -> float:
    times = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
def test_a_dead_head_of_a_local_ray_is_one_line(tmp_path: Path) -> None:
    with start_driver(tmp_path, "none", MANY, dict(os.environ)) as driver:
        wait_for_more(tmp_path, driver, 30)
        (head,) = named(driver.pid, "gcs_server")
        os.kill(head, signal.SIGKILL)
        assert last_line(driver) == "error: the head of Ray on this machine has died; run the same command again to continue"
    assert assert_once(tmp_path) >= 10
