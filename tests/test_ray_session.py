"""One Ray for several executors in a row; in a file of its own, where no other test's Ray is up."""

import os
from collections.abc import Callable

import pytest

from hwsearch.errors import UserError
from hwsearch.executor import RayExecutor, ray_session, run_jobs
from hwsearch.executor.ray_session import is_up


def where(_: int) -> int:
    return os.getpid()


def make_where() -> Callable[[int], int]:
    return where


def make_resources() -> Callable[[str], float]:
    import ray

    found = ray.cluster_resources()
    return lambda name: float(found[name])


def test_one_session_of_ray_serves_several_executors_and_ends_with_them() -> None:
    with ray_session(2):
        assert not is_up()  # until there is a job
        found: list[int | None] = []
        for _ in range(2):
            with RayExecutor(make_where, workers=1) as executor:
                found += [outcome.result for outcome in run_jobs(executor, [0, 1])]
            assert is_up()
        with RayExecutor(make_resources, workers=1) as executor:
            assert [outcome.result for outcome in run_jobs(executor, ["CPU"])] == [2.0]
        with ray_session(2):  # one that is there is used, and left to its owner
            pass
        assert is_up()
    assert not is_up()
    assert found[0] == found[1] != found[2] == found[3]
    assert os.getpid() not in found


def test_a_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def late(**_: object) -> None:
        raise RuntimeError("The current node timed out during startup.\nThis could happen because it is busy.")

    monkeypatch.setattr(ray, "init", late)
    with RayExecutor(make_where, workers=1) as executor, pytest.raises(UserError) as refused:
        executor.submit(0, 1)
    assert str(refused.value) == (
        "Ray cannot be started on this machine (RuntimeError: The current node timed out during startup. This could happen "
        "because it is busy.); --workers 0 does without"
    )
