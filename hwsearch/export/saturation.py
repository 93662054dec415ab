"""The layers of an exported file that hold unsigned weights, so that the file is exact on every processor.

Without VNNI, the x86 kernels for unsigned activations and signed weights add two neighbouring products in 16 bits. That sum
saturates: 255 * 127 * 2 > 32767. The kernels for unsigned weights, and all depthwise kernels, add in 32 bits.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from hwsearch.network.operations import Convolution, Operation, TransposedConvolution
from hwsearch.separator.allocation import weight_limit

UNSIGNED_ZERO_POINT = 128
"""The integer that stands for zero in unsigned weights."""

_LARGEST_SUM = 2**15 - 1


def could_saturate(layer: Operation, weight: Sequence[int], weight_bits: int, activation_bits: int) -> bool:
    """Whether a layer needs uint8 weights instead of int8.

    Args:
        layer: a layer of a graph.
        weight: shape of its weights.
        weight_bits: bit-width of its weights.
        activation_bits: bit-width of the tensor that it reads.
    """
    if isinstance(layer, TransposedConvolution):
        return False  # computed in floating point
    groups = layer.groups if isinstance(layer, Convolution) and weight[0] == layer.groups and weight[1] == 1 else 1
    return holds_unsigned_weights(groups, weight_bits, activation_bits)


def holds_unsigned_weights(groups: int, weight_bits: int, activation_bits: int) -> bool:
    """`could_saturate` for a layer that is known by `groups`: those of a depthwise convolution, 1 for any other layer."""
    if groups > 1 or max(weight_bits, activation_bits) > 8:
        return False  # computed in 32 bits, or in floating point
    largest: int = 2 * (2**activation_bits - 1) * weight_limit(weight_bits)
    return largest > _LARGEST_SUM


@cache
def kernels_saturate() -> bool:
    """Whether the kernels that ONNX Runtime takes on this processor add products of unsigned and signed bytes in 16 bits."""
    values = {
        "scale": np.float32(1.0),
        "zero": np.uint8(0),
        "weights": np.full((16, 16, 1), 127, np.int8),
        "weight_zero": np.int8(0),
        "step": np.float32(16 * 127),
    }
    node = helper.make_node("QLinearConv", ["x", "scale", "zero", "weights", "scale", "weight_zero", "step", "zero"], ["y"])
    tensors = [helper.make_tensor_value_info(name, TensorProto.UINT8, [1, 16, 1]) for name in ("x", "y")]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    graph = helper.make_graph([node], "saturates", tensors[:1], tensors[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.full((1, 16, 1), 255, np.uint8)})
    return bool((found != 255).any())
