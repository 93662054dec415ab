"""Ctrl-C on a search: once ends it in good order, twice at once; neither leaves processes behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hwsearch.search.log import LOG_FILE
from hwsearch.search.record import RECORD_FILE
from tests.tiny import HWSEARCH, Tiny, hwsearch, read_events

PATIENCE_SECONDS = 120

TIDYING = """
import time
from hwsearch.terminal import second_interrupt_ends
with second_interrupt_ends():
    try:
        print("working", flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        print("tidying", flush=True)
        if {forever}:
            time.sleep(600)
try:
    print("behind", flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    print("as ever", flush=True)
"""


def descendants(process: int) -> set[int]:
    """The process's children and theirs."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(path.parent.name)] = int(fields[1])
    found = {process}
    while more := {child for child, parent in parents.items() if parent in found and child not in found}:
        found |= more
    return found - {process}


def wait_until_gone(processes: set[int]) -> set[int]:
    """Those that are still there when patience ends; a process that has ended and waits to be reaped is gone."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        processes = {process for process in processes if alive(process)}
        if not processes:
            break
        time.sleep(0.1)
    return processes


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(("number", "presses"), [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGTERM, 1)])
def test_ctrl_c_and_sigterm_end_a_search_on_ray_which_then_goes_on(copied: Tiny, number: signal.Signals, presses: int) -> None:
    """A second one that comes when all is tidied up finds nothing left to do."""
    command = ["search", str(copied.file), "--runs-dir", str(copied.runs), "--trials", "5000"]
    before = len(read_events(copied.folder))
    with subprocess.Popen([HWSEARCH, *command, "--workers", "1"], stderr=subprocess.PIPE, text=True) as driver:
        while len(read_events(copied.folder)) < before + 3:
            assert driver.poll() is None, driver.stderr.read() if driver.stderr else ""
            time.sleep(0.05)
        started = descendants(driver.pid)
        assert started
        driver.send_signal(number)
        assert driver.stderr is not None
        said = "".join(iter(driver.stderr.readline, "stopping; press Ctrl-C again to end at once\n"))
        if presses == 2:
            driver.send_signal(number)
        said += driver.communicate()[1]
    assert driver.returncode == 130, said
    assert "*** SIGTERM" not in said
    at_once = "hwsearch: ended at once; the same command goes on where it stopped" in said
    assert presses == 2 or not at_once
    if not at_once:
        assert "run the same command again to continue in" in said.splitlines()[-1]
        assert "interrupted: " in (copied.folder / LOG_FILE).read_text().splitlines()[-1]
    assert wait_until_gone(started) == set()

    there = len(read_events(copied.folder))
    answer = hwsearch(*command[:-2], "--trials", str(there + 2), "--workers", "0")
    assert answer.code == 0, answer.stderr
    scored = [event["candidate"] for event in read_events(copied.folder)]
    assert len(scored) == len(set(scored)) == there + 3
    assert (copied.folder / RECORD_FILE).read_bytes().endswith(b"\n")


@pytest.mark.parametrize("forever", [True, False])
def test_a_second_ctrl_c_ends_at_once_only_while_the_first_is_tidied_up(forever: bool) -> None:
    program = [sys.executable, "-c", TIDYING.replace("{forever}", str(forever))]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "tidying\n"
        if not forever:
            assert process.stdout.readline() == "behind\n"
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate()
    assert (process.returncode, said) == ((130, "") if forever else (0, "as ever\n"))
    assert ("ended at once" in errors) is forever


def test_a_job_in_the_background_stays_deaf() -> None:
    program = [sys.executable, "-c", TIDYING.replace("{forever}", "True").replace("600", "1")]

    program = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *program]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        os.kill(process.pid, signal.SIGINT)
        assert process.communicate()[0] == "behind\n"
    assert process.returncode == 0
