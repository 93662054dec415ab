"""Translate torch's operators to operations of a graph.

The function of an operator takes a `Call` and returns the operation, or the tensor that the operator only passes on.
`torch.export` gives the same operator for `nn.ReLU()`, `torch.relu(x)` and `x.relu()`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from hwsearch.network import operations as ops

_RANK = 3
"""Axes of a tensor: batch, channels, frames."""


class Refused(Exception):  # noqa: N818 (the tracer turns it into a user error)
    """Raised for an operator that a graph has no operation for; says what is wrong with it."""


@dataclass(frozen=True)
class Value:
    """A tensor of the graph as the module sees it.

    Attributes:
        name: of the tensor.
        shape: in the example, in the module's order of axes.
        transposed: whether the module has it as [batch, frames, channels].
    """

    name: str
    shape: tuple[int, ...]
    transposed: bool = False

    @property
    def channels(self) -> int:
        """The number of channels."""
        return self.shape[2 if self.transposed else 1]

    def axis(self, axis: int) -> int:
        """Convert an axis of the module to that of the graph's tensor."""
        place = axis % len(self.shape)
        if place == 0:
            raise Refused("works along the batch")
        return _RANK - place if self.transposed else place


@dataclass(frozen=True)
class Length:
    """The length of the graph's tensor along an axis, which depends on the number of frames."""

    of: str
    axis: int


@dataclass(frozen=True)
class Call:
    """A call of an operator.

    Attributes:
        name: for the operation.
        arguments: by the names in the operator's schema. Tensors of the graph are `Value`, trained ones `torch.Tensor`.
        shape: of the result in the example.
    """

    name: str
    arguments: Mapping[str, Any]
    shape: tuple[int, ...]

    def value(self, name: str = "input") -> Value:
        """Return an argument that is a tensor of the graph; refuse others."""
        found = self.arguments[name]
        if not isinstance(found, Value):
            raise Refused(f"has a constant as its '{name}'")
        return found

    def frames_last(self, name: str = "input") -> Value:
        """Return an argument that is a tensor [batch, channels, frames] in the module; refuse others."""
        found = self.value(name)
        if found.transposed or len(found.shape) != _RANK:
            raise Refused(f"reads {list(found.shape)}; wanted [batch, channels, frames]")
        return found

    def given(self, name: str) -> bool:
        """Whether an argument is there; refuse one that is computed."""
        if isinstance(self.arguments[name], Value):
            raise Refused(f"computes its '{name}'")
        return self.arguments[name] is not None

    def trained(self, name: str) -> Tensor:
        """Return an argument that is a trained tensor; refuse others."""
        found = self.arguments[name]
        if not self.given(name) or not isinstance(found, Tensor):
            raise Refused(f"has no '{name}'")
        return found

    def per_channel(self, name: str, channels: int, default: float) -> Tensor:
        """Return a trained tensor [channels]; the default if the argument is absent."""
        return self.trained(name) if self.given(name) else torch.full((channels,), default)


@dataclass(frozen=True, eq=False)
class Made:
    """An operation that a call becomes.

    Attributes:
        operation: the operation.
        parameters: trained tensors by the last part of their names.
        transposed: whether the module has the result as [batch, frames, channels].
    """

    operation: ops.Operation
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    transposed: bool = False


Translation = Callable[[Call], "Made | Value"]


def _convolution(call: Call) -> Made:
    x, weight = call.frames_last(), call.trained("weight")
    stride, dilation = _single(call.arguments["stride"]), _single(call.arguments["dilation"])
    padding = call.arguments["padding"]
    if padding == "same":
        reach = dilation * (weight.shape[-1] - 1)
        pads = (reach // 2, reach - reach // 2)
    elif padding == "valid":
        pads = (0, 0)
    else:
        pads = (_single(padding), _single(padding))
    operation = ops.Convolution(call.name, (x.name,), stride, dilation, call.arguments["groups"], pads)
    return Made(operation, {"weight": weight, "bias": call.per_channel("bias", len(weight), 0.0)})


def _transposed_convolution(call: Call) -> Made:
    x, weight, groups = call.frames_last(), call.trained("weight"), call.arguments["groups"]
    stride, dilation, padding, longer = (
        _single(call.arguments[name]) for name in ("stride", "dilation", "padding", "output_padding")
    )
    operation = ops.TransposedConvolution(call.name, (x.name,), stride, dilation, groups, padding, longer)
    return Made(operation, {"weight": weight, "bias": call.per_channel("bias", weight.shape[1] * groups, 0.0)})


def _linear(call: Call) -> Made:
    x, weight = call.value(), call.trained("weight")
    bias = call.per_channel("bias", len(weight), 0.0)
    if x.transposed:
        return Made(ops.Convolution(call.name, (x.name,)), {"weight": weight[:, :, None], "bias": bias}, transposed=True)
    if len(x.shape) == _RANK:
        raise Refused("works along the frames; wanted it along the channels")
    return Made(ops.Linear(call.name, (x.name,)), {"weight": weight, "bias": bias})


def _elementwise(function: ops.Function) -> Translation:
    def translate(call: Call) -> Made:
        x = call.value("self")
        return Made(ops.Elementwise(call.name, (x.name,), function), transposed=x.transposed)

    return translate


def _leaky_relu(call: Call) -> Made:
    x = call.value("self")
    return Made(ops.LeakyReLU(call.name, (x.name,), float(call.arguments["negative_slope"])), transposed=x.transposed)


def _prelu(call: Call) -> Made:
    x, slope = call.value("self"), call.trained("weight")
    if x.transposed and len(slope) > 1:
        raise Refused("has a slope for each frame; wanted one, or one for each channel")
    return Made(ops.PReLU(call.name, (x.name,)), {"slope": slope}, transposed=x.transposed)


def _softmax(call: Call) -> Made:
    x = call.value("self")
    return Made(ops.Softmax(call.name, (x.name,), x.axis(call.arguments["dim"])), transposed=x.transposed)


def _sum(sign: float) -> Translation:
    def translate(call: Call) -> Made:
        first, second = call.arguments["self"], call.arguments["other"]
        factor = sign * float(call.arguments["alpha"])
        if isinstance(first, Value) and isinstance(second, Value):
            if factor != 1.0:
                raise Refused("subtracts one tensor from another, or adds a multiple of it; wanted a plain sum")
            return _pair(call, ops.Add(call.name, (first.name, second.name)), first, second)
        if isinstance(first, Value):
            return _affine(call, first, 1.0, _constant(second) * factor)
        return _affine(call, call.value("other"), factor, _constant(first))

    return translate


def _product(call: Call) -> Made:
    first, second = call.arguments["self"], call.arguments["other"]
    if isinstance(first, Value) and isinstance(second, Value):
        return _pair(call, ops.Multiply(call.name, (first.name, second.name)), first, second)
    if isinstance(first, Value):
        return _affine(call, first, _constant(second), 0.0)
    return _affine(call, call.value("other"), _constant(first), 0.0)


def _quotient(call: Call) -> Made:
    if isinstance(call.arguments["other"], Value):
        raise Refused("divides by a computed tensor")
    return _affine(call, call.value("self"), 1.0 / _constant(call.arguments["other"]), 0.0)


def _pair(call: Call, operation: ops.Operation, first: Value, second: Value) -> Made:
    if first.transposed != second.transposed or len(first.shape) != len(second.shape):
        raise Refused(f"joins {list(first.shape)} and {list(second.shape)}; wanted the same axes in the same order")
    return Made(operation, transposed=first.transposed)


def _affine(call: Call, x: Value, gain: "Tensor | float", offset: "Tensor | float") -> Made:
    """Translate a gain and an offset that are the same in all frames."""
    if len(x.shape) != _RANK:
        raise Refused(f"scales {list(x.shape)}; wanted [batch, channels, frames]")
    parts = {"weight": _per_channel(gain, x), "bias": _per_channel(offset, x)}
    return Made(ops.Affine(call.name, (x.name,)), parts, transposed=x.transposed)


def _per_channel(constant: "Tensor | float", x: Value) -> Tensor:
    spread = torch.as_tensor(constant, dtype=torch.float64)
    shape = (1, 1, x.channels) if x.transposed else (1, x.channels, 1)
    try:
        return spread.expand(shape).flatten().clone()
    except RuntimeError:
        raise Refused(f"has a constant {list(spread.shape)}; wanted a number, or one for each channel") from None


def _concatenate(call: Call) -> Made:
    values = call.arguments["tensors"]
    if not all(isinstance(value, Value) for value in values):
        raise Refused("joins a constant to a tensor")
    if len({value.transposed for value in values}) > 1:
        raise Refused("joins tensors whose axes are in different order")
    names = tuple(value.name for value in values)
    return Made(ops.Concatenate(call.name, names, values[0].axis(call.arguments["dim"])), transposed=values[0].transposed)


def slice_part(call: Call) -> Made:
    x = call.value("self")
    start, stop = call.arguments["start"], call.arguments["end"]
    if call.arguments["step"] != 1 or isinstance(start, Length):
        raise Refused("takes a part with a step, or from a computed place; wanted one from a fixed place")
    axis, end = x.axis(call.arguments["dim"]), stop
    read: tuple[str, ...] = (x.name,)
    if isinstance(stop, Length):
        if stop.axis != axis:
            raise Refused("takes a part as long as another axis is")
        read, end = (x.name, stop.of), None
    elif stop == torch.iinfo(torch.int64).max:
        end = None
    return Made(ops.Slice(call.name, read, axis, start or 0, end), transposed=x.transposed)


def _pad(call: Call) -> Made:
    x, pads = call.frames_last("self"), list(call.arguments["pad"])
    if call.arguments.get("mode", "constant") != "constant" or (call.arguments.get("value") or 0.0) != 0.0:
        raise Refused("pads with something else than zeros")
    if any(not isinstance(pad, int) for pad in pads):
        raise Refused("pads by a computed number of frames; wanted a fixed number, or to crop the longer tensor")
    if any(pads[2:]) or min(pads) < 0:
        raise Refused("pads channels, or by less than nothing; wanted frames of zeros")
    return Made(ops.Pad(call.name, (x.name,), (pads[0], pads[1])))


def _mean(call: Call) -> Made:
    x = call.value("self")
    if len(x.shape) != _RANK or [x.axis(axis) for axis in call.arguments["dim"] or ()] != [2]:
        raise Refused("is a mean over something else than the frames")
    keep = call.arguments["keepdim"]
    return Made(ops.Mean(call.name, (x.name,), keep), transposed=x.transposed and keep)


def _pooled(call: Call) -> Made:
    x = call.frames_last("self")
    if list(call.arguments["output_size"]) != [1]:
        raise Refused("pools to several frames; wanted one")
    return Made(ops.Mean(call.name, (x.name,)))


def _batch_norm(call: Call) -> Made:
    x = call.frames_last()
    if not (call.given("running_mean") and call.given("running_var")):
        raise Refused("is a batch norm without running statistics; wanted one with them, or a group norm")
    mean, variance = call.trained("running_mean").double(), call.trained("running_var").double()
    weight, bias = (tensor.double() for tensor in _gain_and_offset(call, x.channels).values())
    gain = weight / (variance + call.arguments["eps"]).sqrt()
    return Made(ops.Affine(call.name, (x.name,)), {"weight": gain, "bias": bias - mean * gain})


def _group_norm(call: Call) -> Made:
    x = call.frames_last()
    operation = ops.GroupNorm(call.name, (x.name,), call.arguments["num_groups"], call.arguments["eps"])
    return Made(operation, _gain_and_offset(call, x.channels))


def _layer_norm(call: Call) -> Made:
    x = call.value()
    if not x.transposed or list(call.arguments["normalized_shape"]) != [x.channels]:
        raise Refused("is a layer norm over something else than the channels; wanted it on [batch, frames, channels]")
    return Made(ops.LayerNorm(call.name, (x.name,), call.arguments["eps"]), _gain_and_offset(call, x.channels), transposed=True)


def _gain_and_offset(call: Call, channels: int) -> dict[str, Tensor]:
    return {"weight": call.per_channel("weight", channels, 1.0), "bias": call.per_channel("bias", channels, 0.0)}


def _transpose(call: Call) -> Value:
    x = call.value("self")
    places = (call.arguments["dim0"], call.arguments["dim1"]) if "dim0" in call.arguments else call.arguments["dims"]
    order = {place % len(x.shape) for place in places}
    if len(x.shape) != _RANK or (order != {1, 2} and list(places) != [0, 2, 1]):
        raise Refused("exchanges other axes than channels and frames")
    return replace(x, shape=call.shape, transposed=not x.transposed)


def _squeeze(call: Call) -> Made:
    """Translate dropping the axis of a single frame, which is a mean over it."""
    x = call.frames_last("self")
    dims = call.arguments["dim"]
    if x.shape[2] != 1 or call.shape != x.shape[:2] or (dims[0] if isinstance(dims, list) else dims) % _RANK != 2:
        raise Refused("leaves out another axis than that of a single frame")
    return Made(ops.Mean(call.name, (x.name,), keep=False))


def _same(call: Call) -> Value:
    return call.value("self" if "self" in call.arguments else "input")


def _constant(value: Any) -> "Tensor | float":
    if isinstance(value, Tensor):
        return value.double()
    if isinstance(value, int | float):
        return float(value)
    raise Refused("computes with the number of frames")


def _single(value: "list[int] | int") -> int:
    return value[0] if isinstance(value, list) else value


TRANSLATIONS: Mapping[str, Translation] = {
    "conv1d": _convolution,
    "conv_transpose1d": _transposed_convolution,
    "linear": _linear,
    "relu": _elementwise(ops.Function.RELU),
    "sigmoid": _elementwise(ops.Function.SIGMOID),
    "tanh": _elementwise(ops.Function.TANH),
    "leaky_relu": _leaky_relu,
    "prelu": _prelu,
    "softmax": _softmax,
    "add": _sum(1.0),
    "sub": _sum(-1.0),
    "mul": _product,
    "div": _quotient,
    "cat": _concatenate,
    "slice": slice_part,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "mean": _mean,
    "adaptive_avg_pool1d": _pooled,
    "batch_norm": _batch_norm,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "transpose": _transpose,
    "permute": _transpose,
    "squeeze": _squeeze,
    **dict.fromkeys(("dropout", "contiguous", "clone", "alias", "detach", "identity"), _same),
}
"""Translates each of torch's operators, by name."""
