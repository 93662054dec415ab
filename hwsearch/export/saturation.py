"""The layers of an exported file that hold unsigned weights, so that the file is exact on every processor.

Without VNNI, the x86 kernels for unsigned activations and signed weights add two neighbouring products in 16 bits. That sum
saturates: 255 * 127 * 2 > 32767. The kernels for unsigned weights, and all depthwise kernels, add in 32 bits.
"""

from collections.abc import Sequence

from hwsearch.network.operations import Convolution, Operation, TransposedConvolution
from hwsearch.separator.quantizers import weight_limit

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
