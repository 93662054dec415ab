"""Budgets: when a search asks for no more, and that they change nothing else."""

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from hwsearch.executor import LocalExecutor
from hwsearch.experiment import Experiment, Fidelity
from hwsearch.search.driver import Task, run_search
from hwsearch.search.identity import search_digest
from hwsearch.search.objectives import Direction, objectives_of
from hwsearch.search.pareto import has_stalled
from hwsearch.search.progress import How, SearchSummary
from hwsearch.search.proposer import Plan
from hwsearch.search.record import RECORD_FILE, REFERENCE, Asked, Scored
from hwsearch.search.stopping import Budgets
from tests.search.synthetic import (
    cost,
    default_seeds,
    essence,
    events,
    make_experiment,
    make_scorer,
    proposer_of,
    search,
    space_of,
)

DIRECTIONS = [Direction.MAXIMIZE, Direction.MINIMIZE]


def timed_search(folder: Path, experiment: Experiment, elapsed: Callable[[], float], capacity: int = 1) -> SearchSummary:
    """A search whose clock is given."""
    executor = LocalExecutor(make_scorer)
    executor.capacity = capacity
    space = space_of(experiment)
    return run_search(
        Task(experiment, space, cost, folder),
        executor,
        Plan(tuple(default_seeds(space)), proposer_of(experiment)),
        elapsed=elapsed,
    )


def clock(seconds: float) -> Callable[[], float]:
    """Each look at it takes so long."""
    looks = count()
    return lambda: next(looks) * seconds


def budgets(experiment: Experiment, seeds: int = 0) -> Budgets:
    return Budgets(experiment.search, objectives_of(experiment.search.objectives), seeds, lambda: 0.0)


def scored_values(folder: Path) -> list[list[float]]:
    return [
        [event.metrics["si_snr_improvement_db"], event.costs["size_bytes"] or 0.0]
        for event in events(folder)
        if isinstance(event, Scored) and event.candidate != REFERENCE
    ]


def test_no_candidate_is_asked_for_after_the_hours_and_those_in_flight_finish(tmp_path: Path) -> None:
    summary = timed_search(tmp_path, make_experiment(40, hours=1.0), clock(300.0), capacity=3)
    asked = [event.candidate for event in events(tmp_path) if isinstance(event, Asked)]
    scored = [event.candidate for event in events(tmp_path) if isinstance(event, Scored)]
    # One look at the clock before each candidate but the reference: the thirteenth is at 3600 s.
    assert asked == scored == list(range(13))
    assert str(summary) == (
        "stopped, 1 hour (search.hours) are over: 12 of 40 candidates scored, 0 failed; the same command goes on for as long "
        f"again in {tmp_path}"
    )


def test_hours_end_the_promotions_too_and_the_next_run_goes_on(tmp_path: Path) -> None:
    rungs = {"validation": 4, "validation_mixtures": 2, "promotions": [{"fidelity": "post-training", "keep": 4}]}
    experiment = make_experiment(20, hours=1.0, **rungs)
    summary = timed_search(tmp_path / "cut", experiment, clock(3600 / 24))
    assert summary.scored == 20
    assert 0 < summary.promoted[Fidelity.POST_TRAINING] < 15
    assert "search.hours" in str(summary)
    assert "done" in str(timed_search(tmp_path / "cut", experiment, lambda: 0.0))
    search(tmp_path / "whole", make_experiment(20, **rungs))
    assert essence(tmp_path / "cut") == essence(tmp_path / "whole")


@pytest.mark.parametrize("promotions", [[], [{"fidelity": "post-training", "keep": 4}]])
def test_a_finished_search_is_not_stopped_by_its_hours(tmp_path: Path, promotions: list[dict[str, object]]) -> None:
    rungs = {"validation": 4, "validation_mixtures": 2, "promotions": promotions}
    search(tmp_path, make_experiment(15, **rungs))
    summary = timed_search(tmp_path, make_experiment(15, hours=1.0, **rungs), lambda: 1e9)
    assert summary.how is How.FINISHED
    assert str(summary).startswith("done: 15 of 15")


@pytest.mark.parametrize("capacity", [1, 3])
def test_a_search_ends_where_its_hypervolume_stalls(tmp_path: Path, capacity: int) -> None:
    """As every earlier count of candidates was asked by the rule itself, from the record."""
    experiment = make_experiment(400, sampler="random", stall_candidates=20, stall_growth=0.01)
    summary = timed_search(tmp_path, experiment, lambda: 0.0, capacity)
    values = np.array(scored_values(tmp_path))
    seeds = len(default_seeds(space_of(experiment)))
    stalled = [
        number
        for number in range(seeds + 20, len(values) + 1)
        if number % 2 == 0 and has_stalled(values[:number], DIRECTIONS, 20, 0.01)
    ]
    assert stalled[0] <= len(values) < stalled[0] + capacity
    assert summary.scored == len(values) < 400
    assert (summary.how, summary.reason) == (How.STALLED, "the hypervolume grew by less than 0.01 of itself over 20 candidates")

    again = timed_search(tmp_path, experiment, lambda: 0.0, capacity)
    assert again == summary


def test_what_a_killed_driver_left_in_flight_is_scored_after_a_stall_too(tmp_path: Path) -> None:
    """Whatever line the record of a stalled search was cut at, the next driver ends where the undisturbed one did."""
    experiment = make_experiment(400, sampler="random", stall_candidates=10, stall_growth=0.05)
    timed_search(tmp_path / "whole", experiment, lambda: 0.0, capacity=3)
    lines = (tmp_path / "whole" / RECORD_FILE).read_bytes().splitlines(keepends=True)
    for cut in range(len(lines) - 8, len(lines)):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / RECORD_FILE).write_bytes(b"".join(lines[:cut]))
        timed_search(folder, experiment, lambda: 0.0, capacity=3)
        found = events(folder)
        asked = {event.candidate for event in found if isinstance(event, Asked)}
        assert asked == {event.candidate for event in found if isinstance(event, Scored)}


def test_a_larger_budget_goes_on_as_if_there_had_been_none(tmp_path: Path) -> None:
    sampler = {"sampler": "random"}
    first = search(tmp_path / "stopped", make_experiment(90, stall_candidates=20, stall_growth=0.05, **sampler))
    assert str(first).endswith(f"; the same command with a larger budget goes on in {tmp_path / 'stopped'}")
    search(tmp_path / "stopped", make_experiment(90, stall_candidates=1000, **sampler))
    search(tmp_path / "whole", make_experiment(90, **sampler))
    assert essence(tmp_path / "stopped") == essence(tmp_path / "whole")


def test_seeds_are_always_scored_and_only_then_is_growth_judged() -> None:
    experiment = make_experiment(100, stall_candidates=10, stall_growth=0.5)
    same: Sequence[Sequence[float]] = [[0.0, 10.0], [1.0, 0.0], *[[0.5, 5.0]] * 40]
    for seeds, first in ((0, 12), (20, 30)):
        rule = budgets(experiment, seeds)
        counts = []
        for number, values in enumerate(same, start=1):
            rule.add(values)
            if rule.stalled():
                counts.append(number)
        assert counts[0] == first


def test_candidates_outside_the_limits_do_not_count_as_growth() -> None:
    rule = budgets(make_experiment(100, stall_candidates=5))
    for _ in range(50):
        rule.add(None)
    assert rule.stalled() is None, "nothing was found yet"
    rule.add([0.0, 10.0])
    rule.add([1.0, 0.0])
    for _ in range(5):
        rule.add(None)
    assert rule.stalled() is not None


def test_budgets_change_neither_what_candidates_mean_nor_the_digests_of_before() -> None:
    assert len({search_digest(make_experiment(5)), search_digest(make_experiment(9, hours=2.0, stall_candidates=7))}) == 1
    assert search_digest(make_experiment(5)) != search_digest(make_experiment(5, population=6))
