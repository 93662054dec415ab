"""Tensors that are carried on at one bit-width and read by layers at another.

A residual trunk grows through many sums. Rounded to 8 bits at each of them, it loses most of what 8-bit activations lose at all;
carried in 16 bits and handed to each layer in 8, it loses little, and the layers stay in 8 bits.
"""

from dataclasses import replace

from hwsearch.network.graph import Graph
from hwsearch.network.operations import Operation, Read
from hwsearch.network.sites import LAYERS, find_sites

_INPUT = ".input"


def with_reads(graph: Graph) -> Graph:
    """Put a `Read` before each layer whose input is also read by an operation that is no layer.

    Such tensors are the sums of residual blocks. What a layer makes is not among them: integer kernels round it to 8 bits.
    """
    sites = find_sites(graph)
    operations: list[Operation] = []
    for operation in graph.operations:
        read = operation
        if isinstance(operation, LAYERS) and sites.grids.get(operation.inputs[0]) in sites.carried:
            operations.append(Read(operation.name + _INPUT, operation.inputs))
            read = replace(operation, inputs=(operation.name + _INPUT,))
        operations.append(read)
    return replace(graph, operations=tuple(operations))
