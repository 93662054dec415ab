"""Which layers of an exported file hold unsigned weights, so that the file is exact on every processor.

Without VNNI the x86 kernels for unsigned activations and signed weights add two neighbouring products in 16 bits, which
saturates: 255 * 127 * 2 > 32767. Their kernels for unsigned weights add in 32 bits, as all depthwise kernels do.
"""

from collections.abc import Sequence

from hwsearch.network.operations import Convolution, Operation, TransposedConvolution
from hwsearch.separator.quantizers import weight_limit

UNSIGNED_ZERO_POINT = 128
"""The integer that stands for zero in unsigned weights."""

_LARGEST_SUM = 2**15 - 1


def could_saturate(layer: Operation, weight: Sequence[int], weight_bits: int, activation_bits: int) -> bool:
    """Whether a layer's weights are stored as uint8 and not as int8.

    Args:
        layer: a layer of a graph.
        weight: shape of its weights.
        weight_bits: their width.
        activation_bits: width of what it reads.
    """
    if isinstance(layer, TransposedConvolution):
        return False  # computed in floating point
    groups = layer.groups if isinstance(layer, Convolution) and weight[0] == layer.groups and weight[1] == 1 else 1
    return holds_unsigned_weights(groups, weight_bits, activation_bits)


def holds_unsigned_weights(groups: int, weight_bits: int, activation_bits: int) -> bool:
    """`could_saturate`, of the groups of a depthwise convolution, or of 1 for any other layer.

    Args:
        groups: of a depthwise convolution, or 1.
        weight_bits: width of its weights.
        activation_bits: width of what it reads.
    """
    if groups > 1 or max(weight_bits, activation_bits) > 8:
        return False  # computed in 32 bits, or in floating point
    largest: int = 2 * (2**activation_bits - 1) * weight_limit(weight_bits)
    return largest > _LARGEST_SUM
