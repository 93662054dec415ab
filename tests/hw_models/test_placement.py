import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw_models.breakdown import per_layer
from hw_models.compile import compile_target
from hw_models.cost import evaluate, placement_of
from hw_models.errors import TargetError
from hw_models.placement import occupancies, place, placements
from hw_models.sections import Memory
from hw_models.target import Target
from hw_models.workload import LayerKind
from tests.hw_models.networks import TARGETS, one_layer, tcn


def level(name, size, holds, bytes_per_cycle=None):
    return Memory(name=name, bytes=size, bytes_per_cycle=bytes_per_cycle, holds=holds, source="s")


def chip(*levels):
    return TARGETS["cortex-m7-cmsis-nn"].model_copy(update={"memory": levels})


BOTH = ("weights", "activations")


@given(
    sizes=st.tuples(st.integers(1, 50), st.integers(1, 50), st.integers(1, 50)),
    weights=st.integers(0, 120),
    activations=st.integers(0, 120),
    seed=st.integers(0, 1000),
)
def test_tensors_lie_where_the_network_runs_fastest_of_where_there_is_room(sizes, weights, activations, seed):
    near, mid, far = level("near", sizes[0], BOTH), level("mid", sizes[1], ("weights",)), level("far", sizes[2], BOTH)
    target = chip(near, mid, far)
    options = [(w, a) for w in (near, mid, far) for a in (near, far)]
    cycles = np.random.default_rng(seed).uniform(1, 2, len(options))

    def share(option):
        held = dict.fromkeys(("near", "mid", "far"), 0)
        held[option[0].name] += weights
        held[option[1].name] += activations
        return max(held["near"] / sizes[0], held["mid"] / sizes[1], held["far"] / sizes[2])

    occupancy = occupancies(target, np.array([weights]), np.array([activations]))
    assert occupancy[0].tolist() == [share(option) for option in options]
    room = [number for number, option in enumerate(options) if share(option) <= 1]
    wanted = min(room, key=lambda number: cycles[number]) if room else len(options) - 1
    at = place(occupancy, cycles[None])[0]
    assert at == wanted
    assert (placements(target)[at].weights, placements(target)[at].activations) == options[wanted]


def test_narrower_activations_never_push_weights_out():
    network = tcn(bottleneck=64, hidden=256, blocks=8).streamed()
    table = compile_target(TARGETS["gap8-pulp-nn"], network)
    bits = np.full((2, len(network.sites)), 2)
    bits[:, len(network.weight_sites) :] = [[8], [4]]
    costs = evaluate(table, bits)
    assert costs.occupancy[1] <= costs.occupancy[0] <= 1
    slow = [placement_of(table, row).weights.bytes_per_cycle for row in bits]
    assert slow[0] == slow[1]


def test_a_network_that_outgrows_the_chip_pays_for_the_slow_memory():
    network = tcn()
    bits = np.stack([np.full(len(network.sites), width) for width in (4, 8)])
    unbound = compile_target(chip(level("sram", None, BOTH)), network)
    four, eight = evaluate(unbound, bits).weight_bytes.tolist()
    capacity = (four + eight) // 2
    slow = 0.001
    target = chip(
        level("ram", None, ("activations",)), level("near", capacity, ("weights",)), level("far", None, ("weights",), slow)
    )
    table = compile_target(target, network)
    costs, free = evaluate(table, bits), evaluate(unbound, bits)
    hz = target.clock.clock_hz
    assert costs.latency_ms[0] == free.latency_ms[0]
    assert costs.latency_ms[1] == pytest.approx(
        sum(max(layer.weight_bytes / slow, layer.cycles) for layer in per_layer(unbound, bits[1])) / hz * 1e3
    )
    assert costs.fits.tolist() == [True, True]
    assert [placement_of(table, row).weights.name for row in bits] == ["near", "far"]
    assert {layer.bound for layer in per_layer(table, bits[1]) if layer.kind is not LayerKind.ADD} == {"far"}


def test_a_batch_with_several_placements_costs_what_its_allocations_cost_one_by_one():
    network = tcn()
    bits = np.random.default_rng(0).choice([2, 4, 8], (200, len(network.sites)))
    free = evaluate(compile_target(chip(level("endless", None, BOTH)), network), bits)
    room = int(np.median(free.weight_bytes + free.peak_activation_bytes))
    table = compile_target(chip(level("near", room, BOTH), level("far", None, BOTH, 0.5)), network)
    batch = evaluate(table, bits)
    assert len({placement_of(table, row) for row in bits}) > 1
    for i in range(0, 200, 20):
        assert batch.latency_ms[i] == evaluate(table, bits[i : i + 1]).latency_ms[0]
        assert batch.latency_ms[i] == pytest.approx(sum(layer.latency_ms for layer in per_layer(table, bits[i])), rel=1e-12)


def test_what_is_too_large_for_every_level_does_not_fit():
    network = one_layer(LayerKind.CONV, 64, 64)
    bits = np.full((1, 3), 8)
    assert not evaluate(compile_target(chip(level("only", 1000, BOTH)), network), bits).fits[0]
    assert evaluate(compile_target(chip(level("only", 100_000, BOTH)), network), bits).fits[0]


def test_a_level_before_another_states_its_size():
    endless = [level("near", None, BOTH).model_dump(), level("far", 10, BOTH).model_dump()]
    content = TARGETS["cortex-m7-cmsis-nn"].model_dump() | {"memory": endless}
    with pytest.raises(ValueError, match="level 'near' holds weights and has no bytes"):
        Target.model_validate(content)


def test_no_allocation_is_placed_for_widths_that_are_none():
    table = compile_target(chip(level("only", None, BOTH)), one_layer(LayerKind.CONV, 4, 4))
    with pytest.raises(TargetError, match="found 17 bits"):
        placement_of(table, np.array([17, 8, 8]))
