import numpy as np
import pytest

from hw_models.compile import compile_target
from hw_models.cost import evaluate
from hw_models.packed import packed_size_bytes
from hwsearch.errors import UserError
from hwsearch.search.exact.costs import (
    NotSeparableError,
    peak_activation_cost,
    separable_cost,
    site_changes,
    target_cost,
)
from hwsearch.search.exact.problem import AllocationProblem
from tests.hw_models.networks import TARGETS, tcn

NETWORK = tcn()
INTEGER_TARGETS = pytest.mark.parametrize("name", ["bitfusion", "cortex-m7-cmsis-nn", "ethos-u55-128", "x86-onnxruntime"])


def space(weights, activations):
    """Sites in another order than the workload's columns."""
    return tuple((site, weights if site in NETWORK.weight_sites else activations) for site in reversed(NETWORK.sites))


def random_allocations(widths, count=50):
    """Positions of widths, and the bit matrix of the workload."""
    rng = np.random.default_rng(1)
    indices = np.stack([rng.integers(0, len(options), count) for _, options in widths], axis=1).astype(np.int8)
    bits = {site: np.array(options)[column] for (site, options), column in zip(widths, indices.T, strict=True)}
    return indices, np.stack([bits[site] for site in NETWORK.sites], axis=1)


def charged(cost, widths, indices):
    problem = AllocationProblem(widths, np.zeros(cost.tables.shape[1:]), (cost,))
    return problem.cost_of(cost.name, indices)


def packed(bits):
    return packed_size_bytes(NETWORK, bits).astype(np.float64)


def test_the_size_of_the_packed_file_is_a_sum():
    widths = space((2, 3, 4, 8, 16), (4, 8, 32))
    indices, bits = random_allocations(widths)
    cost = separable_cost("packed_bytes", packed, NETWORK, widths)
    np.testing.assert_array_equal(charged(cost, widths, indices), packed_size_bytes(NETWORK, bits))


@INTEGER_TARGETS
@pytest.mark.parametrize("metric", ["latency_ms", "weight_bytes"])
def test_costs_with_fixed_activations_are_those_of_the_simulator(name, metric):
    widths = space((2, 3, 4, 6, 8), (8,))
    table = compile_target(TARGETS[name], NETWORK)
    indices, bits = random_allocations(widths)
    np.testing.assert_allclose(
        charged(target_cost(metric, table, widths), widths, indices), getattr(evaluate(table, bits), metric), rtol=1e-9
    )


@INTEGER_TARGETS
def test_the_peak_is_the_largest_sum_over_the_cuts(name):
    widths = space((4,), (2, 4, 6, 8))
    table = compile_target(TARGETS[name], NETWORK)
    indices, bits = random_allocations(widths)
    cost = peak_activation_cost(table, widths)
    assert len(cost.tables) < len(NETWORK.layers)
    np.testing.assert_array_equal(charged(cost, widths, indices), evaluate(table, bits).peak_activation_bytes)


def test_a_latency_that_depends_on_widths_jointly_is_refused():
    table = compile_target(TARGETS["bitfusion"], NETWORK)
    with pytest.raises(NotSeparableError, match=r"latency_ms\[bitfusion\] is no sum over the sites: .* activations fixed"):
        target_cost("latency_ms", table, space((2, 4, 8), (2, 8)))


def test_widths_that_a_target_refuses_are_named():
    table = compile_target(TARGETS["ethos-u55-128"], NETWORK)
    with pytest.raises(UserError, match=r"latency_ms\[ethos-u55-128\]: layer 'input_proj'.*32-bit"):
        target_cost("latency_ms", table, space((8,), (32,)))
    with pytest.raises(UserError, match=r"peak_activation_bytes\[ethos-u55-128\]: the target cannot hold site .* at 32 bits"):
        peak_activation_cost(table, space((8,), (8, 32)))


def test_sites_of_another_network_are_refused():
    with pytest.raises(ValueError, match="not those of workload"):
        separable_cost("packed_bytes", packed, NETWORK, (("a.weight", (2, 4)),))


def test_changes_are_counted_from_the_narrowest_allocation():
    """Also where a cost is no sum: each entry is what one site alone changes."""
    widths = space((2, 4, 8), (4, 8))
    table = compile_target(TARGETS["bitfusion"], NETWORK)

    def latency(bits):
        return evaluate(table, bits).latency_ms

    found, start = site_changes(latency, NETWORK, widths)
    narrowest = np.array([[2 if site in NETWORK.weight_sites else 4 for site in NETWORK.sites]])
    before = float(latency(narrowest)[0])
    assert start == pytest.approx(before, rel=1e-9)
    for row, (site, options) in enumerate(widths):
        for place, bits in enumerate(options):
            changed = narrowest.copy()
            changed[0, NETWORK.sites.index(site)] = bits
            assert found[row, place] == pytest.approx(float(latency(changed)[0]) - before, abs=1e-9 * before)
        assert not found[row, len(options) :].any()


def test_changes_to_widths_without_a_cost_are_infinite():
    def charge(bits):
        total = bits.sum(axis=1).astype(float)
        return np.where((bits == 16).any(axis=1), np.inf, total)

    widths = space((2, 16), (8,))
    found, start = site_changes(charge, NETWORK, widths)
    assert np.isfinite(start)
    for row, (_, options) in enumerate(widths):
        assert np.isinf(found[row, : len(options)]).tolist() == [bits == 16 for bits in options]
    with pytest.raises(UserError, match="not finite at some widths of the space"):
        separable_cost("time", charge, NETWORK, widths)
