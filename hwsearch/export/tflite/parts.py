"""The parts of a TensorFlow Lite file: one function for each operation of a network.

Kernels take either int8 or int16 on both sides. An operation that reads or makes an int16 tensor is therefore computed in int16:
what it reads in int8 is widened first, exactly, and what it makes is rounded to int8 behind it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray
from torch import Tensor

from hwsearch.export.integer_only import NIBBLE_BITS, integer_bias
from hwsearch.export.tflite.grids import StoredGrid
from hwsearch.export.tflite.writer import Quantization, TfliteWriter
from hwsearch.network.operations import Convolution
from hwsearch.separator.quantizers import BIAS_LIMIT, MAX_BITS, QuantizedWeight
from hwsearch.separator.rounded_weights import output_scale

_Code, _Activation = schema.BuiltinOperator, schema.ActivationFunctionType


@dataclass(frozen=True)
class Placed:
    """A tensor [1, 1, frames, channels] of a file.

    Attributes:
        number: its number in the file.
        grid: how its integers are stored.
        shape: frames and channels.
    """

    number: int
    grid: StoredGrid
    shape: tuple[int, int]


def place(writer: TfliteWriter, name: str, grid: StoredGrid, shape: tuple[int, int]) -> Placed:
    """Add a tensor that an operator will make."""
    return Placed(writer.tensor(name, (1, 1, *shape), grid.kind, grid.quantization), grid, shape)


def write_convolution(
    writer: TfliteWriter,
    layer: Convolution,
    parameters: tuple[QuantizedWeight, Tensor],
    read: Placed,
    made: Placed,
    *,
    relu: bool,
    int4: bool,
) -> None:
    """Write a convolution, which is dense or depthwise.

    Args:
        writer: the file.
        layer: the convolution.
        parameters: its weights, and its bias in floating point.
        read: what it reads.
        made: what it makes; both are int8, or both int16.
        relu: whether a ReLU follows it.
        int4: whether weights may be int4: those of at most 4 bits in a dense layer of one tap between int8 tensors.
    """
    weight, bias = parameters
    channels, _, kernel = weight.integers.shape
    depthwise = layer.groups > 1
    narrow = int4 and weight.bits <= NIBBLE_BITS and kernel == 1 and not depthwise and not read.grid.is_wide
    kind = "int4" if narrow else "int8"
    scale = output_scale(layer, weight.scale)
    biases = integer_bias(bias, scale * read.grid.grid.scale, read.grid.grid.bits)
    finer = _finer(weight.bits, kind, biases)
    scale, integers = scale / finer, weight.integers.numpy() * finer
    integers = integers.transpose(1, 2, 0)[None] if depthwise else integers.transpose(0, 2, 1)[:, None]
    weights = writer.constant(f"{layer.name}.weight", integers, kind, Quantization(scale.tolist(), axis=3 if depthwise else 0))
    product = Quantization((scale * read.grid.grid.scale).tolist())
    added = writer.constant(f"{layer.name}.bias", biases * finer, "int64" if read.grid.is_wide else "int32", product)
    padded, same = _padded(writer, layer, kernel, read)
    options: dict[str, Any] = {
        "padding": schema.Padding.SAME if same else schema.Padding.VALID,
        "strideW": layer.stride,
        "strideH": 1,
        "dilationWFactor": layer.dilation,
        "fusedActivationFunction": _Activation.RELU if relu else _Activation.NONE,
    }
    inputs = [padded.number, weights, added]
    if depthwise:
        depth = schema.DepthwiseConv2DOptionsT(depthMultiplier=channels // layer.groups, **options)
        writer.operator(_Code.DEPTHWISE_CONV_2D, 5 if read.grid.is_wide else 3, inputs, made.number, depth)
    else:
        version = 4 if read.grid.is_wide else 7 if kind == "int4" else 3
        writer.operator(_Code.CONV_2D, version, inputs, made.number, schema.Conv2DOptionsT(**options))


def _finer(bits: int, kind: str, biases: NDArray[Any]) -> int:
    """The power of two that narrow weights are multiplied by and their scales divided by.

    Kernels round sums twice, and the finer the sums, the less the first rounding does. Weights of more than 4 bits are left as
    they are: compilers compress the narrow ones.
    """
    if bits > NIBBLE_BITS:
        return 1
    room = 2 ** (NIBBLE_BITS - bits if kind == "int4" else MAX_BITS - bits)
    while room * float(np.abs(biases).max()) > BIAS_LIMIT:
        room //= 2
    return int(max(room, 1))


def _padded(writer: TfliteWriter, layer: Convolution, kernel: int, read: Placed) -> tuple[Placed, bool]:
    """Pad what a convolution reads, unless the convolution does it; return also whether it does."""
    reach = layer.dilation * (kernel - 1)
    if layer.padding == (0, 0) or (layer.stride == 1 and layer.padding == (reach // 2, reach - reach // 2)):
        return read, layer.padding != (0, 0)
    frames, channels = read.shape
    padded = place(writer, f"{layer.name}.padded", read.grid, (frames + sum(layer.padding), channels))
    ends = writer.constant(f"{layer.name}.padding", np.array([(0, 0), (0, 0), layer.padding, (0, 0)]), "int32", None)
    writer.operator(_Code.PAD, 3 if read.grid.is_wide else 2, [read.number, ends], padded.number, schema.PadOptionsT())
    return padded, False


def write_sum(writer: TfliteWriter, read: Sequence[Placed], made: Placed, *, relu: bool) -> None:
    """Write the sum of two tensors; all are int8, or all int16."""
    activation = _Activation.RELU if relu else _Activation.NONE
    options = schema.AddOptionsT(fusedActivationFunction=activation, potScaleInt16=False)
    numbers = [each.number for each in read]
    writer.operator(_Code.ADD, 3 if made.grid.is_wide else 2, numbers, made.number, options)


def write_relu(writer: TfliteWriter, read: Placed, made: Placed) -> None:
    """Write a ReLU that stands alone; both tensors are int8, or both int16."""
    writer.operator(_Code.RELU, 3 if made.grid.is_wide else 2, [read.number], made.number)


def write_leaky_relu(writer: TfliteWriter, read: Placed, made: Placed, slope: float) -> None:
    """Write a leaky ReLU between int16 tensors."""
    writer.operator(_Code.LEAKY_RELU, 2, [read.number], made.number, schema.LeakyReluOptionsT(alpha=slope))


def requantized(writer: TfliteWriter, name: str, read: Placed, grid: StoredGrid) -> Placed:
    """Round a tensor to another grid."""
    made = place(writer, name, grid, read.shape)
    writer.operator(_Code.QUANTIZE, 3, [read.number], made.number, schema.QuantizeOptionsT())
    return made


def widened(writer: TfliteWriter, read: Placed) -> Placed:
    """The same values as int16."""
    if read.grid.is_wide:
        return read
    own = read.grid.grid
    grid = StoredGrid(replace(own, bits=16, zero_point=2**15), -(2**15))
    return requantized(writer, f"{read.number}.wide", read, grid)


def clipped(writer: TfliteWriter, name: str, read: Placed) -> Placed:
    """Raise integers below the lowest of a grid."""
    made = place(writer, name, read.grid, read.shape)
    least = writer.constant(f"{name}.lowest", np.array(read.grid.lowest), read.grid.kind, read.grid.quantization)
    writer.operator(_Code.MAXIMUM, 2, [read.number, least], made.number, schema.MaximumMinimumOptionsT())
    return made
