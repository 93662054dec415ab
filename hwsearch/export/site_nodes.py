"""The order in which quantizers stand in a network and in its exported file.

Exporters keep neither names nor the order of nodes. A walk from the output towards the input, which follows the inputs of each
operation in their order, meets the quantizers of both graphs in the same order.
"""

from collections.abc import Callable, Sequence

from onnx import ModelProto, NodeProto

from hwsearch.export.network import ExportedNetwork
from hwsearch.network.graph import Graph
from hwsearch.network.operations import Slice

_READ_ONCE = {"Expand", "Pad", "ReduceMean", "Reshape", "Slice", "Squeeze", "Unsqueeze"}
"""Operators whose first input is their only data."""


def quantizers(model: ModelProto, network: ExportedNetwork, quantizes: Callable[[NodeProto], bool]) -> dict[str, NodeProto]:
    """The node that quantizes each site, in the order of sites.

    Raises:
        ValueError: the graph has another number of quantizers.
    """
    tensors = network.network.graph_sites.tensors
    quantized = [site for site, grid in network.network.activation_grids().items() if grid is not None]
    site_of = {tensors[site]: site for site in quantized}
    walked = [site_of[tensor] for tensor in walked_tensors(network.network.graph) if tensor in site_of]
    nodes = nodes_that_quantize(model, quantizes)
    if not len(nodes) == len(walked) == len(quantized):
        raise ValueError(f"the graph quantizes {len(nodes)} activations; the allocation has {len(quantized)}")
    found = dict(zip(walked, nodes, strict=True))
    return {site: found[site] for site in quantized}


def nodes_that_quantize(model: ModelProto, quantizes: Callable[[NodeProto], bool]) -> list[NodeProto]:
    """The nodes that quantize something computed from the input, in the order of the walk."""
    computed = {model.graph.input[0].name}
    for node in model.graph.node:
        if computed.intersection(node.input):
            computed.update(node.output)
    writers = {output: node for node in model.graph.node for output in node.output if output in computed}

    def read(tensor: str) -> Sequence[str]:
        node = writers.get(tensor)
        if node is None:
            return ()
        names = node.input[:1] if node.op_type in _READ_ONCE else node.input
        return [name for name in names if name in computed]

    walked = _post_order(model.graph.output[0].name, read)
    return [writers[tensor] for tensor in walked if tensor in writers and quantizes(writers[tensor])]


def walked_tensors(graph: Graph) -> list[str]:
    """The tensors of a graph with one output, in the order of the walk."""

    def read(tensor: str) -> Sequence[str]:
        operation = graph.by_name.get(tensor)
        if operation is None:
            return ()
        return operation.inputs[:1] if isinstance(operation, Slice) else operation.inputs

    return _post_order(graph.outputs[0], read)


def _post_order(output: str, read: Callable[[str], Sequence[str]]) -> list[str]:
    """Everything that an output depends on, each after what it reads, and the output last."""
    found: dict[str, None] = {}
    left = [(output, False)]
    while left:
        name, complete = left.pop()
        if complete:
            found[name] = None
        elif name not in found:
            left.append((name, True))
            left.extend((each, False) for each in reversed(read(name)))
    return list(found)
