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


def one_hot(problem, options):
    """Probability 1 for one option of each choice."""
    return np.stack(
        [
            np.flatnonzero(exists)[option] == np.arange(len(exists))
            for exists, option in zip(problem.option_valid, options, strict=True)
        ]
    )


@settings(deadline=None, max_examples=50)
@given(problem=problems(numbers=any_numbers))
def test_of_a_single_allocation_it_is_the_exact_cost(problem):
    (cost,) = problem.costs
    charge = expected_cost(problem, cost)
    widest = cost.constants[0] + sum(
        row[len(options) - 1] for row, (_, options) in zip(cost.tables[0], problem.widths, strict=True)
    )
    assert float(charge(torch.from_numpy(one_hot(problem, [-1] * len(problem.members))))) == pytest.approx(1.0)
    counts = problem.option_valid.sum(axis=1).tolist()
    for chosen in product(*map(range, counts)):
        of_site = {site: option for sites, option in zip(problem.members, chosen, strict=True) for site in sites}
        exact = cost.constants[0] + sum(cost.tables[0][site, option] for site, option in of_site.items())
        assert float(charge(torch.from_numpy(one_hot(problem, chosen)))) == pytest.approx(exact / widest, rel=1e-9)


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


def cost_named(name):
    experiment = parse_experiment(tiny_content() | {"nas": {"cost": name}}, "test")
    return nas_cost(experiment, build_space(experiment.search, untrained_sites(experiment)).widths)


@pytest.mark.parametrize("name", ["size_bytes", SUM_SQRT_BITS, "latency_ms[cortex-m7-cmsis-nn]", "weight_bytes[bitfusion]"])
def test_costs_are_found_by_their_name(name):
    cost = cost_named(name)
    assert cost.name == name
    assert cost.additive


@pytest.mark.parametrize("name", ["bytes", "latency_ms[abacus]", "latency_ms[bitfusion", "peak_activation_bytes[bitfusion]"])
def test_an_unknown_cost_is_refused_with_those_there_are(name):
    with pytest.raises(UserError) as refused:
        cost_named(name)
    assert str(refused.value).startswith(f"nas.cost is '{name}'; wanted one of size_bytes, sum-sqrt-bits, latency_ms[")
