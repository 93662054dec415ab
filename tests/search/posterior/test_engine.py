"""What the engine proposes: better than what it started from and than chance, new, within limits, repeatable."""

import math
import warnings

import numpy as np
import pytest

from hwsearch.search.posterior.engine import KnownCost, PosteriorEngine, table_cost
from hwsearch.search.space import Point
from tests.search.posterior.problems import REFERENCE_DB, Problem, make_problem, score, search

BUDGET = 60
STARTED_WITH = 10


def started(problem: Problem, *, seeds: int = STARTED_WITH, **options: object) -> tuple[PosteriorEngine, list[Point]]:
    """An engine that knows full precision and a part of the prior's front."""
    engine = problem.engine(**options)
    engine.refer(REFERENCE_DB)
    return engine, score(problem, engine, problem.prior_front(seeds))


@pytest.mark.parametrize("seed", range(5))
def test_corrected_priors_find_more_than_the_prior_front_or_chance(seed: int) -> None:
    problem = make_problem(seed)
    engine, known = started(problem)
    found = np.array(search(problem, engine, known, BUDGET))
    assert len(np.unique(found, axis=0)) == BUDGET
    by_chance = np.concatenate(
        [problem.prior_front(STARTED_WITH), problem.random(np.random.default_rng(seed), BUDGET - STARTED_WITH)]
    )
    reached = problem.hypervolume(found)
    assert reached > problem.hypervolume(problem.prior_front(BUDGET))
    assert reached > problem.hypervolume(by_chance)
    assert reached > problem.hypervolume(np.array(known))


def test_what_it_finds_comes_near_the_true_front() -> None:
    """The front of the true losses is what a perfect prior would give: most of what the prior missed of it is found."""
    problem = make_problem(0)
    perfect = Problem(problem.true, problem.true, problem.tables, problem.valid)
    engine, known = started(problem)
    found = problem.hypervolume(np.array(search(problem, engine, known, BUDGET)))
    best, before = perfect.hypervolume(perfect.prior_front(BUDGET)), problem.hypervolume(problem.prior_front(BUDGET))
    assert found > before + 0.5 * (best - before)


def test_no_known_or_running_point_is_proposed() -> None:
    problem = make_problem(1, counts=(3, 4, 2, 6))
    engine, known = started(problem)
    seen = set(known)
    for step in range(60):
        point = engine.propose(np.random.default_rng(step % 3))
        assert point is not None
        assert point not in seen
        assert all(0 <= option < count for option, count in zip(point, (3, 4, 2, 6), strict=True))
        seen.add(point)
        engine.start(point)  # every third goes on running
        if step % 3:
            engine.finish(point, float(problem.quality(point)[0]))


def test_a_batch_in_flight_spreads_out() -> None:
    """Candidates that are being scored count at what is expected of them, so that the next proposals look elsewhere."""
    problem = make_problem(2)
    engine, known = started(problem)
    batch = []
    for step in range(16):
        point = engine.propose(np.random.default_rng(step))
        assert point is not None
        engine.start(point)
        batch.append(point)
    assert len({*batch, *known}) == len(batch) + len(known)
    size = problem.cost(np.array(batch))
    assert np.ptp(size) > 0.2 * np.ptp(problem.cost(np.array(known)))


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_proposals_are_within_the_limits(share: float) -> None:
    problem = make_problem(3)
    narrowest, widest = (problem.cost(np.full(16, option), 1)[0] for option in (0, 5))
    limit = narrowest + share * (widest - narrowest)
    engine, known = started(problem, limits=((1, limit),))
    found = search(problem, engine, known, BUDGET)[len(known) :]
    assert len(found) == BUDGET - len(known)
    assert (problem.cost(np.array(found), 1) <= limit).all()


def test_a_limit_that_nothing_meets_leaves_nothing_to_propose() -> None:
    problem = make_problem(3)
    engine = problem.engine(limits=((1, 1.0),))
    engine.refer(REFERENCE_DB)
    assert engine.propose(np.random.default_rng(0)) is None


@pytest.mark.parametrize("objectives", [2, 3])
def test_with_several_costs_all_directions_of_the_front_are_visited(objectives: int) -> None:
    problem = make_problem(4, choices=8)
    engine, known = started(problem, objectives=objectives)
    found = np.array(search(problem, engine, known, BUDGET))
    assert len(found) == BUDGET

    def front(points: np.ndarray) -> np.ndarray:
        values = np.stack([-problem.quality(points), *(problem.cost(points, index) for index in range(objectives))], axis=1)
        better = (values[:, None] <= values).all(axis=2) & (values[:, None] < values).any(axis=2)
        return values[~better.any(axis=0)]

    by_chance = np.concatenate([np.array(known), problem.random(np.random.default_rng(0), BUDGET - len(known))])
    mine, chance = front(found), front(by_chance)

    # Of chance's front more is dominated by what was proposed than the other way round.
    def beaten(losers: np.ndarray, winners: np.ndarray) -> float:
        return float(((winners[:, None] <= losers).all(axis=2) & (winners[:, None] < losers).any(axis=2)).any(axis=0).mean())

    assert beaten(chance, mine) > beaten(mine, chance)
    for index in range(objectives):
        assert len({round(value, 6) for value in mine[:, 1 + index]}) > 10


def test_a_reference_told_late_changes_nothing() -> None:
    problem = make_problem(5)
    early, _ = started(problem)
    late = problem.engine()
    score(problem, late, problem.prior_front(STARTED_WITH))
    for engine in (early, late):
        point = engine.propose(np.random.default_rng(0))
        assert point is not None  # also while full precision is not scored
    late.refer(REFERENCE_DB)
    for step in range(5):
        points = [engine.propose(np.random.default_rng(step)) for engine in (early, late)]
        assert points[0] == points[1]
        for engine in (early, late):
            score(problem, engine, np.array([points[0]]))


def test_failed_candidates_teach_nothing_and_are_not_proposed_again() -> None:
    problem = make_problem(6)
    untouched, _ = started(problem)
    engine, known = started(problem)
    first = engine.propose(np.random.default_rng(0))
    engine.start(first)
    engine.finish(first, None)
    second = engine.propose(np.random.default_rng(0))
    assert second not in {first, None}
    # But for the point itself, both engines believe the same: told the same, they go on the same way.
    untouched.start(first)
    untouched.finish(first, None)
    assert untouched.propose(np.random.default_rng(3)) == engine.propose(np.random.default_rng(3))
    found = search(problem, engine, [*known, first], 40, quality=lambda point: None)
    assert len(set(found)) == 40


@pytest.mark.parametrize("counts", [(2,), (2, 2), (3, 3, 3), (6, 2, 4, 1, 3)])
def test_a_small_space_is_gone_through_whole(counts: tuple[int, ...]) -> None:
    problem = make_problem(7, counts=counts)
    engine = problem.engine()
    engine.refer(REFERENCE_DB)
    found = search(problem, engine, [], 10**6)
    assert len(found) == len(set(found)) == math.prod(counts)
    assert engine.propose(np.random.default_rng(0)) is None


def test_a_small_space_is_gone_through_as_far_as_the_limits_go() -> None:
    problem = make_problem(8, counts=(4, 4, 4))
    every = np.array(list(np.ndindex(4, 4, 4)))
    limit = float(np.median(problem.cost(every, 1)))
    engine = problem.engine(limits=((1, limit),))
    engine.refer(REFERENCE_DB)
    assert set(search(problem, engine, [], 100)) == {tuple(row) for row in every[problem.cost(every, 1) <= limit].tolist()}


def test_the_same_rng_gives_the_same_proposal() -> None:
    problem = make_problem(9)
    engines = [started(problem, objectives=2)[0] for _ in range(2)]
    proposals = [[engine.propose(np.random.default_rng(seed)) for seed in range(6)] for engine in engines]
    assert proposals[0] == proposals[1]
    assert len(set(proposals[0])) > 1


def test_a_network_of_the_papers_size_with_ten_thousand_candidates_goes_on() -> None:
    problem = make_problem(10, choices=250)
    engine, known = started(problem, seeds=20)
    rng = np.random.default_rng(0)
    for row in problem.random(rng, 10_000).tolist():
        engine.start(tuple(row))
        engine.finish(tuple(row), None)
    score(problem, engine, problem.random(rng, 80))
    before = problem.hypervolume(np.array(known))
    found = search(problem, engine, known, len(known) + 5)
    assert len(set(found)) == len(known) + 5
    assert problem.hypervolume(np.array(found)) > before


# Costs that not every allocation has


def partly_runnable(problem: Problem) -> KnownCost:
    """A cost that no allocation has with a first choice at its widest option."""
    table = problem.tables[1].copy()
    table[0, -1] = np.inf
    return table_cost(table, 0.0)


def test_what_a_target_does_not_run_is_not_proposed() -> None:
    problem = make_problem(11, choices=6)
    deviation = 0.4 * problem.prior + 0.01
    engine = PosteriorEngine(problem.prior, deviation, problem.valid, [problem.costs()[0], partly_runnable(problem)], [])
    engine.refer(REFERENCE_DB)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        known = score(problem, engine, np.stack([np.full(6, option) for option in range(5)]))
        engine.start((5,) * 6)  # being scored, and without a cost
        found = search(problem, engine, known, 45)
    assert len(set(found)) == 45
    assert all(point[0] < 5 for point in found)
    assert len({point[0] for point in found}) == 5


def test_a_cost_that_is_no_sum_is_judged_exactly() -> None:
    """The table that proposals are found with is rough; limits hold for the exact charge."""
    problem = make_problem(12, choices=6)

    def charge(options: np.ndarray) -> np.ndarray:
        bits = problem.tables[1][np.arange(6), options]
        return np.maximum(bits[:, ::2], bits[:, 1::2]).sum(axis=1)  # pairs wait for the slower one

    limit = float(charge(np.full((1, 6), 3))[0])
    rough = KnownCost(problem.tables[1], charge)
    engine = PosteriorEngine(problem.prior, 0.4 * problem.prior + 0.01, problem.valid, [problem.costs()[0]], [(rough, limit)])
    engine.refer(REFERENCE_DB)
    found = np.array(search(problem, engine, [], 40))
    assert len(found) == 40
    assert (charge(found) <= limit).all()
    assert charge(found).max() > 0.9 * limit
