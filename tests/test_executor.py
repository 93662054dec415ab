import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from hwsearch.errors import UserError
from hwsearch.executor import LocalExecutor, RayExecutor, run_jobs


def make_square(offset: int = 0) -> Callable[[int], int]:
    def square(number: int) -> int:
        if number < 0:
            raise ValueError(f"{number} is\nnegative")
        return number**2 + offset

    return square


def test_local_jobs_come_back_in_order_with_their_keys() -> None:
    with LocalExecutor(partial(make_square, 1)) as executor:
        outcomes = list(run_jobs(executor, [3, -1, 4]))
    assert [(outcome.key, outcome.result, outcome.error) for outcome in outcomes] == [
        (0, 10, None),
        (1, None, "ValueError: -1 is negative"),
        (2, 17, None),
    ]
    assert outcomes[0].worker.endswith(f":{os.getpid()}")


def test_what_a_job_says_can_be_written() -> None:
    """Names of files may hold bytes that are no text."""

    def work(number: int) -> int:
        raise OSError(f"{number}: no such file: caf\udce9.wav")

    with LocalExecutor(lambda: work) as executor:
        assert [outcome.error for outcome in run_jobs(executor, [1])] == ["OSError: 1: no such file: caf\\udce9.wav"]


def test_the_work_is_built_once_and_not_before_the_first_job() -> None:
    built = []

    def factory() -> Callable[[int], int]:
        built.append(True)
        return make_square()

    with LocalExecutor(factory) as executor:
        assert built == []
        list(run_jobs(executor, range(5)))
    assert built == [True]


def test_waiting_for_nothing_is_an_error() -> None:
    with LocalExecutor(make_square) as executor, pytest.raises(LookupError):
        executor.next_outcome()


def test_a_user_error_of_a_job_concerns_every_job() -> None:
    def factory() -> Callable[[int], int]:
        raise UserError("no base there")

    with LocalExecutor(factory) as executor, pytest.raises(UserError, match="no base there"):
        list(run_jobs(executor, [1]))


def hang_in_python(number: int) -> int:
    while number == 0:
        try:
            time.sleep(0.01)
        except Exception:  # noqa: BLE001, S112 (a job may well do this)
            continue
    return number


def test_a_job_in_this_process_that_hangs_is_ended_by_an_alarm() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with LocalExecutor(lambda: hang_in_python, max_attempts=2, time_limit_s=0.2) as executor:
        outcomes = list(run_jobs(executor, [1, 0, 2]))
    assert [(outcome.result, outcome.error, outcome.attempts) for outcome in outcomes] == [
        (1, None, 1),
        (None, "no answer within 0.2 s, 2 times", 2),
        (2, None, 1),
    ]
    assert (signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)) == (before, (0.0, 0.0))


def test_an_alarm_that_is_due_as_the_job_ends_harms_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before, set_timer = signal.getsignal(signal.SIGALRM), signal.setitimer

    def ring_first(which: int, seconds: float, interval: float = 0.0) -> None:
        if not seconds:
            signal.raise_signal(signal.SIGALRM)
        set_timer(which, seconds, interval)

    monkeypatch.setattr(signal, "setitimer", ring_first)
    with LocalExecutor(make_square, max_attempts=1, time_limit_s=60.0) as executor:
        (outcome,) = run_jobs(executor, [3])
    assert (outcome.result, outcome.error) == (9, None)
    assert (signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)) == (before, (0.0, 0.0))


def test_a_time_limit_without_ray_wants_the_main_thread() -> None:
    with ThreadPoolExecutor() as threads, pytest.raises(UserError, match="works in the main thread only"):
        threads.submit(partial(LocalExecutor, make_square, time_limit_s=1.0)).result()


def test_an_address_without_a_cluster_is_refused() -> None:
    with pytest.raises(UserError, match=r"no Ray cluster answers at '127\.0\.0\.1:1'"):
        RayExecutor(make_square, workers=1, ray_address="127.0.0.1:1").submit(0, 1)
