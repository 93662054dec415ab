"""Which node of an exported file quantizes which site.

Exporters keep neither names nor the order of nodes. Both the network's graph and the file's are walked from their output towards
their input instead, every operation's inputs in their order, and the quantizers are met in the same order in both.
"""

from collections.abc import Callable, Mapping, Sequence

from onnx import ModelProto, NodeProto

from hwsearch.network.graph import Graph
from hwsearch.network.operations import Slice

_READ_ONCE = {"Expand", "Pad", "ReduceMean", "Reshape", "Slice", "Squeeze", "Unsqueeze"}
"""Operators of which only the first input is data."""


def site_nodes(
    model: ModelProto, graph: Graph, sites: Mapping[str, str], quantizes: Callable[[NodeProto], bool]
) -> dict[str, NodeProto] | None:
    """The node that quantizes each site; none where a file has more or fewer such nodes than there are sites.

    Args:
        model: the file's graph.
        graph: the network, of one output.
        sites: for each quantized tensor of the network its site.
        quantizes: tells the nodes.
    """
    wanted = [sites[tensor] for tensor in _walk_graph(graph) if tensor in sites]
    nodes = nodes_that_quantize(model, quantizes)
    if not len(nodes) == len(wanted) == len(sites):
        return None
    return dict(zip(wanted, nodes, strict=True))


def nodes_that_quantize(model: ModelProto, quantizes: Callable[[NodeProto], bool]) -> list[NodeProto]:
    """The nodes that quantize something computed from the input, in the order of `_walk_graph`."""
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


def _walk_graph(graph: Graph) -> list[str]:
    """Tensors of a graph, each behind those that its operation reads, and those in the operation's order."""

    def read(tensor: str) -> Sequence[str]:
        operation = graph.by_name.get(tensor)
        if operation is None:
            return ()
        return operation.inputs[:1] if isinstance(operation, Slice) else operation.inputs

    return _post_order(graph.outputs[0], read)


def _post_order(output: str, read: Callable[[str], Sequence[str]]) -> list[str]:
    """Everything that an output depends on, and the output last."""
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
