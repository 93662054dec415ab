"""The times of layers of many allocations at once are those of one allocation after another."""

import numpy as np
import pytest

from hw_models.breakdown import layer_times, per_layer
from hw_models.compile import compile_target
from hw_models.cost import placement_of
from hw_models.errors import TargetError
from tests.hw_models.networks import RUNNABLE_WIDTHS, TARGETS, tcn


@pytest.mark.parametrize("name", TARGETS)
def test_times_of_many_allocations_are_those_of_each(name):
    table = compile_target(TARGETS[name], tcn())
    bits = np.random.default_rng(1).choice(RUNNABLE_WIDTHS[name], (6, len(table.workload.sites)))
    times = layer_times(table, bits)
    for row, each in enumerate(bits):
        layers = per_layer(table, each)
        np.testing.assert_allclose(times.latency_ms[row], [layer.latency_ms for layer in layers], rtol=1e-12)
        np.testing.assert_allclose(times.energy_uj[row], [layer.energy_uj for layer in layers], rtol=1e-12)


def test_an_allocation_that_the_target_refuses_has_no_times_and_leaves_the_others_alone():
    table = compile_target(TARGETS["ethos-u55-128"], tcn())
    bits = np.full((2, len(table.workload.sites)), 8)
    bits[0, 0] = 32
    with pytest.raises(TargetError):
        per_layer(table, bits[0])
    times = layer_times(table, bits)
    assert np.isnan(times.latency_ms[0]).all()
    assert np.isnan(times.energy_uj[0]).all()
    assert (times.latency_ms[1] > 0).all()


def test_each_allocation_of_a_batch_has_the_memory_levels_that_it_has_alone():
    name = "systolic-weight-stationary"
    found = set()
    for frames in (20, 400):
        table = compile_target(TARGETS[name], tcn(bottleneck=64, hidden=128, frames=frames))
        bits = np.stack([np.full(len(table.workload.sites), width) for width in (2, 4, 8)])
        times = layer_times(table, bits)
        for row, each in enumerate(bits):
            np.testing.assert_allclose(times.latency_ms[row], [layer.latency_ms for layer in per_layer(table, each)], rtol=1e-12)
            found.add(placement_of(table, each))
    assert len(found) > 1
