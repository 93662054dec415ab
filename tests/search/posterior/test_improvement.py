"""The expected growth of the hypervolume, against hypervolumes and their integral."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from hwsearch.search.objectives import Direction
from hwsearch.search.pareto import hypervolume
from hwsearch.search.posterior import improvement as improvement_module
from hwsearch.search.posterior.improvement import expected_improvement

DIRECTIONS = [Direction.MAXIMIZE, Direction.MINIMIZE]
Front = list[tuple[float, float]]
"""Costs and qualities."""

VALUE = st.floats(0.0, 10.0).map(lambda value: round(value, 2))
FRONTS = st.lists(st.tuples(VALUE, VALUE), max_size=6).map(sorted)


def volume(front: Front, ends: tuple[float, float]) -> float:
    """Quality times cost, above the lowest quality and below the largest cost."""
    return hypervolume(np.array([(quality, cost) for cost, quality in front]).reshape(-1, 2), DIRECTIONS, ends)


def growth(front: Front, cost: float, quality: float, ends: tuple[float, float]) -> float:
    return volume([*front, (cost, quality)], ends) - volume(front, ends)


def improvement(front: Front, cost: float, mean: float, deviation: float, ends: tuple[float, float]) -> float:
    costs, qualities = (np.array([point[side] for point in front]) for side in (0, 1))
    found = expected_improvement(np.array([cost]), np.array([mean]), np.array([deviation]), (costs, qualities), ends)
    return float(found[0])


@given(FRONTS, VALUE, VALUE, st.floats(-1.0, 5.0), st.floats(5.0, 12.0))
def test_a_certain_improvement_is_the_difference_of_the_hypervolumes(
    front: Front, cost: float, quality: float, lowest: float, largest: float
) -> None:
    ends = (lowest, largest)
    assert improvement(front, cost, quality, 0.0, ends) == pytest.approx(growth(front, cost, quality, ends), abs=1e-7)


@settings(deadline=None, max_examples=40)
@given(FRONTS, VALUE, VALUE, st.floats(0.05, 4.0))
def test_an_uncertain_one_is_the_integral_over_the_quality(front: Front, cost: float, mean: float, deviation: float) -> None:
    ends = (1.0, 9.0)
    # Between two levels the growth is linear in the quality, so that Gauss-Legendre on pieces is exact but for the density.
    first, last = mean - 9 * deviation, mean + 9 * deviation
    kinks = sorted({first, last, *(level for level in (*(quality for _, quality in front), ends[0]) if first < level < last)})
    wanted = sum(
        integrate.fixed_quad(
            lambda q: np.array([growth(front, cost, one, ends) * stats.norm.pdf(one, mean, deviation) for one in q]),
            low,
            high,
            n=30,
        )[0]
        for low, high in pairwise(kinks)
    )
    assert improvement(front, cost, mean, deviation, ends) == pytest.approx(wanted, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("block", [1, 20, 10_000])
def test_many_candidates_are_judged_one_by_one(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(improvement_module, "_BLOCK", block)
    rng = np.random.default_rng(3)
    cost, mean, deviation = rng.uniform(0, 10, (3, 20))
    front = np.sort(rng.uniform(0, 10, 5)), rng.uniform(0, 10, 5)
    together = expected_improvement(cost, mean, deviation, front, (0.0, 10.0))
    for index in range(20):
        alone = expected_improvement(cost[[index]], mean[[index]], deviation[[index]], front, (0.0, 10.0))
        assert together[index] == alone[0]


def test_steps_that_are_not_evaluated_would_have_changed_nothing() -> None:
    """A long front and narrow deviations, where most steps are out of reach, against the closed form at every step."""
    rng = np.random.default_rng(4)
    costs, qualities = np.arange(400) / 40.0, np.sort(rng.uniform(0, 10, 400))
    cost, mean, deviation = rng.uniform(0, 10, 60), rng.uniform(0, 10, 60), rng.uniform(1e-3, 0.2, 60)
    found = expected_improvement(cost, mean, deviation, (costs, qualities), (-1.0, 11.0))
    edges, levels = np.concatenate([[-np.inf], costs, [11.0]]), np.concatenate([[-1.0], qualities])
    for index in range(60):
        spans = np.maximum(np.minimum(edges[1:], 11.0) - np.maximum(edges[:-1], cost[index]), 0.0)
        z = (mean[index] - levels) / deviation[index]
        lift = deviation[index] * (z * stats.norm.cdf(z) + stats.norm.pdf(z))
        assert found[index] == pytest.approx(spans @ lift, rel=1e-9, abs=1e-300)


def test_beyond_the_largest_cost_nothing_is_gained() -> None:
    assert improvement([(1.0, 1.0)], 9.5, 50.0, 1.0, (0.0, 9.0)) == 0.0
