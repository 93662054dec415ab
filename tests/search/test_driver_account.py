"""What drivers say of themselves: begin, steps, end; and what a kill or a full disk leaves of it."""

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hwsearch.errors import UserError
from hwsearch.files.journal import Journal
from hwsearch.search import driver_account as drivers
from hwsearch.search.driver_account import DRIVERS_FILE, DriverAccount, Step, driver_account, read_sessions
from hwsearch.search.progress import How
from hwsearch.search.record import LOCK_FILE, FolderLock, lock_holder


def begin_and_die(folder: Path) -> None:
    with Journal(folder / DRIVERS_FILE, "what drivers have said", sealed=False) as journal:
        DriverAccount(journal)


def test_a_driver_says_when_it_began_what_it_does_and_how_it_ended(tmp_path: Path) -> None:
    before = datetime.now(UTC)
    with driver_account(tmp_path) as account:
        account.step(Step.DATA, 3, 12)
        (session,) = read_sessions(tmp_path)
        assert (session.process, session.searching, session.scoring, session.ended) == (str(os.getpid()), None, None, None)
        assert session.step is not None
        assert (session.step.step, session.step.done, session.step.total) == (Step.DATA, 3, 12)
        account.step(Step.PREPARATION)
        account.step(Step.SENSITIVITIES, 0, 50)
        account.step(Step.SENSITIVITIES, 25, 50)
        account.step(Step.CANDIDATES)
    (session,) = read_sessions(tmp_path)
    assert session.searching is not None
    assert session.scoring is not None
    assert session.ended is not None
    assert (session.ended.how, session.ended.reason) == (How.FINISHED, "finished")
    times = [before, session.began, session.searching, session.scoring, session.ended.time, datetime.now(UTC)]
    assert times == sorted(times)
    with driver_account(tmp_path):
        pass
    assert len(read_sessions(tmp_path)) == 2


def test_a_step_is_said_a_hundred_times_at_most(tmp_path: Path) -> None:
    with driver_account(tmp_path) as account:
        for done in range(100_001):
            account.step(Step.SENSITIVITIES, done, 100_000)
    assert len((tmp_path / DRIVERS_FILE).read_text().splitlines()) <= 103
    assert read_sessions(tmp_path)[0].step is not None


@pytest.mark.parametrize(
    ("error", "how", "reason"),
    [
        (KeyboardInterrupt(), How.INTERRUPTED, "interrupted by Ctrl-C or SIGTERM"),
        (UserError("no base\nthere, postgresql://me:secret@host"), How.ERROR, "no base there, postgresql://***@host"),
        (OSError("caf\udce9"), How.ERROR, "OSError: caf\\udce9"),
    ],
)
def test_what_ends_a_driver_is_said(tmp_path: Path, error: BaseException, how: How, reason: str) -> None:
    with pytest.raises(type(error)), driver_account(tmp_path):
        raise error
    (session,) = read_sessions(tmp_path)
    assert session.ended is not None
    assert (session.ended.how, session.ended.reason) == (how, reason)


def test_only_the_first_end_counts_even_if_the_program_then_ends_with_a_code(tmp_path: Path) -> None:
    with suppress(SystemExit), driver_account(tmp_path) as account:
        account.end(How.HOURS, "it is late")
        sys.exit(130)
    (session,) = read_sessions(tmp_path)
    assert session.ended is not None
    assert (session.ended.how, session.ended.reason) == (How.HOURS, "it is late")


def test_half_a_line_and_lines_of_other_versions_are_left_out(tmp_path: Path) -> None:
    begin_and_die(tmp_path)
    with (tmp_path / DRIVERS_FILE).open("ab") as stream:
        stream.write(b'{"event":"slept"}\n{"event":"step","step":"tea","time":"2030-01-01T00:00:00Z"}\n{"event":"sta')
    with driver_account(tmp_path):
        pass
    first, second = read_sessions(tmp_path)
    assert (first.ended, first.step) == (None, None)
    assert second.ended is not None
    assert read_sessions(tmp_path / "nowhere") == ()


def test_a_driver_elsewhere_is_named_with_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin_and_die(tmp_path)
    here = socket.gethostname()
    monkeypatch.setattr(drivers.socket, "gethostname", lambda: "elsewhere")
    assert read_sessions(tmp_path)[0].process == f"{os.getpid()} on {here}"


def test_an_account_that_cannot_be_written_ends_the_driver_in_one_line(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(UserError, match=r"drivers\.jsonl: cannot be written \(File too large\)"):
            begin_and_die(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("put", "said"), [(Path.mkdir, "is a folder"), (os.mkfifo, "is a pipe")])
def test_what_is_no_file_in_the_accounts_place_is_named(tmp_path: Path, put: Callable[[Path], None], said: str) -> None:
    put(tmp_path / DRIVERS_FILE)
    for use in (read_sessions, begin_and_die):
        with pytest.raises(UserError, match=rf"drivers\.jsonl: {said}; wanted what drivers have said"):
            use(tmp_path)


def test_a_pipe_in_the_locks_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / LOCK_FILE)
    assert lock_holder(tmp_path) is None


def test_a_child_that_outlives_a_driver_does_not_hold_its_folder(tmp_path: Path) -> None:
    program = (
        "import os, sys, time; from pathlib import Path; from hwsearch.search.record import FolderLock\n"
        "lock = FolderLock(Path(sys.argv[1]))\n"
        "child = os.fork()\n"
        "if not child: print(flush=True); time.sleep(600)\n"
        "sys.stdin.read(); print(child, flush=True); os._exit(9)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        driver.stdout.readline()
        assert lock_holder(tmp_path) is not None
        assert driver.stdin is not None
        driver.stdin.close()
        child = int(driver.stdout.readline())
        driver.wait()
        try:
            with FolderLock(tmp_path):
                pass
        finally:
            os.kill(child, 9)


@pytest.mark.parametrize(
    "line",
    [
        b'{"event":"ended","how":"error","reason":"x","time":"yesterday"}',
        b'{"event":"ended","how":"error","reason":"x","time":"2030-01-01T00:00:00"}',
        b'{"event":"ended","how":"error","reason":"x","time":"0001-01-01T00:00:00+14:00"}',
        b'{"event":"ended","how":"error","reason":"x","time":1e999}',
        b'{"event":"step","step":"candidates","done":-1,"time":"2030-01-01T00:00:00Z"}',
        b'{"event":"step","step":"candidates","done":1e30,"time":"2030-01-01T00:00:00Z"}',
        b'{"event":"step","step":[[]],"time":"2030-01-01T00:00:00Z"}',
        b'{"event":"began","process":' + b"9" * 5000 + b',"host":"x","time":"2030-01-01T00:00:00Z"}',
        b'{"event":"began","process":1,"host":"\xff","time":"2030-01-01T00:00:00Z"}',
        b"[" * 5000,
        b"\0\0",
    ],
)
def test_a_line_of_nonsense_is_left_out(tmp_path: Path, line: bytes) -> None:
    with driver_account(tmp_path) as account:
        account.step(Step.DATA)
    before = read_sessions(tmp_path)
    with (tmp_path / DRIVERS_FILE).open("ab") as stream:
        stream.write(line + b"\n")
    assert read_sessions(tmp_path) == before
