from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.errors import UserError
from hwsearch.search.exact import front
from hwsearch.search.exact.front import exact_front, front_at, supported_front, supported_options
from tests.search.exact.problems import any_numbers, every_allocation, paper_sized, problems

# The dynamic program over all costs, and the search between the corners of the hull.
both_ways = pytest.mark.parametrize("updates", [front.DENSE_UPDATES, -1])


def non_dominated(problem):
    """Pairs of cost and loss, by comparing all with all."""
    pairs = {(costs["size"], loss) for loss, costs in every_allocation(problem)}
    return sorted(p for p in pairs if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in pairs))


@both_ways
@settings(deadline=None)
@given(problem=problems())
def test_the_front_is_that_of_all_allocations(updates, problem):
    """And each allocation costs what the front says, with groups that agree."""
    with patch.object(front, "DENSE_UPDATES", updates):
        found = exact_front(problem, "size")
    assert list(zip(found.costs, found.losses, strict=True)) == non_dominated(problem)
    size = problem.cost("size")
    for i, indices in enumerate(found.indices):
        widths = problem.allocation(indices).by_site
        assert all(len({widths[site] for site in group}) == 1 for group in problem.groups)
        row = [options.index(widths[site]) for site, options in problem.widths]
        assert found.losses[i] == sum(problem.loss[site, k] for site, k in enumerate(row))
        assert found.costs[i] == size.constants[0] + sum(size.tables[0][site, k] for site, k in enumerate(row))


@both_ways
@settings(deadline=None)
@given(problem=problems(numbers=any_numbers))
def test_the_front_of_costs_without_a_unit_is_that_of_all_allocations(updates, problem):
    with patch.object(front, "DENSE_UPDATES", updates):
        found = exact_front(problem, "size")
    every = every_allocation(problem)
    for cost, loss in non_dominated(problem):
        assert found.losses[found.costs <= cost * (1 + 1e-12)].min() <= loss * (1 + 1e-12)
    for cost, loss in zip(found.costs, found.losses, strict=True):
        assert min(x for x, costs in every if costs["size"] <= cost * (1 + 1e-12)) >= loss * (1 - 1e-12)


@settings(deadline=None)
@given(problem=problems(), extra=st.lists(st.floats(0, 60), min_size=1, max_size=5))
def test_the_optimum_at_a_budget_is_the_least_loss_of_all_allocations_within_it(problem, extra):
    every = every_allocation(problem)
    least = min(costs["size"] for _, costs in every)
    budgets = [least + x for x in extra]
    found = front_at(problem, "size", budgets)
    for budget, cost, loss in zip(budgets, found.costs, found.losses, strict=True):
        assert cost <= budget
        assert loss == min(x for x, costs in every if costs["size"] <= budget)
        assert cost == min(costs["size"] for x, costs in every if x == loss)


@settings(deadline=None)
@given(problem=problems(numbers=any_numbers), pick=st.integers(0))
def test_a_budget_that_an_allocation_meets_exactly_is_met(problem, pick):
    whole = exact_front(problem, "size")
    at = pick % len(whole.costs)
    found = front_at(problem, "size", [whole.costs[at]])
    assert found.costs[0] <= whole.costs[at]
    assert found.losses[0] <= whole.losses[at]


@settings(deadline=None)
@given(problem=problems())
def test_the_hull_lies_on_the_front_and_below_all_of_it(problem):
    whole, hull = exact_front(problem, "size"), supported_front(problem, "size")
    points = set(zip(whole.costs, whole.losses, strict=True))
    assert points.issuperset(zip(hull.costs, hull.losses, strict=True))
    assert (hull.costs[0], hull.costs[-1]) == (whole.costs[0], whole.costs[-1])
    assert (np.interp(whole.costs, hull.costs, hull.losses) <= whole.losses + 1e-9).all()


@given(problem=problems())
@settings(deadline=None, max_examples=20)
def test_a_budget_below_all_allocations_names_the_least(problem):
    least = min(costs["size"] for _, costs in every_allocation(problem))
    with pytest.raises(UserError, match=rf"limit size <= .* cannot be met; the least any allocation takes is {least:.10g}$"):
        front_at(problem, "size", [least + 100, least - 0.5])


@given(problem=problems(cuts=2))
@settings(deadline=None, max_examples=5)
def test_a_front_against_a_largest_sum_is_refused(problem):
    with pytest.raises(UserError, match="peak is the largest of 2 sums"):
        exact_front(problem, "peak")


@pytest.mark.parametrize("whole", [True, False])
def test_224_sites_of_6_widths_agree_in_all_ways(whole):
    problem = paper_sized(whole=whole)
    hull = supported_front(problem, "size")
    budgets = np.linspace(hull.costs[0], hull.costs[-1], 12)
    at = front_at(problem, "size", budgets)
    assert (at.costs <= budgets).all()
    # Between the hull's line and the last corner within the budget.
    assert (at.losses >= np.interp(at.costs, hull.costs, hull.losses) * (1 - 1e-12)).all()
    assert (at.losses <= hull.losses[np.searchsorted(hull.costs, budgets, side="right") - 1] * (1 + 1e-12)).all()
    if whole:
        all_of_it = exact_front(problem, "size")
        assert (np.diff(all_of_it.costs) > 0).all()
        assert (np.diff(all_of_it.losses) < 0).all()
        last = np.searchsorted(all_of_it.costs, budgets, side="right") - 1
        np.testing.assert_allclose(at.losses, all_of_it.losses[last], rtol=1e-12)
        np.testing.assert_array_equal(at.costs, all_of_it.costs[last])
        on_front = np.searchsorted(all_of_it.costs, hull.costs)
        np.testing.assert_array_equal(all_of_it.costs[on_front], hull.costs)
        np.testing.assert_allclose(all_of_it.losses[on_front], hull.losses, rtol=1e-12)


@settings(deadline=None)
@given(problem=problems())
def test_bare_tables_give_the_options_of_the_supported_front(problem):
    """The same corners of the hull, as options of the choices instead of positions of the sites' widths."""
    found = supported_front(problem, "size")
    options = supported_options(problem.merged(problem.cost("size").tables[0]), problem.merged(problem.loss))
    indices = problem.expand(options.astype(np.int8))
    np.testing.assert_array_equal(problem.cost_of("size", indices), found.costs)
    np.testing.assert_array_equal(problem.loss_of(indices), found.losses)
    assert all(problem.option_valid[choice, option] for row in options for choice, option in enumerate(row))


@settings(deadline=None)
@given(problem=problems(), data=st.data())
def test_chosen_corners_are_those_of_all(problem, data):
    costs, losses = problem.merged(problem.cost("size").tables[0]), problem.merged(problem.loss)
    every = supported_options(costs, losses)
    wanted = np.array(data.draw(st.permutations(range(len(every))))[: data.draw(st.integers(1, len(every)))], np.int64)
    np.testing.assert_array_equal(supported_options(costs, losses, lambda _: wanted), every[wanted])


@settings(deadline=None)
@given(problem=problems())
def test_options_that_are_infinitely_dear_are_never_taken(problem):
    costs, losses = problem.merged(problem.cost("size").tables[0]), problem.merged(problem.loss)
    costs[:, 1:] = np.inf
    options = supported_options(costs, losses)
    assert options.shape == (1, len(costs))
    assert not options.any()
