"""The choice of the library that computes convolutions on the processor.

On one thread, PyTorch computes a convolution of one tap with MKL, which runs AVX-512 code on Intel processors only. On others,
oneDNN is twice as fast, and PyTorch uses it for dilated convolutions. For a single tap, a dilation changes nothing else. Sums are
rounded in another order, which changes the output by 1e-6 of its size.
"""

from dataclasses import replace

from hwsearch.network.graph import Graph
from hwsearch.network.operations import Convolution, Operation


def through_onednn(graph: Graph) -> Graph:
    """Make PyTorch compute a network's convolutions of one tap with oneDNN. On a GPU, the network stays as it is."""

    def dilated(operation: Operation) -> Operation:
        if not isinstance(operation, Convolution):
            return operation
        weight = graph.parameter(operation, "weight")
        return replace(operation, dilation=2) if weight.is_cpu and weight.shape[-1] == 1 else operation

    return replace(graph, operations=tuple(map(dilated, graph.operations)))
