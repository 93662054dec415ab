"""How far a network looks: the frames of its input that a frame of its output depends on."""

import math
from dataclasses import dataclass
from fractions import Fraction

from hwsearch.network.graph import Graph
from hwsearch.network.operations import (
    Concatenate,
    Convolution,
    GroupNorm,
    Mean,
    Operation,
    Pad,
    Slice,
    Softmax,
    TransposedConvolution,
)

_FRAMES = 2
"""Axis of the frames."""


@dataclass(frozen=True)
class Context:
    """What of a network's input a part of its output depends on.

    Attributes:
        before: frames before one of the output.
        after: frames after it.
        multiple: a part of the input is computed as the whole is if it begins at a multiple of so many frames.
    """

    before: int
    after: int
    multiple: int


@dataclass(frozen=True)
class _Reach:
    """Frame t of a tensor depends on frames t * rate + first to t * rate + last of the input."""

    rate: Fraction
    first: Fraction
    last: Fraction

    def shifted(self, frames: int) -> "_Reach":
        """The reach of a tensor whose frame t is this tensor's frame t + frames."""
        return _Reach(self.rate, self.first + self.rate * frames, self.last + self.rate * frames)


def context(graph: Graph) -> Context | None:
    """The context of a graph of one input and one output; none where every frame depends on all."""
    (network_input,), (output,) = graph.inputs, graph.outputs
    reaches: dict[str, _Reach | None] = {network_input: _Reach(Fraction(1), Fraction(0), Fraction(0))}
    multiple = 1
    for operation in graph.operations:
        read = [reaches[name] for name in operation.inputs]
        reach = None if None in read else _reach(operation, graph, [each for each in read if each is not None])
        reaches[operation.name] = reach
        if reach is not None:
            multiple = math.lcm(multiple, reach.rate.numerator)
    found = reaches[output]
    if found is None or found.rate != 1:
        return None
    return Context(max(0, math.ceil(-found.first)), max(0, math.ceil(found.last)), multiple)


def _reach(operation: Operation, graph: Graph, read: list[_Reach]) -> _Reach | None:
    first, *_ = read
    match operation:
        case Convolution(stride=stride, dilation=dilation, padding=(before, _)):
            span = dilation * (graph.parameter(operation, "weight").shape[2] - 1)
            start, end = first.shifted(-before), first.shifted(span - before)
            return _Reach(first.rate * stride, start.first, end.last)
        case TransposedConvolution(stride=stride, dilation=dilation, padding=cut, output_padding=longer):
            span = dilation * (graph.parameter(operation, "weight").shape[2] - 1)
            rate = first.rate / stride
            # What is cut off the end though frames before it would reach there.
            missing = max(0, cut - span - longer)
            return _Reach(rate, first.first + rate * (cut - span), first.last + rate * (cut + missing))
        case Pad(padding=(before, _)):
            return first.shifted(-before)
        case Slice(axis=axis) if axis == _FRAMES:
            return _part(operation, read)
        case Mean() | GroupNorm() | Softmax(axis=2) | Concatenate(axis=2):
            return None
        case _:
            return _together(read)


def _part(operation: Slice, read: list[_Reach]) -> _Reach | None:
    """A slice of frames from a fixed place to the end, or to a place before it, or as long as another tensor."""
    if operation.start < 0 or (operation.stop is not None and operation.stop >= 0):
        return None
    reach = read[0].shifted(operation.start)
    missing = 0 if operation.stop is None else -operation.stop
    longest = max([reach.last + reach.rate * missing, *(each.last for each in read[1:])])
    return _Reach(reach.rate, reach.first, longest)


def _together(read: list[_Reach]) -> _Reach | None:
    """Frames of several tensors at once; none where one has more frames than another, and all of them are read."""
    if len({each.rate for each in read}) > 1:
        return None
    return _Reach(read[0].rate, min(each.first for each in read), max(each.last for each in read))
