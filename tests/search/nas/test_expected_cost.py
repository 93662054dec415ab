"""The cost of a relaxed choice, against the exact cost and finite differences."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings

from hwsearch.errors import UserError
from hwsearch.experiment import parse_experiment
from hwsearch.search.exact.problem import Cost
from hwsearch.search.nas.expected_cost import SUM_SQRT_BITS, expected_cost, nas_cost, sum_sqrt_bits
from hwsearch.search.space import build_space
from hwsearch.separator.untrained import untrained_sites
from tests.search.exact.problems import any_numbers, every_allocation, problems
from tests.search.nas.small import problem_of
from tests.tiny import tiny_content


def one_hot(problem, allocation):
    """Probability 1 for the options of an allocation, given by site."""
    rows = torch.zeros(problem.option_valid.shape)
    for choice, sites in enumerate(problem.members):
        site = sites[0]
        widths = dict(problem.widths)[problem.sites[site]]
        common = [bits for bits in widths if all(bits in problem.widths[other][1] for other in sites)]
        rows[choice, common.index(allocation[problem.sites[site]])] = 1.0
    return rows


@settings(deadline=None, max_examples=50)
@given(problem=problems(numbers=any_numbers))
def test_of_a_single_allocation_it_is_the_exact_cost(problem):
    charge = expected_cost(problem, problem.costs[0])
    sites = problem.sites
    widest = max(
        (
            dict(zip(sites, widths, strict=True))
            for widths in product(*(options for _, options in problem.widths))
            if all(len({dict(zip(sites, widths, strict=True))[site] for site in group}) == 1 for group in problem.groups)
        ),
        key=lambda allocation: sum(allocation.values()),
    )
    exact = {}
    for widths in product(*(options for _, options in problem.widths)):
        by_site = dict(zip(sites, widths, strict=True))
        if all(len({by_site[site] for site in group}) == 1 for group in problem.groups):
            index = [options.index(by_site[site]) for site, options in problem.widths]
            exact[widths] = problem.costs[0].constants[0] + sum(
                problem.costs[0].tables[0][row, column] for row, column in enumerate(index)
            )
    assert len(exact) == len(every_allocation(problem))
    share = exact[tuple(widest.values())]
    for widths, value in exact.items():
        found = float(charge(one_hot(problem, dict(zip(sites, widths, strict=True)))))
        assert found == pytest.approx(value / share, rel=1e-9)
    assert float(charge(one_hot(problem, widest))) == pytest.approx(1.0)


@settings(deadline=None, max_examples=25)
@given(problem=problems(numbers=any_numbers))
def test_its_gradient_is_that_of_finite_differences(problem):
    charge = expected_cost(problem, problem.costs[0])
    exists = torch.from_numpy(problem.option_valid)
    logits = torch.linspace(-1, 1, exists.numel(), dtype=torch.float64).reshape(exists.shape).masked_fill(~exists, -torch.inf)
    logits.requires_grad_()
    charge(torch.softmax(logits, dim=1)).backward()
    step = 1e-5
    largest = float(charge.table.abs().sum()) + abs(charge.constant)
    for row, column in np.argwhere(problem.option_valid):
        ends = []
        for sign in (-1, 1):
            moved = logits.detach().clone()
            moved[row, column] += sign * step
            ends.append(float(charge(torch.softmax(moved, dim=1))))
        assert float(logits.grad[row, column]) == pytest.approx((ends[1] - ends[0]) / (2 * step), rel=1e-5, abs=largest * 1e-8)


@settings(deadline=None, max_examples=25)
@given(problem=problems())
def test_it_is_the_mean_over_draws_of_independent_choices(problem):
    """The exact mean over all allocations, each with the product of its choices' probabilities."""
    assume(len(every_allocation(problem)) <= 200)
    cost = problem.costs[0]
    assume(cost.constants[0] > 0)
    charge = expected_cost(problem, cost)
    exists = problem.option_valid
    weights = np.where(exists, 1.0 + np.arange(exists.shape[1]), 0.0)
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    mean = 0.0
    for options in product(*(range(int(count)) for count in exists.sum(axis=1))):
        indices = problem.expand(np.array([options], np.int8))
        chance = np.prod([probabilities[choice, option] for choice, option in enumerate(options)])
        mean += chance * float(problem.cost_of("size", indices)[0])
    last = [int(count) - 1 for count in exists.sum(axis=1)]
    widest = float(problem.cost_of("size", problem.expand(np.array([last], np.int8)))[0])
    assert float(charge(torch.from_numpy(probabilities))) == pytest.approx(mean / widest, rel=1e-9)


@settings(deadline=None, max_examples=5)
@given(problem=problems(cuts=2))
def test_a_cost_that_is_no_sum_is_refused(problem):
    with pytest.raises(UserError, match=r"nas\.cost is peak, the largest of 2 sums; wanted one that is a sum"):
        expected_cost(problem, problem.cost("peak"))


def test_a_cost_of_nothing_is_refused():
    problem = problem_of([])
    free = Cost("free", np.zeros((1, *problem.loss.shape)), np.zeros(1))
    with pytest.raises(UserError, match=r"nas\.cost: free of the widest allocation is 0; wanted more than 0"):
        expected_cost(problem, free)


def test_the_reference_cost_is_the_sum_of_square_roots():
    cost = sum_sqrt_bits((("a.weight", (2, 4, 16)), ("b.weight", (8,))))
    np.testing.assert_allclose(cost.tables[0], [[2**0.5, 2.0, 4.0], [8**0.5, 0.0, 0.0]])
    assert cost.additive
    assert cost.constants.tolist() == [0.0]


@pytest.mark.parametrize("name", ["size_bytes", SUM_SQRT_BITS, "latency_ms[cortex-m7-cmsis-nn]", "weight_bytes[bitfusion]"])
def test_costs_are_found_by_their_name(name):
    experiment = parse_experiment(tiny_content() | {"nas": {"cost": name}}, "test")
    widths = build_space(experiment.search, untrained_sites(experiment)).widths
    cost = nas_cost(experiment, widths)
    assert cost.name == name
    assert cost.additive


@pytest.mark.parametrize("name", ["bytes", "latency_ms[abacus]", "latency_ms[bitfusion", "peak_activation_bytes[bitfusion]"])
def test_an_unknown_cost_is_refused_with_those_there_are(name):
    experiment = parse_experiment(tiny_content() | {"nas": {"cost": name}}, "test")
    widths = build_space(experiment.search, untrained_sites(experiment)).widths
    with pytest.raises(UserError) as refused:
        nas_cost(experiment, widths)
    assert str(refused.value).startswith(f"nas.cost is '{name}'; wanted one of size_bytes, sum-sqrt-bits, latency_ms[")
