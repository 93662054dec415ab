import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.errors import UserError
from hwsearch.search.exact.front import front_at
from hwsearch.search.exact.milp import optimum
from hwsearch.search.exact.problem import AllocationProblem, Cost
from tests.search.exact.problems import any_numbers, every_allocation, paper_sized, problems


@st.composite
def limited(draw, numbers):
    """A problem with a size, a latency and a peak over two cuts, and limits near the costs of some of its allocations."""
    problem = draw(problems(numbers=numbers, costs=("size", "latency"), cuts=2))
    every = every_allocation(problem)
    limits = {}
    for name in draw(st.permutations(["size", "latency", "peak"]))[: draw(st.integers(0, 3))]:
        _, costs = every[draw(st.integers(0, len(every) - 1))]
        limits[name] = float(costs[name]) + draw(st.sampled_from([0.0, 0.3, -0.4, 5.0]))
    return problem, limits


def check(problem, limits, *, rtol):
    every = every_allocation(problem)
    within = [loss for loss, costs in every if all(costs[name] <= limit for name, limit in limits.items())]
    if within:
        found = optimum(problem, limits)
        assert found.proven
        assert all(found.costs[name] <= limit for name, limit in limits.items())
        assert found.loss == pytest.approx(min(within), rel=rtol, abs=0)
        assert found.bound == pytest.approx(min(within), rel=1e-8, abs=1e-9)
        assert found.bound <= found.loss
        widths = problem.allocation(found.indices).by_site
        assert all(len({widths[site] for site in group}) == 1 for group in problem.groups)
        return
    with pytest.raises(UserError, match="cannot be met") as refusal:
        optimum(problem, limits)
    # The first limit that cannot be met along with those before it.
    kept = every
    for name, limit in limits.items():
        least = min(costs[name] for _, costs in kept)
        if least > limit:
            named, stated = re.match(r"limit (\w+) <= .* ([\d.e+-]+)$", str(refusal.value)).groups()
            assert named == name
            assert float(stated) == pytest.approx(least, rel=1e-6)
            return
        kept = [(loss, costs) for loss, costs in kept if costs[name] <= limit]


@settings(deadline=None, max_examples=40)
@given(limited(any_numbers))
def test_the_optimum_within_limits_is_that_of_all_allocations(case):
    check(*case, rtol=1e-6)


@settings(deadline=None, max_examples=40)
@given(limited(lambda limit: st.integers(0, limit).map(float)))
def test_the_optimum_under_ties_and_zeros_is_that_of_all_allocations(case):
    check(*case, rtol=0)


def test_limits_that_exclude_each_other_name_the_one_and_the_least_under_the_others():
    problem = paper_sized(sites=6)
    free = optimum(problem, {})
    small = optimum(problem, {"size": 0.6 * free.costs["size"]})
    assert small.loss > free.loss
    with pytest.raises(UserError, match=r"limit latency <= .* with size <= ") as refusal:
        optimum(problem, {"size": 0.6 * free.costs["size"], "latency": 0.1})
    least = float(str(refusal.value).rsplit(" ", 1)[1])
    assert optimum(problem, {"size": 0.6 * free.costs["size"], "latency": least}).costs["latency"] <= least


@pytest.mark.parametrize(
    ("steps", "limit", "proven"),
    [
        ([1.0] * 6 + [np.pi / 3] * 6, 3 + np.pi - 1e-8, True),  # nine better ones exceed it by 1e-8: excluded one by one
        ([1 + i * 1e-10 for i in range(12)], 6 - 1e-9, False),  # 924 better ones do: too many
    ],
)
def test_limits_hold_where_better_allocations_exceed_them_by_less_than_the_solver_sees(steps, limit, proven):
    rng = np.random.default_rng(0)
    widths = tuple((f"s{i}.weight", (4, 8)) for i in range(12))
    loss = np.stack([1 + rng.uniform(0, 1e-3, 12), np.zeros(12)], axis=1)
    cost = Cost("latency", np.stack([np.zeros(12), steps], axis=1)[None], np.zeros(1))
    problem = AllocationProblem(widths, loss, (cost,))
    found = optimum(problem, {"latency": limit})
    assert found.proven is proven
    assert found.costs["latency"] <= limit
    assert found.loss == front_at(problem, "latency", [limit]).losses[0]
    assert found.bound <= found.loss


def test_a_limit_that_is_not_a_number_is_refused():
    with pytest.raises(UserError, match="limit on size is nan"):
        optimum(paper_sized(sites=2), {"size": float("nan")})


def test_without_time_there_is_a_clear_error_or_a_bound():
    problem = paper_sized()
    budget = float(problem.cost("size").tables[0][:, 2].sum())
    try:
        found = optimum(problem, {"size": budget}, seconds=0.0)
    except UserError as error:
        assert "wanted more seconds" in str(error)  # noqa: PT017
    else:
        assert found.bound <= found.loss


@settings(deadline=None, max_examples=4)
@given(st.floats(0.05, 0.95), st.booleans())
def test_dynamic_and_integer_programming_agree_at_224_sites(fraction, whole):
    problem = paper_sized(whole=whole)
    table = problem.cost("size").tables[0]
    least, most = table[:, 0].sum() + 1000, table[:, -1].sum() + 1000
    budget = float(least + fraction * (most - least))
    exact = front_at(problem, "size", [budget])
    found = optimum(problem, {"size": budget})
    assert found.proven
    assert found.loss == pytest.approx(exact.losses[0], rel=1e-9, abs=0)
    assert np.isclose(found.bound, found.loss, rtol=1e-8, atol=0)
