"""One Ray for several executors in a row; in a file of its own, where no other test's Ray is up."""

import os
from collections.abc import Callable

from hwsearch.executor import RayExecutor, ray_session, run_jobs


def where(_: int) -> int:
    return os.getpid()


def make_where() -> Callable[[int], int]:
    return where


def test_one_session_of_ray_serves_several_executors_and_ends_with_them() -> None:
    import ray

    with ray_session(1, None):
        assert ray.is_initialized()
        found = []
        for _ in range(2):
            with RayExecutor(make_where, workers=1) as executor:
                found += [outcome.result for outcome in run_jobs(executor, [0, 1])]
            assert ray.is_initialized()
        with ray_session(1, None):  # one that is there is used, and left to its owner
            pass
        assert ray.is_initialized()
    assert not ray.is_initialized()
    assert found[0] == found[1] != found[2] == found[3]
    assert os.getpid() not in found
