"""One Ray for several executors in a row; in a file of its own, where no other test's Ray is up."""

import errno
import os
import signal
import threading
from collections.abc import Callable

import pytest

from hwsearch.errors import UserError
from hwsearch.executor import RayExecutor, ray_session, run_jobs, session
from hwsearch.executor.session import is_up
from hwsearch.experiment import WorkersConfig


def where(_: int) -> int:
    return os.getpid()


def make_where() -> Callable[[int], int]:
    return where


def make_resources() -> Callable[[str], float]:
    import ray

    found = ray.cluster_resources()
    return lambda name: float(found[name])


def test_one_session_of_ray_serves_several_executors_and_ends_with_them() -> None:
    with ray_session(2, WorkersConfig()):
        assert not is_up()  # until there is a job
        found: list[int | None] = []
        for _ in range(2):
            with RayExecutor(make_where, workers=1) as executor:
                found += [outcome.result for outcome in run_jobs(executor, [0, 1])]
            assert is_up()
        with RayExecutor(make_resources, workers=1) as executor:
            assert [outcome.result for outcome in run_jobs(executor, ["CPU"])] == [2.0]
        with ray_session(2, WorkersConfig()):  # one that is there is used, and left to its owner
            pass
        assert is_up()
    assert not is_up()
    assert found[0] == found[1] != found[2] == found[3]
    assert os.getpid() not in found


def test_an_interrupt_as_ray_starts_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    start = session._start_here

    def interrupted(cores: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        start(cores)
        started.append(is_up())

    started: list[bool] = []
    with monkeypatch.context() as patch:
        patch.setattr(session, "_start_here", interrupted)
        with RayExecutor(make_where, workers=1) as executor, pytest.raises(KeyboardInterrupt):
            executor.submit(0, 1)
    assert started == [True]  # whole, before anyone hears of it
    assert not is_up()
    for thread in [thread for thread in threading.enumerate() if thread.name == "Ray"]:
        thread.join(10.0)
        assert not thread.is_alive()
    with RayExecutor(make_resources, workers=3) as executor:
        assert [outcome.result for outcome in run_jobs(executor, ["CPU"])] == [3.0]


def test_what_ends_the_thread_that_starts_ray_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(_: int) -> None:
        raise SystemExit(7)

    monkeypatch.setattr(session, "_start_here", leave)
    with RayExecutor(make_where, workers=1) as executor, pytest.raises(SystemExit):
        executor.submit(0, 1)


LATE = "The current node timed out during startup."
NO_PLACE = (
    "Read-only file system); wanted room and the right to write for its token in the home folder (HOME names another one) and "
    "for its files (RAY_TMPDIR names another folder for them), or --workers 0"
)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError(f"{LATE}\nIt is busy."), f"RuntimeError: {LATE} It is busy.); --workers 0 does without"),
        (OSError(errno.EROFS, "Read-only file system", "/home/me/.ray"), f"/home/me/.ray: {NO_PLACE}"),
        (OSError(errno.EROFS, "Read-only file system"), f"its files: {NO_PLACE}"),
    ],
)
def test_a_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    import ray

    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", fail)
    with RayExecutor(make_where, workers=1) as executor, pytest.raises(UserError) as refused:
        executor.submit(0, 1)
    assert str(refused.value) == f"Ray cannot be started on this machine ({message}"
