"""One small main job, run once through the installed command, for all tests that need a run folder."""

import fcntl
import json
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from tests import distribution
from tests.tiny import HWSEARCH, Tiny, write_tiny

# A shell that starts the tests in the background has them ignore Ctrl-C, and every process that they start, too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run: whether a commit passes does not depend on the day.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    return distribution.workers(config)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> distribution.Scheduling:
    return distribution.Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    distribution.order(items)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Commands run in this process set the number of threads; with more than there are free cores, small tensors crawl."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Tiny:
    """The main job's run folder; tests must not change it. The job runs once for all test processes, and each has a copy."""
    base, own = tmp_path_factory.getbasetemp(), tmp_path_factory.mktemp("tiny", numbered=False)
    made = (base if worker_id == "master" else base.parent) / "made"
    with made.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made / "said.json").is_file():
            file = write_tiny(made / "tiny.toml")
            command = [HWSEARCH, "run", file, "--runs-dir", made / "runs", "--workers", "0", "--processes", "1"]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            assert ended.returncode == 0, ended.stderr
            (made / "said.json").write_text(json.dumps([ended.stdout, ended.stderr]))
    shutil.copytree(made, own, dirs_exist_ok=True)
    stdout, stderr = (said.replace(str(made), str(own)) for said in json.loads((made / "said.json").read_text()))
    return Tiny(own / "tiny.toml", own / "runs", stdout, stderr)


@pytest.fixture
def copied(tiny: Tiny, tmp_path: Path) -> Tiny:
    """A copy of the run folder to damage; the data are a copy, too, because a command may mend them."""
    shutil.copytree(tiny.runs, tmp_path / "runs")
    return Tiny(shutil.copy(tiny.file, tmp_path / "tiny.toml"), tmp_path / "runs", tiny.stdout, tiny.stderr)
