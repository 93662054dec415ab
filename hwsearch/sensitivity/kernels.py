"""Which of the processor's kernels the passes run in.

PyTorch takes a convolution of one tap on one thread to MKL, as it does any product of matrices. MKL runs AVX-512 code on Intel
processors only; on others oneDNN is twice as fast, and PyTorch takes dilated convolutions there. For a single tap the dilation
changes nothing but that. Sums are rounded in another order: 1e-6 of the output.
"""

from dataclasses import replace

from hwsearch.network.graph import Graph
from hwsearch.network.operations import Convolution, Operation


def through_onednn(graph: Graph) -> Graph:
    """The same network, whose convolutions of one tap PyTorch computes by oneDNN, forward and backward.

    On another device than the processor it stays as it is.
    """

    def dilated(operation: Operation) -> Operation:
        if not isinstance(operation, Convolution):
            return operation
        weight = graph.parameter(operation, "weight")
        return replace(operation, dilation=2) if weight.is_cpu and weight.shape[-1] == 1 else operation

    return replace(graph, operations=tuple(map(dilated, graph.operations)))
