"""Ctrl-C and SIGTERM on a search: once ends it in good order, twice at once; neither leaves processes behind."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

import pytest

from hwsearch.process.interrupts import AGAIN, CODES, checkpoint, interrupts_heard, interrupts_held, pause, stop_code
from hwsearch.search.log import LOG_FILE
from hwsearch.search.record import RECORD_FILE
from tests.sockets import descendants
from tests.tiny import HWSEARCH, Tiny, hwsearch, read_events, write_tiny

PATIENCE_SECONDS = 120

TIDYING = """
import sys, time
from hwsearch.process.interrupts import interrupts_heard, pause, stop_code
with interrupts_heard():
    try:
        print("working", flush=True)
        pause(600)
    except KeyboardInterrupt:
        print("tidying", flush=True)
        if {forever}:
            time.sleep(600)
        print("tidy", stop_code(), flush=True)
try:
    print("behind", flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    print("as ever", flush=True)
"""

BUSY = """
import hwsearch.process.interrupts
from hwsearch.process.interrupts import checkpoint, interrupts_heard
hwsearch.process.interrupts.PATIENCE_SECONDS = 0.5
with interrupts_heard():
    print("working", flush=True)
    {work}
"""
"""Work that never comes to a checkpoint."""

SERIALISING = """
from datetime import datetime
from pydantic import BaseModel, field_serializer
from hwsearch.process.interrupts import checkpoint, interrupts_heard
import signal
class Entry(BaseModel):
    number: int
    @field_serializer("number")
    def write(self, value: int) -> int:
        signal.raise_signal({number})
        return value
with interrupts_heard():
    try:
        said = Entry(number=7).model_dump_json()
        while True:
            checkpoint()
    except KeyboardInterrupt:
        print(said)
"""


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


def start(script: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script], stdout=-1, stderr=-1, text=True)


def wait_for_candidates(driver: subprocess.Popen[str], folder: Path, count: int = 3) -> None:
    """Until the driver has added so many events to the record."""
    before = len(read_events(folder))
    while len(read_events(folder)) < before + count:
        assert driver.poll() is None, driver.stderr.read()
        time.sleep(0.05)


def read_until(stream: IO[str], wanted: str) -> str:
    """The lines before one."""
    lines: list[str] = []
    while (line := stream.readline()) != wanted:
        assert line, "".join(lines)
        lines.append(line)
    return "".join(lines)


@pytest.mark.parametrize("everybody", [pytest.param(False, marks=pytest.mark.slow), True])
def test_sigterm_ends_a_search_on_ray_as_ctrl_c_does(copied: Tiny, everybody: bool) -> None:
    """Also where all processes get it at once, as from systemd, and in a job that is deaf to Ctrl-C."""
    command = [HWSEARCH, "search", copied.file, "--runs-dir", copied.runs, "--trials", "5000", "--workers", "1"]
    deaf = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]
    with subprocess.Popen([*deaf, *map(str, command)], stderr=subprocess.PIPE, text=True) as driver:
        wait_for_candidates(driver, copied.folder)
        started = descendants(driver.pid)
        for process in (driver.pid, *(sorted(started - {driver.pid}) if everybody else ())):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
        said = driver.communicate()[1].splitlines()
    assert driver.returncode == 143, said
    # The line of progress, which has no end, is ended by one of the two notes: whichever comes first.
    *_, stopping, note = (line for line in said if line)
    assert stopping == "stopping; send it again to end at once"
    assert "run the same command again to continue in" in note
    assert "interrupted: " in (copied.folder / LOG_FILE).read_text().splitlines()[-1]
    assert wait_until_gone(started) == set()


@pytest.mark.parametrize("seconds", [1.0, pytest.param(2.5, marks=pytest.mark.slow)])
def test_sigterm_as_ray_starts_ends_in_good_order(copied: Tiny, seconds: float) -> None:
    """There is a moment at which Ray prints its stack first."""
    command = [HWSEARCH, "search", copied.file, "--runs-dir", copied.runs, "--trials", "5000", "--workers", "1"]
    with subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True) as driver:
        said = read_until(driver.stderr, "starting Ray\n")
        time.sleep(seconds)
        driver.send_signal(signal.SIGTERM)
        started: set[int] = set()
        while driver.poll() is None:
            started |= descendants(driver.pid)
            time.sleep(0.05)
        said += driver.communicate()[1]
    assert len(started) > 1
    assert driver.returncode == 143, said
    assert "run the same command again to continue in" in said.splitlines()[-1]
    assert wait_until_gone(started) == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupts_are_held_to_the_end_of_what_must_not_be_left(number: signal.Signals) -> None:
    reached = []

    @interrupts_held()
    def work() -> None:
        signal.raise_signal(number)
        time.sleep(0.1)
        reached.append(stop_code())

    before = signal.getsignal(number)
    with interrupts_heard():
        heard = signal.getsignal(number)
        with pytest.raises(KeyboardInterrupt):
            work()
        assert signal.getsignal(number) is heard
        checkpoint()  # a signal ends what is done once; it is tidied up undisturbed
        pause(0.0)
    assert signal.getsignal(number) is before
    assert reached == [143 if number is signal.SIGTERM else 130]
    with interrupts_held():
        reached.append(0)
    assert reached[1:] == [0]


def test_without_the_command_line_interrupts_are_held_too() -> None:
    reached = []

    @interrupts_held()
    def work() -> None:
        signal.raise_signal(signal.SIGINT)
        reached.append(0)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == [0]
    pause(0.0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_does_not_raise_where_it_comes(number: signal.Signals) -> None:
    """An exception in what a native library calls becomes one of its own, and the entry is lost."""
    script = SERIALISING.replace("{number}", str(int(number)))
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, '{"number":7}\n'), ended.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "work",
    [
        "import ctypes; mutex = ctypes.create_string_buffer(64); [ctypes.CDLL(None).pthread_mutex_lock(mutex) for _ in range(2)]",
        "while True: pass",
    ],
    ids=["native", "python"],
)
@pytest.mark.parametrize("signals", [1, 2])
def test_work_that_comes_to_no_checkpoint_is_ended(work: str, number: signal.Signals, signals: int) -> None:
    patience = "0.5" if signals == 1 else "600"
    with start(BUSY.replace("{work}", work).replace("0.5", patience)) as process:
        assert process.stdout.readline() == "working\n"
        process.send_signal(number)
        read_until(process.stderr, f"stopping; {AGAIN[number]} to end at once\n")
        if signals == 2:
            process.send_signal(number)
        errors = process.communicate(timeout=PATIENCE_SECONDS)[1]
    assert process.returncode == CODES[number]
    assert errors.splitlines()[-1] == "hwsearch: ended at once; the same command goes on where it stopped"


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_what_a_library_makes_of_signals_is_undone(handler: signal.Handlers) -> None:
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with interrupts_held():
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_sigterm_ends_also_where_nobody_reads_what_is_said() -> None:
    with start(TIDYING.replace("{forever}", "True")) as process:
        process.stderr.close()
        for line in ("working\n", "tidying\n"):
            assert process.stdout.readline() == line
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE_SECONDS) == 143


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once_while_the_first_is_tidied_up(number: signal.Signals) -> None:
    with start(TIDYING.replace("{forever}", "True")) as process:
        for line in ("working\n", "tidying\n"):
            assert process.stdout.readline() == line
            process.send_signal(number)
        said, errors = process.communicate()
    assert (process.returncode, said) == (CODES[number], "")
    assert "ended at once" in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_behind_the_command_signals_are_as_ever(number: signal.Signals) -> None:
    with start(TIDYING.replace("{forever}", "False")) as process:
        assert process.stdout.readline() == "working\n"
        process.send_signal(number)
        for line in ("tidying\n", f"tidy {CODES[number]}\n", "behind\n"):
            assert process.stdout.readline() == line
        process.send_signal(number)
        said, errors = process.communicate()
    assert (process.returncode, said) == ((0, "as ever\n") if number is signal.SIGINT else (-signal.SIGTERM, ""))
    assert "ended at once" not in errors


def test_sigterm_ends_what_was_forked_and_ctrl_c_does_not() -> None:
    """For Ctrl-C its parent ends it: one that ended by itself would be missed there."""
    script = (
        "import os, time\n"
        "from hwsearch.process.interrupts import interrupts_heard\n"
        "with interrupts_heard():\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        time.sleep(600)\n"
        "    time.sleep(0.5)\n"
        "    os.kill(child, 2)\n"
        "    time.sleep(0.2)\n"
        "    os.kill(child, 15)\n"
        "    print(os.WTERMSIG(os.waitpid(child, 0)[1]))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.stderr) == ("15\n", "")


def test_sigterm_ends_a_build_of_data_in_one_line(tmp_path: Path) -> None:
    command = [HWSEARCH, "data", "build", write_tiny(tmp_path / "tiny.toml"), "--runs-dir", tmp_path / "runs"]
    with subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True) as builder:
        assert builder.stderr.readline().startswith("rooms and mixtures: ")
        builder.send_signal(signal.SIGTERM)
        said = builder.communicate()[1]
    assert builder.returncode == 143
    assert said.splitlines()[-1] == "hwsearch: interrupted; the same command goes on where it stopped"
    assert "Traceback" not in said


@pytest.mark.parametrize("presses", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_ctrl_c_ends_a_search_on_ray_which_then_goes_on(copied: Tiny, presses: int) -> None:
    """A second one that comes when all is tidied up finds nothing left to do."""
    command = ["search", str(copied.file), "--runs-dir", str(copied.runs), "--trials", "5000"]
    with subprocess.Popen([HWSEARCH, *command, "--workers", "1"], stderr=subprocess.PIPE, text=True) as driver:
        wait_for_candidates(driver, copied.folder)
        started = descendants(driver.pid)
        assert len(started) > 1
        driver.send_signal(signal.SIGINT)
        said = read_until(driver.stderr, "stopping; press Ctrl-C again to end at once\n")
        if presses == 2:
            driver.send_signal(signal.SIGINT)
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


def test_a_job_in_the_background_stays_deaf() -> None:
    program = [sys.executable, "-c", TIDYING.replace("{forever}", "True").replace("600", "1")]

    program = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *program]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "working\n"
        os.kill(process.pid, signal.SIGINT)
        assert process.communicate()[0] == "behind\n"
    assert process.returncode == 0
