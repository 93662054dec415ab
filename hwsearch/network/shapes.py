"""Shapes of a graph's tensors."""

from collections.abc import Callable, Mapping

from hwsearch.network.graph import Graph
from hwsearch.network.operations import (
    Add,
    Concatenate,
    Convolution,
    Linear,
    Mean,
    Multiply,
    Operation,
    Pad,
    Slice,
    TransposedConvolution,
)

Shape = tuple[int, ...]
"""(channels, frames), or (channels,) once a mean has taken the frames."""


def tensor_shapes(graph: Graph, inputs: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shape of every tensor, in the order of execution; nothing is computed, which takes torch much longer.

    Args:
        graph: the network.
        inputs: the shape of each of its inputs.

    Raises:
        ValueError: an operation that does not take tensors of such shapes.
    """
    shapes = {name: inputs[name] for name in graph.inputs}
    for operation in graph.operations:
        read = [shapes[name] for name in operation.inputs]
        weight = f"{operation.name}.weight"
        parameters = [tuple(graph.parameters[weight].shape)] if weight in graph.parameters else []
        made = _MADE.get(type(operation), _same)(operation, *read, *parameters)
        if made is None or min(made) < 1:
            raise ValueError(f"'{operation.name}' does not take tensors of the shapes {read}")
        shapes[operation.name] = made
    return shapes


def _same(_: Operation, x: Shape, *parameter: Shape) -> Shape | None:
    """A function of every value, or a norm, which has a gain for every channel."""
    return None if parameter and parameter[0] != x[:1] else x


def _convolution(operation: Convolution, x: Shape, weight: Shape) -> Shape | None:
    channels, frames = x
    reach = operation.dilation * (weight[2] - 1)
    if channels != weight[1] * operation.groups:
        return None
    return weight[0], (frames + sum(operation.padding) - reach - 1) // operation.stride + 1


def _transposed(operation: TransposedConvolution, x: Shape, weight: Shape) -> Shape | None:
    channels, frames = x
    reach = operation.dilation * (weight[2] - 1)
    if channels != weight[0]:
        return None
    made = (frames - 1) * operation.stride - 2 * operation.padding + reach + operation.output_padding + 1
    return weight[1] * operation.groups, made


def _linear(_: Linear, x: Shape, weight: Shape) -> Shape | None:
    return (*x[:-1], weight[0]) if x[-1] == weight[1] else None


def _broadcast(_: Operation, x: Shape, y: Shape) -> Shape | None:
    if len(x) != len(y) or any(a != b and 1 not in (a, b) for a, b in zip(x, y, strict=True)):
        return None
    return tuple(map(max, x, y))


def _concatenate(operation: Concatenate, *parts: Shape) -> Shape | None:
    axis = operation.axis - 1
    others = {(*part[:axis], *part[axis + 1 :]) for part in parts}
    if len(others) > 1:
        return None
    return (*parts[0][:axis], sum(part[axis] for part in parts), *parts[0][axis + 1 :])


def _slice(operation: Slice, x: Shape, *length: Shape) -> Shape:
    axis = operation.axis - 1
    stop = length[0][axis] if length else operation.stop
    kept = len(range(*slice(operation.start, stop).indices(x[axis])))
    return (*x[:axis], kept, *x[axis + 1 :])


_MADE: Mapping[type[Operation], Callable[..., Shape | None]] = {
    Convolution: _convolution,
    TransposedConvolution: _transposed,
    Linear: _linear,
    Add: _broadcast,
    Multiply: _broadcast,
    Concatenate: _concatenate,
    Slice: _slice,
    Pad: lambda operation, x: (x[0], x[1] + sum(operation.padding)),
    Mean: lambda operation, x: (x[0], 1) if operation.keep else x[:1],
}
"""What an operation makes of the shapes that it reads and that of its weights; none of such that it does not take."""
