import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.errors import UserError
from hwsearch.search.exact import front, milp
from hwsearch.search.exact.elastic import ElasticProblem, cost_range, exact_front, front_at, optimum, supported_points
from hwsearch.search.exact.layout import Layout, PartTable
from tests.search.exact.elastic_problems import (
    elastic_problems,
    every_configuration,
    every_point,
    layouts,
    make_part,
    real_sized,
    table_of,
    value,
)
from tests.search.exact.problems import any_numbers, problems


def non_dominated(problem):
    pairs = {(costs["size"], loss) for _, loss, costs in every_configuration(problem)}
    return sorted(p for p in pairs if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in pairs))


def check_points(problem, found):
    """Points are canonical, and cost what the front says."""
    canonical = set(every_point(problem.layout))
    for point, cost, loss in zip(found.indices.tolist(), found.costs, found.losses, strict=True):
        assert tuple(point) in canonical
        assert cost == value(problem.layout, problem.costs["size"], point)
        assert loss == value(problem.layout, problem.loss, point)


@settings(deadline=None, max_examples=40)
@given(problem=elastic_problems())
@pytest.mark.parametrize("updates", [front.DENSE_UPDATES, -1])
def test_the_front_is_that_of_all_configurations(updates, problem):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(front, "DENSE_UPDATES", updates)
        found = exact_front(problem, "size")
    assert list(zip(found.costs, found.losses, strict=True)) == non_dominated(problem)
    check_points(problem, found)


@settings(deadline=None, max_examples=60)
@given(problem=elastic_problems(), extra=st.lists(st.floats(0, 60), min_size=1, max_size=5))
def test_the_optimum_at_a_budget_is_the_least_loss_of_all_configurations_within_it(problem, extra):
    every = every_configuration(problem)
    least = min(costs["size"] for _, _, costs in every)
    budgets = [least + x for x in extra]
    found = front_at(problem, "size", budgets)
    check_points(problem, found)
    for budget, cost, loss in zip(budgets, found.costs, found.losses, strict=True):
        assert cost <= budget
        assert loss == min(loss for _, loss, costs in every if costs["size"] <= budget)
        assert cost == min(costs["size"] for _, other, costs in every if other == loss)
    with pytest.raises(UserError, match=rf"cannot be met; the least any allocation takes is {least:.10g}$"):
        front_at(problem, "size", [least - 0.5])
    assert cost_range(problem, "size") == (least, max(costs["size"] for _, _, costs in every))


@settings(deadline=None, max_examples=60)
@given(problem=elastic_problems(costs=("size", "latency")), data=st.data())
def test_the_optimum_within_limits_is_that_of_all_configurations(problem, data):
    every = every_configuration(problem)
    limits = {}
    for name in data.draw(st.sampled_from([(), ("size",), ("size", "latency"), ("latency", "size")])):
        near = every[data.draw(st.integers(0, len(every) - 1))][2][name]
        limits[name] = near + data.draw(st.sampled_from([0.0, 0.3, -0.4, 5.0]))
    within = [loss for _, loss, costs in every if all(costs[name] <= limit for name, limit in limits.items())]
    if within:
        found = optimum(problem, limits)
        assert found.proven
        assert found.loss == min(within)
        assert found.bound == pytest.approx(found.loss, rel=1e-8, abs=1e-9)
        point = tuple(found.indices.tolist())
        assert (point, found.loss, found.costs) in every
        assert all(found.costs[name] <= limit for name, limit in limits.items())
        return
    with pytest.raises(UserError, match="cannot be met") as refusal:
        optimum(problem, limits)
    kept = every
    for name, limit in limits.items():
        least = min(costs[name] for _, _, costs in kept)
        if least > limit:
            named, stated = re.match(r"limit (\w+) <= .* ([\d.e+-]+)$", str(refusal.value)).groups()
            assert (named, float(stated)) == (name, pytest.approx(least, rel=1e-6))
            return
        kept = [each for each in kept if each[2][name] <= limit]


@settings(deadline=None)
@given(problem=elastic_problems())
def test_supported_points_are_the_corners_of_the_hull_of_all_configurations(problem):
    layout, size, loss = problem.layout, problem.costs["size"], problem.loss
    points = supported_points(layout, size, loss)
    canonical = set(every_point(layout))
    assert all(tuple(point) in canonical for point in points.tolist())
    costs, losses = layout.total(size, points), layout.total(loss, points)
    whole = np.array(non_dominated(problem))
    assert {tuple(pair) for pair in whole.tolist()}.issuperset(zip(costs, losses, strict=True))
    assert (costs[0], costs[-1]) == (whole[0, 0], whole[-1, 0])
    assert (np.interp(whole[:, 0], costs, losses) <= whole[:, 1] + 1e-9).all()
    few = np.array([len(points) - 1, 0])[: len(points)]
    np.testing.assert_array_equal(supported_points(layout, size, loss, lambda count: few), points[few])


@settings(deadline=None)
@given(problem=elastic_problems(), data=st.data())
def test_what_is_infinitely_dear_is_never_taken(problem, data):
    layout, size = problem.layout, problem.costs["size"]
    choices, parts = size.choices.copy(), size.parts.copy()
    for place in np.argwhere(layout.present[:, :, None] & layout.valid[:, None]):
        if data.draw(st.booleans()):
            choices[tuple(place)] = np.inf
    choices[layout.outside, 0, :1] = 0.0
    for place, part in enumerate(layout.parts):
        choices[list(part.choices), len(part.variants) - 1, :1] = 0.0  # the whole at its narrowest can always be had
        parts[place, 0] = np.inf if len(part.variants) > 1 and data.draw(st.booleans()) else parts[place, 0]
    points = supported_points(layout, PartTable(choices, parts), problem.loss)
    assert len(points)
    assert np.isfinite(layout.total(PartTable(choices, parts), points)).all()


@settings(deadline=None)
@given(layout=layouts(), data=st.data())
def test_canonical_points_are_those_whose_gone_variables_are_whole(layout, data):
    raw = np.array([[data.draw(st.integers(0, count - 1)) for count in layout.counts.tolist()] for _ in range(5)])
    found = layout.canonical(raw)
    canonical = set(every_point(layout))
    for before, point in zip(raw.tolist(), found.tolist(), strict=True):
        assert tuple(point) in canonical
        assert tuple(before) not in canonical or before == point
    table = table_of(layout, lambda: float(np.random.default_rng(0).integers(9)))
    assert layout.total(table, found).tolist() == [value(layout, table, point) for point in found.tolist()]


@settings(deadline=None)
@given(problem=problems(numbers=any_numbers), extra=st.floats(0, 60))
def test_without_parts_all_is_as_in_an_allocation_problem(problem, extra):
    """To the last bit. Choices with one option are choices, too."""
    losses, costs = problem.merged(problem.loss), problem.merged(problem.cost("size").tables[0])
    counts = tuple(problem.option_valid.sum(axis=1).tolist())
    tables = [
        PartTable(np.where(problem.option_valid, x, 0.0)[:, None], np.zeros((0, 1)), c)
        for x, c in ((losses, 0.0), (costs, problem.cost("size").constants[0]))
    ]
    same = ElasticProblem(Layout(counts, (), ()), tables[0], {"size": tables[1]})
    budget = [exact_front(same, "size").costs[0] + extra]
    for found, wanted in (
        (exact_front(same, "size"), front.exact_front(problem, "size")),
        (front_at(same, "size", budget), front.front_at(problem, "size", budget)),
    ):
        np.testing.assert_array_equal(problem.expand(found.indices), wanted.indices)
        np.testing.assert_allclose(found.costs, wanted.costs, rtol=1e-15)
        np.testing.assert_allclose(found.losses, wanted.losses, rtol=1e-15)
    points = supported_points(same.layout, tables[1], tables[0])
    np.testing.assert_array_equal(problem.expand(points), front.supported_front(problem, "size").indices)
    best, wanted = optimum(same, {"size": budget[0]}), milp.optimum(problem, {"size": budget[0]})
    np.testing.assert_array_equal(problem.expand(best.indices[None])[0], wanted.indices)


def test_menus_whose_entries_do_not_fit_into_a_byte_keep_their_options():
    rng = np.random.default_rng(3)
    parts = (make_part((0,), (2,), range(4), removes=True), make_part((1,), (2,), (), removes=True))
    layout = Layout((6,) * 5, (2, 2), parts)
    costs = np.zeros((5, 2, 6))
    costs[:4, 1], costs[4, 0] = np.cumsum(rng.integers(1, 2000, (4, 6)), axis=1), np.arange(6)
    loss = np.where(costs > 0, 1e5 - costs, 0.0)  # nothing dominates anything within the first part
    problem = ElasticProblem(
        layout, PartTable(loss, np.array([[9e5, 0.0], [9.0, 0.0]])), {"size": PartTable(costs, np.zeros((2, 2)))}
    )
    found = exact_front(problem, "size")
    assert len(found.costs) > 1000
    points = np.unique(layout.canonical(np.array(list(np.ndindex(*layout.counts.tolist())))), axis=0)
    costs, losses = layout.total(problem.costs["size"], points), layout.total(problem.loss, points)
    kept = front.non_dominated(costs, losses)
    np.testing.assert_array_equal(found.costs, costs[kept])
    np.testing.assert_array_equal(found.losses, losses[kept])


@pytest.mark.parametrize("activations", [0, 4])
def test_18_blocks_agree_in_all_ways(activations):
    problem = real_sized(activations=activations)
    layout, size = problem.layout, problem.costs["size"]
    hull = supported_points(layout, size, problem.loss)
    costs, losses = layout.total(size, hull), layout.total(problem.loss, hull)
    budgets = np.geomspace(costs[0], costs[-1], 12)
    at = front_at(problem, "size", budgets.tolist())
    assert (at.costs <= budgets).all()
    assert (at.losses >= np.interp(at.costs, costs, losses) * (1 - 1e-12)).all()
    assert (at.losses <= losses[np.searchsorted(costs, budgets, side="right") - 1] * (1 + 1e-12)).all()
    for number in (3, 7):
        found = optimum(problem, {"size": float(budgets[number])})
        assert found.proven
        assert found.loss == pytest.approx(at.losses[number], rel=1e-8)


def test_tables_of_another_shape_or_that_charge_for_what_is_gone_are_refused():
    problem = real_sized(blocks=1)
    wrong = problem.loss.choices.copy()
    wrong[0, 0, 0] = 1.0
    for table, message in (
        (PartTable(wrong, problem.loss.parts), "0 where a choice is gone"),
        (PartTable(wrong[:, :1], problem.loss.parts), "wanted"),
        (PartTable(problem.loss.choices, np.full((1, 5), np.nan)), "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            ElasticProblem(problem.layout, table, problem.costs)
    with pytest.raises(UserError, match="no cost 'latency'; the problem has size"):
        exact_front(problem, "latency")
    with pytest.raises(ValueError, match="each option in one part"):
        Layout((6,), (2,), ())
