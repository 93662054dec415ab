"""Ctrl-C stops the one that waits, and leaves those that work to it."""

import signal
import subprocess
import sys
import threading

import pytest

from hwsearch.data.interrupts import deaf_to_interrupts

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
