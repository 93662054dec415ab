"""Bit operations (BOPs), the count of work that papers quote; it is the same on every target.

    BOPs = sum over layers of MACs * weight bits * input activation bits

with the chosen widths and the MACs of the network. float32 counts as 32 bits. Sums and biases count nothing. QONNX's
`inference_cost` gives the same number without its sparsity discount.
"""

import numpy as np

from hw_models.workload import IntArray, Workload, check_bits


def bit_operations(workload: Workload, bits: IntArray) -> IntArray:
    """Bit operations `[allocations]` of one inference for allocations `[allocations, sites]`.

    Raises:
        TargetError: a wrong shape or width.
    """
    check_bits(workload, bits)
    inputs = [workload.column[layer.input_sites[0]] for layer in workload.weight_layers]
    weight_bits = bits[:, : len(inputs)].astype(np.int64)  # weight columns come first, in the order of `weight_layers`
    macs = np.array([layer.macs(workload.frames) for layer in workload.weight_layers], np.int64)
    counted: IntArray = (weight_bits * bits[:, inputs]) @ macs
    return counted
