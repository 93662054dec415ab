"""Foldings of a network's circuits, as FINN's folding configuration: PE and SIMD of every node.

`hw_models` chooses them: the fastest folding that fits on the device (`hw_models.dataflow`). FINN names nodes after their
operator and numbers them in the order of execution. There is one such order: the export refuses branches beside one another
(`hwsearch.export.finn.limits`).
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hw_models.dataflow.folding import MAX_BITS, Folding
from hw_models.dataflow.table import DataflowCosts, compile_dataflow, design, evaluate_dataflow
from hw_models.target import load_target
from hw_models.workload import IntArray, Workload, bits_matrix
from hwsearch.export.finn.graph import unrounded_sites
from hwsearch.export.network import ExportedNetwork
from hwsearch.network import operations as ops
from hwsearch.network.graph import Graph
from hwsearch.network.sites import find_sites
from hwsearch.separator.workload import build_workload

TARGETS = ("finn-pynq-z2", "finn-zcu104")
"""The built-in FINN targets."""

_SUMS = ("AddStreams_hls", "ElementwiseAdd_hls")
"""Names of the operator that adds, in FINN and in finn-plus."""

_Node = tuple[str, dict[str, int]]
"""Operator and attributes of a node."""


def folding_file(target: str) -> str:
    """Return the name of the folding configuration for a target."""
    return f"folding-{target}.json"


def folding_configuration(network: ExportedNetwork, frames: int, target: str) -> dict[str, Any]:
    """Return FINN's folding configuration of a network for a built-in target."""
    workload, bits = modelled_workload(network, frames)
    designs = design(compile_dataflow(load_target(target), workload), bits[0])
    found: dict[str, Any] = {"Defaults": {}}
    numbers: Counter[str] = Counter()
    for operator, attributes in _nodes(network, {layer.layer: layer.folding for layer in designs}):
        for name in _SUMS if operator in _SUMS else (operator,):
            found[f"{name}_{numbers[name]}"] = attributes
            numbers[name] += 1
    return found


def modelled_designs(network: ExportedNetwork, frames: int) -> dict[str, dict[str, int | bool]]:
    """Return logic, memory and cycles of the design on each built-in target, and whether it fits, as JSON objects."""
    found: dict[str, dict[str, int | bool]] = {}
    for target in TARGETS:
        costs = modelled_costs(network, frames, target)
        columns = {"lut": costs.lut, "bram18": costs.bram18, "interval_cycles": costs.interval_cycles}
        found[target] = {name: int(column[0]) for name, column in columns.items()} | {"fits": bool(costs.fits[0])}
    return found


def modelled_costs(network: ExportedNetwork, frames: int, target: str) -> DataflowCosts:
    """Return what `hw_models` charges for the design on a target.

    The sums of a trunk of 16 bits count as 8 bits: the model has no wider circuits. Their thresholds count once, where FINN has
    them behind the sum.
    """
    workload, bits = modelled_workload(network, frames)
    return evaluate_dataflow(compile_dataflow(load_target(target), workload), bits)


def modelled_workload(network: ExportedNetwork, frames: int) -> tuple[Workload, IntArray]:
    """Return workload and widths [1, sites] as `hw_models` knows them: with sums of 8 bits, which layers read as they are."""
    graph = _without_reads(network.network.graph)
    channels = dict.fromkeys(graph.inputs, network.features)
    workload = build_workload(graph, find_sites(graph), channels, frames, 1.0, "separator", per_channel=True)
    bits = network.network.allocation.by_site
    return workload, np.minimum(bits_matrix(workload, [{site: bits[site] for site in workload.sites}]), MAX_BITS)


def _without_reads(graph: Graph) -> Graph:
    """Let layers read what a `Read` reads."""
    read = {operation.name: operation.inputs[0] for operation in graph.operations if isinstance(operation, ops.Read)}
    kept = (operation for operation in graph.operations if operation.name not in read)
    operations = tuple(replace(each, inputs=tuple(read.get(name, name) for name in each.inputs)) for each in kept)
    return replace(graph, operations=operations)


def _nodes(network: ExportedNetwork, foldings: Mapping[str, Folding]) -> Iterator[_Node]:
    """Give the nodes that FINN makes, in their order."""
    graph, sites = network.network.graph, network.network.graph_sites
    unrounded = unrounded_sites(network)
    for operation in graph.operations:
        match operation:
            case ops.Convolution():
                yield from _layer(operation, graph.parameter(operation, "weight").shape[2], foldings[operation.name])
            case ops.Add():
                pe = foldings[operation.name].pe
                yield _SUMS[0], {"PE": pe}
                if sites.of_tensor.get(operation.name) not in unrounded:
                    yield "Thresholding_rtl", {"PE": pe}
            case ops.Read():
                yield "Thresholding_rtl", {"PE": _lanes(network, operation.inputs[0], foldings)}
        if len(graph.readers[operation.name]) > 1:
            yield "DuplicateStreams_hls", {"PE": _lanes(network, operation.name, foldings)}


def _layer(layer: ops.Convolution, kernel: int, folding: Folding) -> Iterator[_Node]:
    """Give the nodes of a layer: padding, sliding window, and the engine with its thresholds."""
    if any(layer.padding):
        yield "FMPadding_rtl", {"SIMD": folding.padding_simd}
    if kernel > 1:
        yield (
            "ConvolutionInputGenerator_rtl",
            {"SIMD": folding.window_simd, "parallel_window": int(folding.parallel_window)},
        )
    yield "VVAU_hls" if layer.groups > 1 else "MVAU_hls", {"PE": folding.pe, "SIMD": folding.simd}


def _lanes(network: ExportedNetwork, tensor: str, foldings: Mapping[str, Folding]) -> int:
    """Return the lanes of a stream: those of the sum that makes it, or of the sum that it goes into."""
    graph = network.network.graph
    for operation in (graph.by_name.get(tensor), *graph.readers[tensor]):
        if isinstance(operation, ops.Add):
            return foldings[operation.name].pe
    return 1
