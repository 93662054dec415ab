"""A job has one outcome, after no more attempts than are allowed, however its workers end."""

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsearch.executor import attempts as module
from hwsearch.executor.attempts import Attempts
from hwsearch.executor.interface import Outcome

LIMIT = 10.0


class Clock:
    """The time that the module sees."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


def begin_next(attempts: Attempts[str, int, str], name: str) -> int:
    job = attempts.waiting.popleft()
    attempts.begin(name, job, "somewhere")
    return job.key


def end(attempts: Attempts[str, int, str], how: str, clock: Clock) -> None:
    """The only attempt that runs hangs, or its worker dies."""
    begin_next(attempts, "it")
    if how == "hang":
        clock.now += LIMIT
        assert attempts.end_overdue() == ["somewhere"]
    elif how == "die":
        attempts.lose(attempts.running.pop("it"), "a crash")
    else:
        attempts.lose_all("Ray died")


@pytest.mark.parametrize(
    ("ends", "reason", "seconds"),
    [
        (["hang", "hang"], "no answer within 10 s, 2 times", LIMIT),
        (["die", "die"], "its worker died 2 times; the last time: a crash", 0.0),
        (["hang", "die"], "its worker died or gave no answer 2 times; the last time: a crash", 0.0),
        (["die", "hang"], "its worker died or gave no answer 2 times; the last time: no answer within 10 s", LIMIT),
        (["die", "all"], "its worker died 2 times; the last time: Ray died", 0.0),
        (["die"], "its worker died once; the last time: a crash", 0.0),
    ],
)
def test_why_a_job_has_failed(monkeypatch: pytest.MonkeyPatch, ends: list[str], reason: str, seconds: float) -> None:
    clock, attempts = Clock(monkeypatch), Attempts[str, int, str](len(ends), LIMIT)
    attempts.submit(7, "seven")
    for how in ends:
        assert not attempts.outcomes
        end(attempts, how, clock)
    assert list(attempts.outcomes) == [Outcome(7, None, reason, len(ends), seconds, worker="")]
    assert not attempts.waiting
    assert not attempts.running


def test_only_attempts_out_of_time_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, attempts = Clock(monkeypatch), Attempts[str, int, str](2, LIMIT)
    assert attempts.seconds_left() is None
    for key in range(3):
        attempts.submit(key, "job")
    for name in "abc":
        begin_next(attempts, name)
        clock.now += 4.0
    assert attempts.seconds_left() == 0.0
    assert attempts.end_overdue() == ["somewhere"]
    assert (list(attempts.running), attempts.seconds_left()) == (["b", "c"], 2.0)
    assert [(job.key, job.attempts) for job in attempts.waiting] == [(0, 2)]


@given(st.integers(1, 4), st.integers(1, 12), st.integers(1, 5), st.data())
def test_every_job_has_one_outcome(most: int, jobs: int, workers: int, data: st.DataObject) -> None:
    """Whatever dies, also everything at once: after as many attempts as there were deaths, plus one for a job that succeeds."""
    attempts, names, deaths = Attempts[str, int, str](most, None), count(), dict.fromkeys(range(jobs), 0)
    for key in range(jobs):
        attempts.submit(key, "job")
    while attempts.waiting or attempts.running:
        assert (attempts.seconds_left(), attempts.end_overdue()) == (None, []), "there is no limit"
        while attempts.waiting and len(attempts.running) < workers:
            begin_next(attempts, str(next(names)))
        how, name = data.draw(st.sampled_from(["end", "die", "all"])), data.draw(st.sampled_from(list(attempts.running)))
        for job in [each.job for each in attempts.running.values()] if how == "all" else [attempts.running[name].job]:
            deaths[job.key] += how != "end"
        if how == "all":
            keys = [attempt.job.key for attempt in attempts.running.values() if attempt.job.attempts < most]
            attempts.lose_all("Ray died")
            assert [job.key for job in attempts.waiting][: len(keys)] == keys, "tried again in their order, before others"
        elif how == "die":
            attempts.lose(attempts.running.pop(name), "a crash")
        else:
            job = attempts.running.pop(name).job
            attempts.outcomes.append(Outcome(job.key, 1, None, job.attempts, 0.0, "here"))
    assert sorted(outcome.key for outcome in attempts.outcomes) == list(range(jobs))
    for outcome in attempts.outcomes:
        assert outcome.attempts == deaths[outcome.key] + (outcome.error is None)
        assert outcome.attempts <= most
        assert outcome.error is None or outcome.attempts == most
