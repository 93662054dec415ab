"""The parts of an exported ONNX graph: quantizers, weights, biases, and the operations that no layer is.

What a runtime can compute when it loads the file is not stored. Weights below 8 bits are words (`hwsearch.export.words`), which a
few nodes take apart. Scales of weights are bfloat16 values. The scale of a bias is a product of two scales. ONNX Runtime folds
all of these nodes once, when it loads the file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from hwsearch.export.onnx_writer import OnnxWriter
from hwsearch.export.words import base, is_packed, powers, to_words, weights_per_word
from hwsearch.network import operations as ops
from hwsearch.separator.allocation import weight_limit
from hwsearch.separator.quantizers import MAX_BITS, ActivationGrid

_LARGEST = np.finfo(np.float32).max

SIGNED_SHIFT = 128
"""Difference between the uint8 and the int8 that stand for a value."""

_EVERYTHING = np.iinfo(np.int64).max
"""The end of a slice that has no end."""

Floats = NDArray[np.float32]
Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Shared:
    """Names of the constants that many parts read. Every graph holds all of them, so that the size of a part is its own.

    Attributes:
        whole: the shape [-1] of a flat tensor.
        origin: the index [0].
        zero: the uint8 0.
        digits: how to take words of weights apart, by the width of the weights. The three constants are the powers of the base,
            the base (the number of values that a weight can take), and the digit that stands for a weight of zero.
        levels: the largest integer of an activation below 8 bits, by its width.
        ends: the least and the largest float32.
    """

    whole: str
    origin: str
    zero: str
    digits: Mapping[int, tuple[str, str, str]]
    levels: Mapping[int, str]
    ends: tuple[str, str]

    @classmethod
    def of(cls, writer: OnnxWriter) -> "Shared":
        """Store the constants."""
        narrow = range(2, MAX_BITS)
        return cls(
            whole=writer.constant(np.array([-1])),
            origin=writer.constant(np.array([0])),
            zero=writer.constant(np.array(0, np.uint8)),
            digits={
                bits: (
                    writer.constant(powers(bits)),
                    writer.constant(np.array(base(bits))),
                    writer.constant(np.array(weight_limit(bits))),
                )
                for bits in narrow
            },
            levels={bits: writer.constant(np.array(2**bits - 1, np.uint8)) for bits in narrow},
            ends=(writer.constant(np.array(-_LARGEST, np.float32)), writer.constant(np.array(_LARGEST, np.float32))),
        )


@dataclass(frozen=True, eq=False)
class WrittenGrid:
    """A tensor behind its quantizer.

    Attributes:
        name: the tensor.
        scale: the constant that holds the scale of its grid.
    """

    name: str
    scale: str


def write_quantizer(writer: OnnxWriter, shared: Shared, x: str, grid: ActivationGrid, *, signed: bool = False) -> WrittenGrid:
    """Round a tensor to its grid.

    Up to 8 bits, the integers are uint8; if `signed`, those of 8 bits are int8, 128 less. Wider ones are rounded float32.
    """
    scale = writer.constant(np.array(grid.scale, np.float32))
    if grid.bits > MAX_BITS:
        ends = (-grid.zero_point, grid.levels - grid.zero_point)
        low, high = (writer.constant(np.array(end, np.float32)) for end in ends)
        rounded = writer.node("Round", [writer.node("Div", [x, scale])])
        return WrittenGrid(writer.node("Mul", [writer.node("Clip", [rounded, low, high]), scale]), scale)
    if signed and grid.bits == MAX_BITS:
        zero_point = writer.constant(np.array(grid.zero_point - SIGNED_SHIFT, np.int8))
    else:
        zero_point = writer.constant(np.array(grid.zero_point, np.uint8))
    integers = writer.node("QuantizeLinear", [x, scale, zero_point])
    if grid.bits < MAX_BITS:
        integers = writer.node("Clip", [integers, shared.zero, shared.levels[grid.bits]])
    return WrittenGrid(writer.node("DequantizeLinear", [integers, scale, zero_point]), scale)


def write_float_read(writer: OnnxWriter, shared: Shared, x: str) -> str:
    """Write a tensor that a layer reads in floating point, although it may be quantized itself.

    The clipping changes no value. Without it, ONNX Runtime would quantize the bias of the layer, and its weights to 8 bits.
    """
    return writer.node("Clip", [x, *shared.ends])


def write_weights(
    writer: OnnxWriter, shared: Shared, integers: Integers, bits: int, scale: Floats, axis: int, *, zero_point: int | None
) -> tuple[str, str]:
    """Write weights of at most 8 bits; return the names of weights and scales, both in floating point.

    Args:
        writer: the graph.
        shared: its shared constants.
        integers: the weights.
        bits: their width.
        scale: [channels] or [], bfloat16 values.
        axis: the axis of the channels.
        zero_point: the integer of zero that weights of 8 bits are stored with: as uint8 if it is positive, else as int8.
            None: as int8 without one.
    """
    along = {"axis": axis} if scale.ndim else {}
    widened = writer.node("Cast", [writer.bfloat16(scale)], to=TensorProto.FLOAT)
    if bits < MAX_BITS or zero_point is None:
        packed = bits < MAX_BITS and is_packed(integers.size, bits)
        values = _unpacked(writer, shared, integers, bits) if packed else writer.constant(integers.astype(np.int8))
        return writer.node("DequantizeLinear", [values, widened], **along), widened
    # A zero point of its own for each layer: a session that makes weights unsigned by itself fails on a shared one.
    kind = np.uint8 if zero_point else np.int8
    values = writer.constant((integers + zero_point).astype(kind))
    zeros = writer.constant(np.full(scale.shape, zero_point, kind))
    return writer.node("DequantizeLinear", [values, widened, zeros], **along), widened


def _unpacked(writer: OnnxWriter, shared: Shared, integers: Integers, bits: int) -> str:
    """Write weights as words, and the nodes that take them apart."""
    digits, number, zero = shared.digits[bits]
    quotients = writer.node("Div", [writer.constant(to_words(integers, bits)), digits])
    values = writer.node("Sub", [writer.node("Mod", [quotients, number]), zero])
    found = writer.node("Cast", [values], to=TensorProto.INT8)
    if integers.size % weights_per_word(bits):
        found = writer.node("Reshape", [found, shared.whole])
        found = writer.node("Slice", [found, shared.origin, writer.constant(np.array([integers.size])), shared.origin])
    return writer.node("Reshape", [found, writer.constant(np.array(integers.shape))])


def write_bias(writer: OnnxWriter, integers: Integers, scale: Floats | tuple[str, str]) -> str:
    """Write a bias as int32, with its scales, or with the names of the two scales whose product they are."""
    factors = scale if isinstance(scale, tuple) else None
    scales = writer.node("Mul", factors) if factors is not None else writer.constant(np.asarray(scale))
    return writer.node("DequantizeLinear", [writer.constant(integers.astype(np.int32)), scales], axis=0)


def write_float_bias(writer: OnnxWriter, bias: Floats) -> str:
    """Write a bias in floating point as integers, whose scales are powers of two, so that no bit is lost.

    ONNX Runtime would quantize the floating-point weights beside a plain bias to 8 bits, if they read and make quantized tensors.
    """
    _, exponent = np.frexp(bias.astype(np.float64))
    # float32 has 24 bits of mantissa; below 2^-126 the scale itself would leave the normal numbers.
    exponent = np.maximum(exponent, -100)
    scale = np.exp2(exponent - 24.0)
    integers = np.rint(bias / scale).astype(np.int32)
    if not np.array_equal((integers * scale).astype(np.float32), np.where(np.abs(bias) < 2.0**-124, integers * scale, bias)):
        raise ValueError("a bias that no integer holds")
    return write_bias(writer, integers, scale.astype(np.float32))


def write_layer(writer: OnnxWriter, layer: ops.Operation, read: tuple[str, str, str], kernel: int) -> str:
    """Write the node of a layer that reads a tensor, its weights of a kernel size, and its bias."""
    shape = {"kernel_shape": [kernel]}
    match layer:
        case ops.Convolution(stride=stride, dilation=dilation, groups=groups, padding=padding):
            shape |= {"strides": [stride], "dilations": [dilation], "pads": list(padding)}
            return writer.node("Conv", read, group=groups, **shape)
        case ops.TransposedConvolution(stride=stride, dilation=dilation, groups=groups, padding=padding, output_padding=longer):
            shape |= {"strides": [stride], "dilations": [dilation], "pads": [padding, padding]}
            extra = {"output_padding": [longer]} if longer else {}
            return writer.node("ConvTranspose", read, group=groups, **shape, **extra)
        case _:
            return writer.node("Gemm", read, alpha=1.0, beta=1.0, transB=1)


def write_operation(writer: OnnxWriter, operation: ops.Operation, read: list[str], parameters: list[Floats]) -> str:
    """Write an operation that is no layer.

    Args:
        writer: the graph.
        operation: the operation.
        read: the tensors that it reads.
        parameters: its trained tensors, in the order of `operation.parameters`.
    """
    return _WRITTEN[type(operation)](writer, operation, read, parameters)


_Write = Callable[[OnnxWriter, Any, list[str], list[Floats]], str]

_FUNCTIONS = {ops.Function.RELU: "Relu", ops.Function.SIGMOID: "Sigmoid", ops.Function.TANH: "Tanh"}


def _prelu(writer: OnnxWriter, _: ops.PReLU, read: list[str], parameters: list[Floats]) -> str:
    (slope,) = parameters
    return writer.node("PRelu", [*read, writer.constant(slope.reshape(-1, 1))])


def _softmax(writer: OnnxWriter, operation: ops.Softmax, read: list[str], _: list[Floats]) -> str:
    """Exponentials of a log-softmax: ONNX Runtime's softmax between integers is off by up to a quarter of a step."""
    return writer.node("Exp", [writer.node("LogSoftmax", read, axis=operation.axis)])


def _slice(writer: OnnxWriter, operation: ops.Slice, read: list[str], _: list[Floats]) -> str:
    x, *length = read
    start, axis = (writer.constant(np.array([value])) for value in (operation.start, operation.axis))
    if length:
        stop = writer.node("Gather", [writer.node("Shape", length), axis], axis=0)
    else:
        stop = writer.constant(np.array([_EVERYTHING if operation.stop is None else operation.stop]))
    return writer.node("Slice", [x, start, stop, axis])


def _pad(writer: OnnxWriter, operation: ops.Pad, read: list[str], _: list[Floats]) -> str:
    before, after = operation.padding
    return writer.node("Pad", [*read, writer.constant(np.array([0, 0, before, 0, 0, after]))])


def _group_norm(writer: OnnxWriter, operation: ops.GroupNorm, read: list[str], parameters: list[Floats]) -> str:
    (x,) = read
    groups = writer.node("Reshape", [x, writer.constant(np.array([0, operation.groups, -1]))])
    ones, zeros = (writer.constant(np.full(operation.groups, value, np.float32)) for value in (1, 0))
    normal = writer.node("InstanceNormalization", [groups, ones, zeros], epsilon=operation.epsilon)
    back = writer.node("Reshape", [normal, writer.node("Shape", [x])])
    weight, bias = (writer.constant(each.reshape(-1, 1)) for each in parameters)
    return writer.node("Add", [writer.node("Mul", [back, weight]), bias])


def _layer_norm(writer: OnnxWriter, operation: ops.LayerNorm, read: list[str], parameters: list[Floats]) -> str:
    turned = writer.node("Transpose", read, perm=[0, 2, 1])
    weight, bias = (writer.constant(each) for each in parameters)
    normal = writer.node("LayerNormalization", [turned, weight, bias], axis=-1, epsilon=operation.epsilon)
    return writer.node("Transpose", [normal], perm=[0, 2, 1])


def _affine(writer: OnnxWriter, _: ops.Affine, read: list[str], parameters: list[Floats]) -> str:
    weight, bias = (writer.constant(each.astype(np.float32).reshape(-1, 1)) for each in parameters)
    return writer.node("Add", [writer.node("Mul", [*read, weight]), bias])


_WRITTEN: Mapping[type[ops.Operation], _Write] = {
    ops.Elementwise: lambda writer, operation, read, _: writer.node(_FUNCTIONS[operation.function], read),
    ops.LeakyReLU: lambda writer, operation, read, _: writer.node("LeakyRelu", read, alpha=operation.slope),
    ops.PReLU: _prelu,
    ops.Softmax: _softmax,
    ops.Add: lambda writer, _operation, read, _: writer.node("Add", read),
    ops.Multiply: lambda writer, _operation, read, _: writer.node("Mul", read),
    ops.Read: lambda _writer, _operation, read, _: read[0],
    ops.Concatenate: lambda writer, operation, read, _: writer.node("Concat", read, axis=operation.axis),
    ops.Slice: _slice,
    ops.Pad: _pad,
    ops.Mean: lambda writer, operation, read, _: writer.node("ReduceMean", read, axes=[2], keepdims=int(operation.keep)),
    ops.GroupNorm: _group_norm,
    ops.LayerNorm: _layer_norm,
    ops.Affine: _affine,
}
"""Writes each operation but the layers."""
