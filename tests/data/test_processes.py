"""Processes that make data: their results, and their end with the command."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hwsearch.data.processes import deaf_to_interrupts, each_result, in_processes
from hwsearch.errors import UserError
from tests.data.jobs import double, end, refuse
from tests.test_interrupts import wait_until_gone

ENDED = "one was ended"

BUILDING = """
import os, time
from contextlib import closing
from hwsearch.data.processes import in_processes
from hwsearch.process.interrupts import interrupts_heard, stop_code
from tests.data.jobs import tell_and_sleep
if __name__ == "__main__":
    with interrupts_heard():
        try:
            with closing(in_processes(tell_and_sleep, [({folder!r}, 600.0)] * 4, 2, "ended")) as results:
                list(results)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_every_job_gives_its_result(processes: int) -> None:
    assert sorted(each_result(double, [(number,) for number in range(5)], processes)) == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(("work", "argument", "said"), [(end, signal.SIGKILL, ENDED), (refuse, "too quiet", "too quiet")])
def test_a_process_that_is_killed_or_refuses_its_job_is_told(work: Callable[[Any], None], argument: object, said: str) -> None:
    with pytest.raises(UserError, match=said), closing(in_processes(work, [(argument,)] * 2, 2, ENDED)) as results:
        list(results)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_command(tmp_path: Path, number: signal.Signals) -> None:
    """Not even in the midst of a job that takes long."""
    script = tmp_path / "building.py"
    (tmp_path / "workers").mkdir()
    script.write_text(BUILDING.format(folder=str(tmp_path / "workers")))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    with subprocess.Popen([sys.executable, script], env=environment, stdout=-1, stderr=-1, text=True) as command:
        while len(list((tmp_path / "workers").iterdir())) < 2:
            assert command.poll() is None
            time.sleep(0.05)
        command.send_signal(number)
        said, errors = command.communicate()
    workers = {int(path.name) for path in (tmp_path / "workers").iterdir()}
    assert wait_until_gone(workers) == set()
    if number is not signal.SIGKILL:
        assert (said, "leaked" in errors, "Traceback" in errors) == ("interrupted\n", False, False), errors


WORKER = "print('up', flush=True); print('heard', input(), flush=True)"


def start() -> subprocess.Popen[str]:
    worker = subprocess.Popen([sys.executable, "-c", WORKER], stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True)
    assert worker.stdout is not None
    assert worker.stdout.readline() == "up\n"
    worker.send_signal(signal.SIGINT)
    return worker


def test_a_process_started_inside_does_not_hear_it() -> None:
    with deaf_to_interrupts():
        worker = start()
    assert worker.communicate("a word\n")[0] == "heard a word\n"
    assert worker.returncode == 0


def test_a_process_started_outside_does() -> None:
    assert start().communicate("a word\n")[0] == ""


def test_the_one_that_started_it_hears_it_behind_the_block() -> None:
    done = []

    def work() -> None:
        with deaf_to_interrupts():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            done.append("the block")
        done.append("behind it")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["the block"]
