"""How far a network looks: the frames of its input that a frame of its output depends on."""

import math
from dataclasses import dataclass
from fractions import Fraction

from hwsearch.network import operations as ops
from hwsearch.network.graph import Graph

_FRAMES = 2
"""Axis of the frames."""


@dataclass(frozen=True)
class Context:
    """The part of a network's input that a part of its output depends on.

    Attributes:
        before: frames before those of the output.
        after: frames after them.
        multiple: a part of the input gives the same output as the whole if it begins at a multiple of this many frames.
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
        """Return the reach of a tensor whose frame t is frame t + frames of this one."""
        return _Reach(self.rate, self.first + self.rate * frames, self.last + self.rate * frames)


def context(graph: Graph) -> Context | None:
    """Find the context of a graph with one input and one output; None if a frame of the output depends on all frames."""
    (network_input,), (output,) = graph.inputs, graph.outputs
    reaches: dict[str, _Reach | None] = {network_input: _Reach(Fraction(1), Fraction(0), Fraction(0))}
    multiple = 1
    for operation in graph.operations:
        read = [reach for name in operation.inputs if (reach := reaches[name]) is not None]
        reach = _reach(operation, graph, read) if len(read) == len(operation.inputs) else None
        reaches[operation.name] = reach
        if reach is not None:
            multiple = math.lcm(multiple, reach.rate.numerator)
    found = reaches[output]
    if found is None or found.rate != 1:
        return None
    return Context(max(0, math.ceil(-found.first)), max(0, math.ceil(found.last)), multiple)


def _reach(operation: ops.Operation, graph: Graph, read: list[_Reach]) -> _Reach | None:
    first, *_ = read
    match operation:
        case ops.Convolution(stride=stride, dilation=dilation, padding=(before, _)):
            span = dilation * (graph.parameter(operation, "weight").shape[2] - 1)
            start, end = first.shifted(-before), first.shifted(span - before)
            return _Reach(first.rate * stride, start.first, end.last)
        case ops.TransposedConvolution(stride=stride, dilation=dilation, padding=cut, output_padding=longer):
            span = dilation * (graph.parameter(operation, "weight").shape[2] - 1)
            rate = first.rate / stride
            # Frames that are cut off the end although earlier input frames would reach them.
            missing = max(0, cut - span - longer)
            return _Reach(rate, first.first + rate * (cut - span), first.last + rate * (cut + missing))
        case ops.Pad(padding=(before, _)):
            return first.shifted(-before)
        case ops.Slice(axis=axis) if axis == _FRAMES:
            return _part(operation, read)
        case ops.Mean() | ops.GroupNorm() | ops.Softmax(axis=2) | ops.Concatenate(axis=2):
            return None
        case _:
            # Of tensors with different rates one has more frames, and all of them are read.
            together = _Reach(first.rate, min(each.first for each in read), max(each.last for each in read))
            return together if len({each.rate for each in read}) == 1 else None


def _part(operation: ops.Slice, read: list[_Reach]) -> _Reach | None:
    """Return the reach of frames from a fixed place to the end, to a fixed distance from it, or to another tensor's length."""
    if operation.start < 0 or (operation.stop is not None and operation.stop >= 0):
        return None
    reach = read[0].shifted(operation.start)
    missing = 0 if operation.stop is None else -operation.stop
    longest = max([reach.last + reach.rate * missing, *(each.last for each in read[1:])])
    return _Reach(reach.rate, reach.first, longest)
