"""Workers on Ray that hang, die and are killed; the local Ray itself killed."""

import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from hwsearch.errors import UserError
from hwsearch.executor import LocalExecutor, RayExecutor, actors, health, ray_session, run_jobs
from hwsearch.experiment import Fidelity, WorkersConfig
from hwsearch.search.scoring import ScoringJob
from hwsearch.separator.configuration import Configuration
from tests.search.synthetic import essence, make_experiment, make_scorer, search
from tests.sockets import descendants, is_loopback, listening, named

HANG, DIE, HANG_THEN_DIE, DIE_ONCE, GIVE_UP = -1, -2, -3, -4, -5
ONE_HOUR = 3600.0


def work(number: int, folder: Path, seconds: float) -> int:
    marker = folder / f"tried-{number}"
    first = not marker.exists()
    marker.touch()
    if number == HANG or (number == HANG_THEN_DIE and first):
        time.sleep(ONE_HOUR)
    if number in (DIE, HANG_THEN_DIE) or (number == DIE_ONCE and first):
        os._exit(1)
    if number == GIVE_UP:
        raise UserError("the base is gone")
    time.sleep(seconds)
    return number**2


def make_work(folder: Path, seconds: float = 0.0) -> Callable[[int], int]:
    return partial(work, folder=folder, seconds=seconds)


def make_lookup() -> Callable[[str], str | float]:
    import ray

    found = ray.get_runtime_context().get_assigned_resources() | os.environ
    return lambda name: found[name]


def make_nothing(how: str) -> Callable[[int], int]:
    if how == "hang":
        time.sleep(ONE_HOUR)
    if how == "exit":
        os._exit(1)
    raise (UserError if how == "user" else RuntimeError)("no base\nhere")


def submit_any(executor: RayExecutor[ScoringJob, Mapping[str, float]]) -> None:
    executor.submit(0, ScoringJob(Configuration.of({"x.weight": 8, "mask_head.output": 8}), Fidelity.POST_TRAINING))


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    """One Ray for all that leave it alive."""
    with ray_session(2, WorkersConfig()):
        yield


def test_jobs_that_hang_or_die_end_after_their_attempts_and_others_go_on(tmp_path: Path) -> None:
    each, jobs = WorkersConfig(time_limit_s=1.0), [1, HANG, 2, DIE, 3, HANG_THEN_DIE, DIE_ONCE, 4]
    with RayExecutor(partial(make_work, tmp_path), workers=2, max_attempts=2, each=each) as executor:
        outcomes = {jobs[outcome.key]: outcome for outcome in run_jobs(executor, jobs)}
    assert {job: outcomes[job].result for job in (1, 2, 3, 4, DIE_ONCE)} == {1: 1, 2: 4, 3: 9, 4: 16, DIE_ONCE: DIE_ONCE**2}
    assert (outcomes[HANG].error, outcomes[HANG].seconds) == ("no answer within 1 s, 2 times", 1.0)
    assert str(outcomes[DIE].error).startswith("its worker died 2 times; the last time: ActorDiedError: ")
    assert str(outcomes[HANG_THEN_DIE].error).startswith("its worker died or gave no answer 2 times; the last time: ActorDiedE")
    assert [outcomes[job].attempts for job in (1, HANG, DIE, HANG_THEN_DIE, DIE_ONCE)] == [1, 2, 2, 2, 2]


def test_a_user_error_on_a_worker_arrives_as_itself_and_the_worker_goes_on(tmp_path: Path) -> None:
    with RayExecutor(partial(make_work, tmp_path), workers=1) as executor:
        executor.submit(0, GIVE_UP)
        with pytest.raises(UserError, match=r"^the base is gone$"):
            executor.next_outcome()
        executor.submit(1, 3)
        assert executor.next_outcome().result == 9


def test_a_time_limit_begins_when_the_job_does(tmp_path: Path) -> None:
    """Not when it is queued, nor while its worker starts."""
    each = WorkersConfig(time_limit_s=1.0)
    with RayExecutor(partial(make_work, tmp_path, 0.3), workers=1, max_attempts=1, each=each) as executor:
        for number in range(6):
            executor.submit(number, number)
        assert [executor.next_outcome().result for _ in range(6)] == [0, 1, 4, 9, 16, 25]


def test_a_worker_killed_at_any_moment_loses_no_job(tmp_path: Path) -> None:
    results: list[int | None] = []
    with RayExecutor(partial(make_work, tmp_path, 0.05), workers=2, max_attempts=5) as executor:
        for outcome in run_jobs(executor, range(40)):
            results.append(outcome.result)
            if outcome.key in (3, 11, 25):
                with suppress(ProcessLookupError):  # the kill before may have hit the same one
                    os.kill(int(outcome.worker.rpartition(":")[2]), signal.SIGKILL)
    assert sorted(result for result in results if result is not None) == [number**2 for number in range(40)]


def test_what_becomes_of_workers_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "REMIND_SECONDS", 0.0)
    each = WorkersConfig(time_limit_s=1.0)
    with (
        caplog.at_level(logging.DEBUG, logger="hwsearch"),
        RayExecutor(partial(make_work, tmp_path), workers=1, max_attempts=2, each=each) as executor,
    ):
        list(run_jobs(executor, [1, HANG, DIE, 2]))
    lines = [re.sub(r"\w{8}\)|\(ActorDiedError: .*?\);|^starting Ray$", "", line) for line in caplog.messages]
    place = f"a worker on node {os.uname().nodename} ("
    assert [line for line in lines if line.startswith(place)] == [
        f"{place}: no answer within 1 s; another one is started, and its job 1 is tried again, attempt 2 of 2",
        f"{place}: no answer within 1 s; another one is started, and its job 1 has failed",
        f"{place}: died  another one is started, and its job 2 is tried again, attempt 2 of 2",
        f"{place}: died  another one is started, and its job 2 has failed",
    ]
    ready = [line[0] for line in caplog.messages if line.endswith(" of 1 workers are ready")]
    assert "".join(ready).endswith("1" + 4 * "01")


def test_an_idle_worker_that_does_not_answer_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors, "ANSWER_SECONDS", 1.0)
    with RayExecutor(partial(make_work, tmp_path), workers=1) as executor:
        executor.submit(0, 2)
        stopped = int(executor.next_outcome().worker.rpartition(":")[2])
        time.sleep(actors.RESTED_SECONDS)
        os.kill(stopped, signal.SIGSTOP)
        executor.submit(1, 3)
        outcome = executor.next_outcome()
    assert (outcome.result, outcome.attempts) == (9, 1)
    assert not outcome.worker.endswith(f":{stopped}")


@pytest.mark.parametrize("pause", [pytest.param(0.0, marks=pytest.mark.slow), 2.0])
def test_workers_that_die_idle_cost_no_job_its_attempts(tmp_path: Path, pause: float) -> None:
    """At once the first job may find out; the others are asked from then on."""
    with RayExecutor(partial(make_work, tmp_path, 0.2), workers=2, max_attempts=2) as executor:
        outcomes = [*run_jobs(executor, range(8))]
        for process in {int(outcome.worker.rpartition(":")[2]) for outcome in outcomes}:
            os.kill(process, signal.SIGKILL)
        time.sleep(pause)
        (outcome,) = run_jobs(executor, [7])
    assert (outcome.result, outcome.error) == (49, None)
    assert outcome.attempts == 1 or not pause


def test_a_worker_gets_what_the_experiment_says() -> None:
    each = WorkersConfig(cpus=2, memory_bytes=10_000_000)
    with RayExecutor(make_lookup, workers=1, each=each) as executor:
        found = [outcome.result for outcome in run_jobs(executor, ["CPU", "memory", "OMP_NUM_THREADS", "MKL_NUM_THREADS"])]
    assert found == [2.0, 10_000_000, "2", "2"]
    with RayExecutor(make_lookup, workers=2, each=WorkersConfig(cpus=0.5)) as executor:
        assert [outcome.result for outcome in run_jobs(executor, ["CPU", "OMP_NUM_THREADS"])] == [0.5, "1"]


@pytest.mark.parametrize(("each", "key"), [(WorkersConfig(memory_bytes=2**50), "memory_bytes"), (WorkersConfig(gpus=64), "gpus")])
def test_more_than_the_machine_has_is_refused(each: WorkersConfig, key: str) -> None:
    message = rf"^workers\.{key} is .*; Ray has .* here: wanted at most that$"
    with RayExecutor(make_scorer, workers=1, each=each) as executor, pytest.raises(UserError, match=message):
        submit_any(executor)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("user", r"^no base\nhere$"),
        ("bug", "^a worker cannot start: RuntimeError: no base here$"),
        (
            "exit",
            r"^workers die at their start, 2 times in a row, the last on node \S+ \(\w{8}\): ActorDiedError: .*; run the same",
        ),
    ],
)
def test_work_that_cannot_be_built_is_one_line(how: str, message: str) -> None:
    with RayExecutor(partial(make_nothing, how), workers=1, max_attempts=2) as executor:
        executor.submit(0, 1)
        with pytest.raises(UserError, match=message):
            executor.next_outcome()


def test_workers_that_hang_as_they_start_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with RayExecutor(partial(make_nothing, "hang"), workers=2) as executor:
        executor.submit(0, 1)
        while not executor._actors.placed:
            time.sleep(0.1)
        monkeypatch.setattr(health, "PATIENCE_SECONDS", 1.0)
        with pytest.raises(
            UserError, match=r"^no worker on this machine for \d+ s: [12] start and do not get ready; run the same"
        ):
            executor.next_outcome()


def test_a_full_disk_under_ray_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray.exceptions import OutOfDiskError

    def full(_: object) -> None:
        raise OutOfDiskError

    monkeypatch.setattr(ray, "put", full)
    message = r"^Ray has no room for what workers read \(OutOfDiskError: .*; make room, and run the same"
    with RayExecutor(make_scorer, workers=1) as executor, pytest.raises(UserError, match=message):
        submit_any(executor)


def test_one_worker_searches_as_this_process_does(tmp_path: Path) -> None:
    experiment = make_experiment(24)
    with RayExecutor(make_scorer, workers=1) as executor:
        search(tmp_path / "ray", experiment, executor)
    search(tmp_path / "local", experiment, LocalExecutor(make_scorer))
    assert essence(tmp_path / "ray") == essence(tmp_path / "local")


def test_nobody_else_can_reach_ray(tmp_path: Path) -> None:
    with RayExecutor(partial(make_work, tmp_path), workers=2) as executor:
        list(run_jobs(executor, range(4)))
        found = listening(descendants(os.getpid()))
    assert len(set(found.values())) >= 3  # the head, the node, workers
    assert [address for address in found if not is_loopback(address[0])] == []


def test_a_local_ray_whose_node_is_killed_is_started_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The last of this file: it kills the Ray of the session."""
    with RayExecutor(partial(make_work, tmp_path, 0.2), workers=2) as executor:
        outcomes = []
        for outcome in run_jobs(executor, range(12)):
            outcomes.append(outcome)
            if len(outcomes) == 3:
                (killed,) = named(os.getpid(), "raylet")
                os.kill(killed, signal.SIGKILL)
    assert sorted((outcome.key, outcome.result) for outcome in outcomes) == [(number, number**2) for number in range(12)]
    assert capfd.readouterr().out == ""
