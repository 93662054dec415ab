"""What torch's own operators are as operations of a graph.

One function for each operator takes a `Call` and gives the operation, or the tensor that it merely passes on. `torch.export`
gives the same operator for `nn.ReLU()`, `torch.relu(x)` and `x.relu()`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from hwsearch.network.operations import (
    Add,
    Affine,
    Concatenate,
    Convolution,
    Elementwise,
    Function,
    GroupNorm,
    LayerNorm,
    LeakyReLU,
    Linear,
    Mean,
    Multiply,
    Operation,
    Pad,
    PReLU,
    Slice,
    Softmax,
    TransposedConvolution,
)

_RANK = 3
"""Axes of a tensor: batch, channels, frames."""


class Refused(Exception):  # noqa: N818 (it is no error of the program; the tracer makes a line of it)
    """An operator that a graph has no operation for; the message says what is wrong with it."""


@dataclass(frozen=True)
class Value:
    """A tensor of the graph as the module sees it.

    Attributes:
        name: of the graph's tensor.
        shape: of the example.
        transposed: whether the module sees [batch, frames, channels].
    """

    name: str
    shape: tuple[int, ...]
    transposed: bool = False

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.shape[2 if self.transposed else 1]

    def axis(self, axis: int) -> int:
        """An axis that the module names, as an axis of the graph's tensor."""
        place = axis % len(self.shape)
        if place == 0:
            raise Refused("works along the batch")
        return _RANK - place if self.transposed else place


@dataclass(frozen=True)
class Length:
    """The length of a tensor along an axis of the graph's tensor, where it depends on the frames."""

    of: str
    axis: int


@dataclass(frozen=True)
class Call:
    """An operator as the module calls it.

    Attributes:
        name: for the operation.
        arguments: by the operator's own names; tensors of the graph are `Value`, trained ones `torch.Tensor`.
        shape: of the example's result.
    """

    name: str
    arguments: Mapping[str, Any]
    shape: tuple[int, ...]

    def value(self, name: str = "input") -> Value:
        """A tensor of the graph.

        Raises:
            Refused: it is something else.
        """
        found = self.arguments[name]
        if not isinstance(found, Value):
            raise Refused(f"has a constant as its '{name}'")
        return found

    def frames_last(self, name: str = "input") -> Value:
        """A tensor [batch, channels, frames].

        Raises:
            Refused: its axes are others.
        """
        found = self.value(name)
        if found.transposed or len(found.shape) != _RANK:
            raise Refused(f"reads {list(found.shape)}; wanted [batch, channels, frames]")
        return found

    def trained(self, name: str) -> Tensor | None:
        """A trained tensor, or none.

        Raises:
            Refused: it is computed.
        """
        found = self.arguments.get(name)
        if isinstance(found, Value):
            raise Refused(f"computes its '{name}'")
        assert found is None or isinstance(found, Tensor)  # noqa: S101 (torch's own schema says so)
        return found


@dataclass(frozen=True, eq=False)
class Made:
    """What a call becomes.

    Attributes:
        operation: the operation, and its parameters by the last part of their names.
        transposed: whether the module sees its result as [batch, frames, channels].
    """

    operation: Operation
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    transposed: bool = False


Translation = Callable[[Call], "Made | Value"]


def _convolution(call: Call) -> Made:
    x, weight = call.frames_last(), _wanted(call, "weight")
    stride, dilation = _single(call.arguments["stride"]), _single(call.arguments["dilation"])
    padding = call.arguments["padding"]
    if padding == "same":
        reach = dilation * (weight.shape[-1] - 1)
        pads = (reach // 2, reach - reach // 2)
    elif padding == "valid":
        pads = (0, 0)
    else:
        pads = (_single(padding), _single(padding))
    operation = Convolution(call.name, (x.name,), stride, dilation, call.arguments["groups"], pads)
    return Made(operation, {"weight": weight, "bias": _bias(call, len(weight))})


def _transposed_convolution(call: Call) -> Made:
    x, weight, groups = call.frames_last(), _wanted(call, "weight"), call.arguments["groups"]
    stride, dilation, padding, longer = (
        _single(call.arguments[name]) for name in ("stride", "dilation", "padding", "output_padding")
    )
    operation = TransposedConvolution(call.name, (x.name,), stride, dilation, groups, padding, longer)
    return Made(operation, {"weight": weight, "bias": _bias(call, weight.shape[1] * groups)})


def _linear(call: Call) -> Made:
    x, weight = call.value(), _wanted(call, "weight")
    bias = _bias(call, len(weight))
    if x.transposed:
        return Made(Convolution(call.name, (x.name,)), {"weight": weight[:, :, None], "bias": bias}, transposed=True)
    if len(x.shape) == _RANK:
        raise Refused("works along the frames; wanted it along the channels")
    return Made(Linear(call.name, (x.name,)), {"weight": weight, "bias": bias})


def _elementwise(function: Function) -> Translation:
    def translate(call: Call) -> Made:
        x = call.value("self")
        return Made(Elementwise(call.name, (x.name,), function), transposed=x.transposed)

    return translate


def _leaky_relu(call: Call) -> Made:
    x = call.value("self")
    return Made(LeakyReLU(call.name, (x.name,), float(call.arguments["negative_slope"])), transposed=x.transposed)


def _prelu(call: Call) -> Made:
    x, slope = call.value("self"), _wanted(call, "weight")
    if x.transposed and len(slope) > 1:
        raise Refused("has a slope for each frame; wanted one, or one for each channel")
    return Made(PReLU(call.name, (x.name,)), {"slope": slope}, transposed=x.transposed)


def _softmax(call: Call) -> Made:
    x = call.value("self")
    return Made(Softmax(call.name, (x.name,), x.axis(call.arguments["dim"])), transposed=x.transposed)


def _sum(sign: float) -> Translation:
    def translate(call: Call) -> Made:
        first, second = call.arguments["self"], call.arguments["other"]
        factor = sign * float(call.arguments["alpha"])
        if isinstance(first, Value) and isinstance(second, Value):
            if factor != 1.0:
                raise Refused("subtracts one tensor from another, or adds a multiple of it; wanted a plain sum")
            return _pair(call, Add(call.name, (first.name, second.name)), first, second)
        if isinstance(first, Value):
            return _affine(call, first, 1.0, _constant(second) * factor)
        return _affine(call, call.value("other"), factor, _constant(first))

    return translate


def _product(call: Call) -> Made:
    first, second = call.arguments["self"], call.arguments["other"]
    if isinstance(first, Value) and isinstance(second, Value):
        return _pair(call, Multiply(call.name, (first.name, second.name)), first, second)
    if isinstance(first, Value):
        return _affine(call, first, _constant(second), 0.0)
    return _affine(call, call.value("other"), _constant(first), 0.0)


def _quotient(call: Call) -> Made:
    if isinstance(call.arguments["other"], Value):
        raise Refused("divides by a computed tensor")
    return _affine(call, call.value("self"), 1.0 / _constant(call.arguments["other"]), 0.0)


def _pair(call: Call, operation: Operation, first: Value, second: Value) -> Made:
    if first.transposed != second.transposed or len(first.shape) != len(second.shape):
        raise Refused(f"joins {list(first.shape)} and {list(second.shape)}; wanted the same axes in the same order")
    return Made(operation, transposed=first.transposed)


def _affine(call: Call, x: Value, gain: "Tensor | float", offset: "Tensor | float") -> Made:
    """A gain and an offset that are the same in all frames."""
    if len(x.shape) != _RANK:
        raise Refused(f"scales {list(x.shape)}; wanted [batch, channels, frames]")
    parts = {"weight": _per_channel(gain, x), "bias": _per_channel(offset, x)}
    return Made(Affine(call.name, (x.name,)), parts, transposed=x.transposed)


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
    return Made(Concatenate(call.name, names, values[0].axis(call.arguments["dim"])), transposed=values[0].transposed)


def _slice(call: Call) -> Made:
    x = call.value("self")
    start, stop = call.arguments["start"], call.arguments["end"]
    if call.arguments["step"] != 1 or isinstance(start, Length):
        raise Refused("takes a part with a step, or from a computed place; wanted one from a fixed place")
    axis = x.axis(call.arguments["dim"])
    if isinstance(stop, Length):
        if stop.axis != axis:
            raise Refused("takes a part as long as another axis is")
        return Made(Slice(call.name, (x.name, stop.of), axis, start or 0), transposed=x.transposed)
    end = None if stop is None or stop >= torch.iinfo(torch.int64).max else stop
    return Made(Slice(call.name, (x.name,), axis, start or 0, end), transposed=x.transposed)


def _pad(call: Call) -> Made:
    x, pads = call.frames_last("self"), list(call.arguments["pad"])
    if call.arguments.get("mode", "constant") != "constant" or (call.arguments.get("value") or 0.0) != 0.0:
        raise Refused("pads with something else than zeros")
    if any(not isinstance(pad, int) for pad in pads):
        raise Refused("pads by a computed number of frames; wanted a fixed number, or to crop the longer tensor")
    if any(pads[2:]) or min(pads) < 0:
        raise Refused("pads channels, or by less than nothing; wanted frames of zeros")
    return Made(Pad(call.name, (x.name,), (pads[0], pads[1])))


def _mean(call: Call) -> Made:
    x = call.value("self")
    if len(x.shape) != _RANK or [x.axis(axis) for axis in call.arguments["dim"] or ()] != [2]:
        raise Refused("is a mean over something else than the frames")
    keep = call.arguments["keepdim"]
    return Made(Mean(call.name, (x.name,), keep), transposed=x.transposed and keep)


def _pooled(call: Call) -> Made:
    x = call.frames_last("self")
    if list(call.arguments["output_size"]) != [1]:
        raise Refused("pools to several frames; wanted one")
    return Made(Mean(call.name, (x.name,)))


def _batch_norm(call: Call) -> Made:
    mean, variance = call.trained("running_mean"), call.trained("running_var")
    x = call.frames_last()
    if mean is None or variance is None:
        raise Refused("is a batch norm without running statistics; wanted one with them, or a group norm")
    weight, bias = call.trained("weight"), call.trained("bias")
    gain = (1.0 if weight is None else weight.double()) / (variance.double() + call.arguments["eps"]).sqrt()
    offset = (0.0 if bias is None else bias.double()) - mean.double() * gain
    return Made(Affine(call.name, (x.name,)), {"weight": gain, "bias": offset})


def _group_norm(call: Call) -> Made:
    x = call.frames_last()
    operation = GroupNorm(call.name, (x.name,), call.arguments["num_groups"], call.arguments["eps"])
    return Made(operation, _gain_and_offset(call, x.channels))


def _layer_norm(call: Call) -> Made:
    x = call.value()
    if not x.transposed or list(call.arguments["normalized_shape"]) != [x.channels]:
        raise Refused("is a layer norm over something else than the channels; wanted it on [batch, frames, channels]")
    return Made(LayerNorm(call.name, (x.name,), call.arguments["eps"]), _gain_and_offset(call, x.channels), transposed=True)


def _gain_and_offset(call: Call, channels: int) -> dict[str, Tensor]:
    weight, bias = call.trained("weight"), call.trained("bias")
    return {
        "weight": torch.ones(channels) if weight is None else weight,
        "bias": torch.zeros(channels) if bias is None else bias,
    }


def _transpose(call: Call) -> Value:
    x = call.value("self")
    places = (call.arguments["dim0"], call.arguments["dim1"]) if "dim0" in call.arguments else call.arguments["dims"]
    order = {place % len(x.shape) for place in places}
    if len(x.shape) != _RANK or (order != {1, 2} and list(places) != [0, 2, 1]):
        raise Refused("exchanges other axes than channels and frames")
    return replace(x, shape=call.shape, transposed=not x.transposed)


def _squeeze(call: Call) -> Made:
    """After a mean over frames there is one frame to leave out; leaving it out is a mean over it."""
    x = call.frames_last("self")
    dims = call.arguments["dim"]
    if x.shape[2] != 1 or call.shape != x.shape[:2] or (dims[0] if isinstance(dims, list) else dims) % _RANK != 2:
        raise Refused("leaves out another axis than that of a single frame")
    return Made(Mean(call.name, (x.name,), keep=False))


def _same(call: Call) -> Value:
    return call.value("self" if "self" in call.arguments else "input")


def _wanted(call: Call, name: str) -> Tensor:
    found = call.trained(name)
    if found is None:
        raise Refused(f"has no '{name}'")
    return found


def _bias(call: Call, channels: int) -> Tensor:
    found = call.trained("bias")
    return torch.zeros(channels) if found is None else found


def _constant(value: Any) -> "Tensor | float":
    if isinstance(value, Tensor):
        return value.double()
    if isinstance(value, int | float):
        return float(value)
    raise Refused("reckons with the number of frames")


def _single(value: "list[int] | int") -> int:
    return value[0] if isinstance(value, list) else value


TRANSLATIONS: Mapping[str, Translation] = {
    "conv1d": _convolution,
    "conv_transpose1d": _transposed_convolution,
    "linear": _linear,
    "relu": _elementwise(Function.RELU),
    "sigmoid": _elementwise(Function.SIGMOID),
    "tanh": _elementwise(Function.TANH),
    "leaky_relu": _leaky_relu,
    "prelu": _prelu,
    "softmax": _softmax,
    "add": _sum(1.0),
    "sub": _sum(-1.0),
    "mul": _product,
    "div": _quotient,
    "cat": _concatenate,
    "slice": _slice,
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
"""How each of torch's operators becomes an operation of a graph, by the name of the operator."""
