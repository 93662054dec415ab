"""Processes that make data: their results, and their end with the command."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from hwsearch.data.processes import in_processes
from hwsearch.errors import UserError
from tests.data.jobs import double, end
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


def test_every_job_gives_its_result() -> None:
    assert sorted(in_processes(double, [(number,) for number in range(5)], 2, ENDED)) == [0, 2, 4, 6, 8]


def test_a_process_that_is_killed_is_told() -> None:
    with pytest.raises(UserError, match=ENDED), closing(in_processes(end, [(signal.SIGKILL,)] * 2, 2, ENDED)) as results:
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
