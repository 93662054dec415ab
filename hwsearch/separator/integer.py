"""Layers in 8-bit integers, for processors that can multiply them.

Products are summed as exact integers and rounded once to the grid of the output. A value differs from that of the Brevitas
network only if float rounding there moves it across the midpoint between two integers.

oneDNN's kernels need channels-last tensors, [batch, frames, channels]. A linear layer takes any axes before the last. Quantized
graphs of torch use the same kernels.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from hwsearch.network.graph import Graph
from hwsearch.network.operations import Convolution, Linear, Operation
from hwsearch.separator.quantizers import MAX_BITS, ActivationGrid, QuantizedWeight, bias_integers

_MOST_PRODUCTS = 2**31 // 2 ** (2 * MAX_BITS - 1)
"""Largest number of products of bytes whose sum fits into 32 bits."""


@cache
def integers_are_fast() -> bool:
    """Whether this processor sums products of bytes exactly (VNNI); oneDNN may otherwise add pairs in 16 bits, and saturate."""
    capabilities = torch.cpu.get_capabilities()
    vnni = any(bool(capabilities.get(name)) for name in ("avx512_vnni", "avx_vnni", "avx2_vnni"))
    return vnni and hasattr(torch.ops.onednn, "qlinear_pointwise")


def has_kernel(graph: Graph, operation: Operation) -> bool:
    """Whether a kernel can compute an operation if input and weights have at most `MAX_BITS` bits."""
    is_taken = isinstance(operation, Convolution | Linear)
    return is_taken and graph.parameter(operation, "weight")[0].numel() <= _MOST_PRODUCTS


def is_product(operation: Operation, weight: Tensor) -> bool:
    """Whether a layer is a matrix product for each frame."""
    match operation:
        case Linear():
            return True
        case Convolution(stride=1, groups=1, padding=(0, 0)):
            return weight.shape[2] == 1
        case _:
            return False


@dataclass(frozen=True, eq=False)
class IntegerLayer:
    """A convolution or linear layer that reads a grid.

    Attributes:
        read: grid of the input.
        reads: arguments of the kernel: scale and zero point of the input, packed weights, their scales and zero points, and the
            bias, rounded to the grid of the products.
        geometry: stride, padding, dilation and groups of a convolution over images of one row; None for a matrix product.
        padding: frames that are added before and after the input.
    """

    read: ActivationGrid
    reads: tuple[float, int, Tensor, Tensor, Tensor, Tensor]
    geometry: tuple[list[int], list[int], list[int], int] | None
    padding: tuple[int, int]


def integer_layer(operation: Operation, weight: QuantizedWeight, bias: Tensor, read: ActivationGrid) -> IntegerLayer:
    """Pack the weights of a convolution or linear layer for inputs on a grid."""
    channels = len(weight.integers)
    scale = weight.scale.flatten().expand(channels).contiguous()
    product_scale = weight.scale.flatten() * read.scale
    rounded = bias_integers(bias, product_scale) * product_scale
    integers = weight.integers.to(torch.int8)
    geometry, padding = None, (0, 0)
    if is_product(operation, integers):
        packed = torch.ops.onednn.qlinear_prepack(integers.reshape(channels, -1).contiguous(), None)
    elif isinstance(operation, Convolution):
        geometry, padding = ([1, operation.stride], [0, 0], [1, operation.dilation], operation.groups), operation.padding
        packed = torch.ops.onednn.qconv_prepack(integers[:, :, None], scale, read.scale, read.zero_point, *geometry, None)
    else:
        raise TypeError(f"no kernel for '{operation.name}'; wanted a convolution or a linear layer")
    zeros = torch.zeros(channels, dtype=torch.int32)
    return IntegerLayer(read, (read.scale, read.zero_point, packed, scale, zeros, rounded), geometry, padding)


def to_grid(x: Tensor, grid: ActivationGrid) -> tuple[Tensor, Tensor]:
    """Round to a grid; return the uint8 integers and their values as new tensors."""
    quotient = _quotient(x, grid)
    return _bytes(quotient + grid.zero_point), quotient.mul_(grid.scale)


def integers_on(x: Tensor, grid: ActivationGrid) -> Tensor:
    """Round to a grid; return only the integers of `to_grid`."""
    return _bytes(_quotient(x, grid).add_(grid.zero_point))


def _quotient(x: Tensor, grid: ActivationGrid) -> Tensor:
    return (x / grid.scale).round_().clamp_(-grid.zero_point, grid.levels - grid.zero_point)


def _bytes(x: Tensor) -> Tensor:
    """Convert whole floats to uint8 via int32, because torch's direct conversion is not vectorised."""
    return x.to(torch.int32).to(torch.uint8)


def from_grid(x: Tensor, grid: ActivationGrid) -> Tensor:
    """Return the values of integers on a grid."""
    return x.float().sub_(grid.zero_point).mul_(grid.scale)


def run_layer(x: Tensor, layer: IntegerLayer, write: ActivationGrid | None, slope: float = 1.0) -> Tensor:
    """Compute a layer and the function behind it.

    Args:
        x: uint8 [batch, frames, in].
        layer: the packed layer.
        write: grid of the output; None for real values.
        slope: of the function for negative arguments: 1 for no function, 0 for a ReLU. Only a matrix product takes others.

    Returns:
        [batch, frames, out], uint8 on a grid.
    """
    scale, zero_point, kind = (1.0, 0, torch.float32) if write is None else (write.scale, write.zero_point, torch.uint8)
    function = {1.0: ("none", []), 0.0: ("relu", [])}.get(slope, ("leaky_relu", [slope]))
    writes = scale, zero_point, kind, *function, ""
    y: Tensor
    if layer.geometry is None:
        y = torch.ops.onednn.qlinear_pointwise(x, *layer.reads, *writes)
    else:
        padded = functional.pad(x, (0, 0, *layer.padding), value=layer.read.zero_point) if any(layer.padding) else x
        image = padded.transpose(1, 2)[:, :, None]
        y = torch.ops.onednn.qconv2d_pointwise(image, *layer.reads, *layer.geometry, *writes)[:, :, 0].transpose(1, 2)
    # The kernel clamps its result to 8 bits only.
    return y.clamp_(max=write.levels) if write is not None and write.bits < MAX_BITS else y
