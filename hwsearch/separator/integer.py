"""Layers in 8-bit integers, for processors that multiply these.

Products are summed as exact integers and rounded once to the next grid. So a value differs from that of the Brevitas network
only if float rounding there moves it across the midpoint between two integers.

Tensors are channels-last, [batch, frames, channels], as oneDNN's kernels need them. A linear layer's tensor may have any axes
before the last. The kernels are the same that torch's own quantized graphs are lowered to.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from hwsearch.network.graph import Graph
from hwsearch.network.operations import Convolution, Linear, Operation
from hwsearch.separator.quantizers import ActivationGrid, QuantizedWeight, bias_integers

MAX_BITS = 8
"""Widest weights and activations that the kernels take."""

_MOST_PRODUCTS = 2**31 // 2 ** (2 * MAX_BITS - 1)
"""Largest number of products of bytes whose sum always fits into 32 bits."""


@cache
def integers_are_fast() -> bool:
    """Whether this processor multiplies bytes and sums them exactly (VNNI).

    Without it oneDNN may add pairs of products in 16 bits, which saturates.
    """
    capabilities = torch.cpu.get_capabilities()
    vnni = any(bool(capabilities.get(name)) for name in ("avx512_vnni", "avx_vnni", "avx2_vnni"))
    return vnni and hasattr(torch.ops.onednn, "qlinear_pointwise")


def has_kernel(graph: Graph, operation: Operation) -> bool:
    """Whether a kernel computes an operation, provided that its input and its weights have at most `MAX_BITS` bits."""
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
        packed: the weights in the kernel's own layout.
        scale: [out], scale of the weights.
        zeros: [out], the weights' zero points.
        bias: [out], rounded to the products' grid.
        shape: the convolution, if it is more than a matrix product for each frame.
        read: grid of the input.
    """

    packed: Tensor
    scale: Tensor
    zeros: Tensor
    bias: Tensor
    shape: Convolution | None
    read: ActivationGrid


def integer_layer(operation: Operation, weight: QuantizedWeight, bias: Tensor, read: ActivationGrid) -> IntegerLayer:
    """Pack the weights of a convolution or linear layer for inputs on a grid."""
    channels = len(weight.integers)
    scale = weight.scale.flatten().expand(channels).contiguous()
    product_scale = weight.scale.flatten() * read.scale
    rounded = bias_integers(bias, product_scale) * product_scale
    integers = weight.integers.to(torch.int8)
    shape = None
    if is_product(operation, integers):
        packed = torch.ops.onednn.qlinear_prepack(integers.reshape(channels, -1).contiguous(), None)
    elif isinstance(operation, Convolution):
        shape = operation
        geometry = _geometry(shape)
        packed = torch.ops.onednn.qconv_prepack(integers[:, :, None], scale, read.scale, read.zero_point, *geometry, None)
    else:
        raise TypeError(f"no kernel for '{operation.name}'; wanted a convolution or a linear layer")
    return IntegerLayer(packed, scale, torch.zeros(channels, dtype=torch.int32), rounded, shape, read)


def _geometry(shape: Convolution) -> tuple[list[int], list[int], list[int], int]:
    """Return stride, padding, dilation and groups of a convolution over images of one row. The input is padded beforehand."""
    return [1, shape.stride], [0, 0], [1, shape.dilation], shape.groups


def to_grid(x: Tensor, grid: ActivationGrid) -> tuple[Tensor, Tensor]:
    """Round to a grid; return the integers in uint8 and the values they stand for, both as new tensors."""
    quotient = _quotient(x, grid)
    return _bytes(quotient + grid.zero_point), quotient.mul_(grid.scale)


def integers_on(x: Tensor, grid: ActivationGrid) -> Tensor:
    """Round to a grid; return only the integers of `to_grid`."""
    return _bytes(_quotient(x, grid).add_(grid.zero_point))


def _quotient(x: Tensor, grid: ActivationGrid) -> Tensor:
    return (x / grid.scale).round_().clamp_(-grid.zero_point, grid.levels - grid.zero_point)


def _bytes(x: Tensor) -> Tensor:
    """Convert whole floats to uint8 by way of 32 bits: torch's direct conversion is not vectorised."""
    return x.to(torch.int32).to(torch.uint8)


def from_grid(x: Tensor, grid: ActivationGrid) -> Tensor:
    """Return the values that integers stand for."""
    return x.float().sub_(grid.zero_point).mul_(grid.scale)


def run_layer(x: Tensor, layer: IntegerLayer, write: ActivationGrid | None, slope: float = 1.0) -> Tensor:
    """Compute one layer and the function behind it.

    The input is uint8 [batch, frames, in]. The output is [batch, frames, out]: uint8 on a grid, or real values without one.

    Args:
        x: the input.
        layer: the packed layer.
        write: grid of the output.
        slope: slope of the function behind the layer for negative arguments: 1 for no function, 0 for a ReLU. Only a matrix
            product takes other slopes.
    """
    scale, zero_point, kind = (1.0, 0, torch.float32) if write is None else (write.scale, write.zero_point, torch.uint8)
    read, shape = layer.read, layer.shape
    function = {1.0: ("none", []), 0.0: ("relu", [])}.get(slope, ("leaky_relu", [slope]))
    reads = read.scale, read.zero_point, layer.packed, layer.scale, layer.zeros, layer.bias
    writes = scale, zero_point, kind, *function, ""
    y: Tensor
    if shape is None:
        y = torch.ops.onednn.qlinear_pointwise(x, *reads, *writes)
    else:
        padded = functional.pad(x, (0, 0, *shape.padding), value=read.zero_point) if any(shape.padding) else x
        image = padded.transpose(1, 2)[:, :, None]
        y = torch.ops.onednn.qconv2d_pointwise(image, *reads, *_geometry(shape), *writes)[:, :, 0].transpose(1, 2)
    # The kernel holds its result within eight bits; narrower grids end below.
    return y.clamp_(max=write.levels) if write is not None and write.bits < MAX_BITS else y
