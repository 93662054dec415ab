"""Costs of what is kept of a network are those of the narrowed network by itself, on every target."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from hw_models.compile import compile_target
from hw_models.cost import Costs, evaluate_runnable
from hw_models.elastic_cost import compile_elastic, evaluate_elastic
from hw_models.elastic_shapes import Kept, elastic_shapes
from hw_models.errors import TargetError
from hw_models.packed import average_weight_bits
from hwsearch.network.blocks import Block
from hwsearch.network.sites import find_sites, with_reads
from hwsearch.search.costs import inner_weight_sites
from hwsearch.separator.elastic_workload import build_elastic_workload
from hwsearch.separator.workload import build_workload
from tests.hw_models.networks import RUNNABLE_WIDTHS, TARGETS
from tests.network.entangled import ENTANGLED
from tests.network.modules import settle
from tests.network.random_modules import random_module
from tests.network.test_options import CONV_TASNET, NETWORKS, inputs_of, options_of, separator_graph, traced_module

FRAMES = 40
COUNT = 3


def workload_of(graph, *, streaming=False):
    channels = {graph.inputs[0]: inputs_of(graph)}
    frames = 64 if graph.inputs[0] == "waveform" else FRAMES
    workload = build_workload(graph, find_sites(graph), channels, frames, 0.01, "separator", per_channel=True)
    return workload.streamed() if streaming else workload


def values_of(options):
    """A few values of each option."""
    found = {}
    for name, option in options.by_name.items():
        whole = options.whole(name)
        found[name] = (0, 1) if isinstance(option, Block) else tuple(sorted({1, max(1, whole // 2), whole}))
    return found


def compare(graph, target, seed, *, streaming=False, count=COUNT):
    """Cost random configurations together, and each by itself."""
    options, random = options_of(graph), np.random.default_rng(seed)
    values = values_of(options)
    elastic = build_elastic_workload(graph, options, values, lambda each: workload_of(each, streaming=streaming))
    bits = random.choice(RUNNABLE_WIDTHS[target], (count, len(elastic.workload.sites)))
    structures = [{name: int(random.choice(each)) for name, each in values.items()} for _ in range(count)]
    shapes = elastic_shapes(elastic)
    can, together = evaluate_elastic(compile_elastic(TARGETS[target], shapes), bits, elastic.structures(structures))
    kept = Kept(shapes, bits, elastic.structures(structures))
    there, mean, inner = kept.sites_there(), kept.average_weight_bits(), kept.average_weight_bits(inner=True)
    number = 0
    for row, (widths, structure) in enumerate(zip(bits, structures, strict=True)):
        alone = workload_of(options.narrowed(graph, structure), streaming=streaming)
        columns = [elastic.workload.column[site] for site in alone.sites]
        assert set(columns) == set(np.flatnonzero(there[:, row]).tolist())
        assert mean[row] == pytest.approx(average_weight_bits(alone, widths[None, columns])[0])
        own_inner = average_weight_bits(alone, widths[None, columns], inner_weight_sites(alone))[0]
        assert inner[row] == pytest.approx(own_inner)
        runs, costs = evaluate_runnable(compile_target(TARGETS[target], alone), widths[None, columns])
        assert runs[0] == can[row]
        if not runs[0]:
            continue
        for field in fields(Costs):
            ours, theirs = getattr(together, field.name), getattr(costs, field.name)
            if field.name == "resources":
                assert {name: each[number] for name, each in ours.items()} == {name: each[0] for name, each in theirs.items()}
            else:
                np.testing.assert_allclose(ours[number], theirs[0], rtol=1e-12, err_msg=f"{field.name} {structure}")
        number += 1
    assert number == len(together.latency_ms)


@pytest.mark.parametrize("target", TARGETS)
def test_a_narrowed_tcn_costs_what_it_costs_by_itself(target):
    compare(separator_graph(NETWORKS["relu"]), target, seed=1)


@pytest.mark.parametrize("kind", ["relu", "causal"])
@pytest.mark.parametrize("target", ["cortex-m7-cmix-nn", "gap8-pulp-nn", "x86-onnxruntime"])
def test_a_narrowed_tcn_costs_what_it_costs_by_itself_frame_by_frame(target, kind):
    compare(with_reads(separator_graph(NETWORKS[kind]), sums=True), target, seed=2, streaming=True, count=8)


@pytest.mark.parametrize("target", ["x86-onnxruntime", "nvidia-t4"])
def test_a_narrowed_conv_tasnet_costs_what_it_costs_by_itself(target):
    compare(separator_graph(CONV_TASNET), target, seed=3)


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 10**6))
@example(1)  # half of a tensor goes around a gate and is added behind it
def test_any_narrowed_network_costs_what_it_costs_by_itself(seed):
    try:
        graph = traced_module(random_module(seed))
        assume(options_of(graph).by_name)
        compare(graph, "x86-onnxruntime", seed, count=4)
    except (ValueError, TargetError):  # some have a tensor without channels, or operations that are not charged
        assume(False)


@pytest.mark.parametrize("kind", ENTANGLED)
def test_an_entangled_network_costs_what_it_costs_by_itself(kind):
    graph = traced_module(settle(ENTANGLED[kind](), 4))
    if options_of(graph).by_name:
        compare(graph, "x86-onnxruntime", 4)


def test_values_end_with_the_whole_and_structures_have_a_row_for_each_allocation():
    graph = separator_graph(NETWORKS["relu"])
    options = options_of(graph)
    with pytest.raises(ValueError, match=r"kept at \(2, 5\); wanted 10 at the end"):
        build_elastic_workload(graph, options, {"blocks.1.expand.channels": (2, 5)}, workload_of)
    elastic = build_elastic_workload(graph, options, {"blocks.1.kept": (0, 1)}, workload_of)
    for target in ("x86-onnxruntime", "finn-zcu104"):
        table = compile_elastic(TARGETS[target], elastic_shapes(elastic))
        bits = np.full((3, len(elastic.workload.sites)), 8)
        with pytest.raises(TargetError, match=r"structures of shape \(2, 1\); wanted \(3, 1\)"):
            evaluate_elastic(table, bits, elastic.structures([{}, {}]))
        can, costs = evaluate_elastic(table, bits[:0], elastic.structures([]))
        assert len(can) == len(costs.latency_ms) == 0


def test_a_structure_is_refused_by_name():
    graph = separator_graph(NETWORKS["relu"])
    options = options_of(graph)
    elastic = build_elastic_workload(graph, options, {"blocks.1.expand.channels": (2, 10)}, workload_of)
    with pytest.raises(TargetError, match=r"unknown option 'blocks.9.kept'"):
        elastic.structures([{"blocks.9.kept": 0}])
    with pytest.raises(TargetError, match=r"option 'blocks.1.expand.channels' is 3; wanted one of \[2, 10\]"):
        elastic.structures([{"blocks.1.expand.channels": 3}])


def test_a_narrowed_network_has_the_workload_of_a_network_built_narrow():
    whole = NETWORKS["relu"]
    graph = separator_graph(whole)
    options = options_of(graph)
    structure = {group.name: 4 for group in options.groups}
    structure |= {block.name: 0 for block in options.blocks[whole.X :]}
    built = separator_graph(whole.model_copy(update={"H": 4, "R": 1}))
    assert workload_of(options.narrowed(graph, structure)) == workload_of(built)
