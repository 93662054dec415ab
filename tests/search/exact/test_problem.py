import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsearch.errors import UserError
from hwsearch.experiment import SearchConfig, SeparatorConfig
from hwsearch.search.exact.problem import AllocationProblem, additive_cost, allocation_problem, quantum, readable
from hwsearch.search.space import build_space
from hwsearch.separator.configuration import Configuration
from tests.separator.small import sites_of

SPACE = build_space(
    SearchConfig.model_validate({"weight_bits": [2, 4, 8], "activation_bits": [8], "fixed": {"mask_head.weight": 8}}),
    sites_of(SeparatorConfig(X=1, R=1)),
)
FREE = [site for site, _ in SPACE.free]
SENSITIVITY = {site: {2: 3.0, 4: 1.0, 8: 0.0} for site in FREE}
SIZE = additive_cost("size", SPACE.widths, {site: {2: 2.0, 4: 4.0, 8: 8.0} for site in FREE}, 5.0)


def test_allocations_of_a_problem_are_points_of_its_space():
    problem = allocation_problem(SPACE, SENSITIVITY, [SIZE])
    rng = np.random.default_rng(0)
    for _ in range(20):
        indices = np.array([rng.integers(len(options)) for _, options in SPACE.widths], np.int8)
        assert SPACE.decode(problem.point(indices)) == Configuration(problem.allocation(indices))


def test_loss_and_cost_are_sums_over_the_sites():
    problem = allocation_problem(SPACE, SENSITIVITY, [SIZE])
    indices = np.zeros((1, len(SPACE.widths)), np.int8)
    assert problem.loss_of(indices)[0] == 3.0 * len(FREE)
    assert problem.cost_of("size", indices)[0] == 5.0 + 2.0 * len(FREE)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.5])
def test_a_sensitivity_that_is_no_loss_is_refused_by_name(value):
    wrong = SENSITIVITY | {FREE[1]: {2: 1.0, 4: value, 8: 0.0}}
    with pytest.raises(UserError, match=rf"sensitivity of site '{FREE[1]}' at 4 bits is"):
        allocation_problem(SPACE, wrong, [SIZE])


@pytest.mark.parametrize(
    ("sensitivity", "message"),
    [
        ({site: SENSITIVITY[site] for site in FREE[1:]}, rf"no values for site '{FREE[0]}'"),
        (SENSITIVITY | {FREE[0]: {2: 1.0, 8: 0.0}}, rf"site '{FREE[0]}' has no value at 4 bits; it has them at \[2, 8\]"),
        (SENSITIVITY | {"nowhere": {2: 1.0}}, "unknown site 'nowhere'"),
    ],
)
def test_sensitivities_of_other_sites_or_widths_are_refused(sensitivity, message):
    with pytest.raises(UserError, match=message):
        allocation_problem(SPACE, sensitivity, [SIZE])


def test_a_group_of_sites_with_different_widths_is_no_problem_of_a_space():
    with pytest.raises(ValueError, match="the same widths for all sites of a group"):
        AllocationProblem((("a", (2, 4)), ("b", (3, 8))), np.zeros((2, 2)), (), (("a", "b"),))


def test_a_cost_that_is_not_finite_is_refused_by_name():
    widths = (("a", (2, 4)), ("b", (3, 8)))
    cost = additive_cost("latency", widths, {"b": {3: math.nan, 8: 1.0}})
    with pytest.raises(UserError, match="latency of site 'b' at 3 bits is nan; wanted a finite number"):
        AllocationProblem(widths, np.zeros((2, 2)), (cost,))


@given(st.lists(st.integers(0, 10**6), min_size=1), st.integers(-20, 20))
def test_the_quantum_is_the_greatest_common_divisor(counts, exponent):
    values = np.ldexp(np.array(counts, np.float64), exponent)
    wanted = Fraction(2) ** exponent * math.gcd(*counts) if any(counts) else 1
    assert quantum(values) == float(wanted)


def test_values_too_far_apart_have_no_quantum():
    assert quantum(np.array([1e300, 1e-300])) is None


@given(st.floats(0, 1e12))
def test_a_readable_number_holds_as_a_limit(value):
    assert float(readable(value)) >= value
