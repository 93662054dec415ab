"""Bit operations: the bit-width-aware count of work that papers quote, the same on every target.

    BOPs = sum over layers of MACs * weight bits * input activation bits

with the chosen widths and the network's own MACs; float32 counts as 32 bits. A sum has no MACs and counts
nothing, nor do biases. This is the count of QONNX's `inference_cost` without its sparsity discount.
"""

import numpy as np

from hw_models.workload import IntArray, Workload, check_bits


def bit_operations(workload: Workload, bits: IntArray) -> IntArray:
    """Bit operations of one inference for allocations `[allocations, sites]`, `[allocations]`.

    Raises:
        TargetError: a wrong shape or width.
    """
    check_bits(workload, bits)
    inputs = [workload.column[layer.input_sites[0]] for layer in workload.weight_layers]
    weight_bits = bits[:, : len(inputs)].astype(np.int64)  # weight columns come first, in the order of `weight_layers`
    macs = np.array([layer.macs(workload.frames) for layer in workload.weight_layers], np.int64)
    counted: IntArray = (weight_bits * bits[:, inputs]) @ macs
    return counted
