"""Which of the processor's kernels the passes run in.

On one thread, PyTorch computes a convolution of one tap with MKL, like any product of matrices. MKL runs AVX-512 code on Intel
processors only. On others, oneDNN is twice as fast, and PyTorch uses it for dilated convolutions. For a single tap, a dilation
changes only the choice of the library. Sums are rounded in another order: 1e-6 of the output.
"""

from dataclasses import replace

from hwsearch.network.graph import Graph
from hwsearch.network.operations import Convolution, Operation


def through_onednn(graph: Graph) -> Graph:
    """Return the same network in a form whose convolutions of one tap PyTorch computes with oneDNN, forward and backward.

    On another device than the processor, the network stays as it is.
    """

    def dilated(operation: Operation) -> Operation:
        if not isinstance(operation, Convolution):
            return operation
        weight = graph.parameter(operation, "weight")
        return replace(operation, dilation=2) if weight.is_cpu and weight.shape[-1] == 1 else operation

    return replace(graph, operations=tuple(map(dilated, graph.operations)))
