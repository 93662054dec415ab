"""The shapes of a graph's tensors."""

from collections.abc import Callable, Mapping

from hwsearch.network import operations as ops
from hwsearch.network.graph import Graph

Shape = tuple[int, ...]
"""(channels, frames), or (channels,) once a mean has taken the frames."""


def tensor_shapes(graph: Graph, inputs: Mapping[str, Shape]) -> dict[str, Shape]:
    """Derive the shape of every tensor from those of the inputs; torch takes much longer, even without data.

    Raises:
        ValueError: an operation does not take tensors of these shapes.
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


def _same(_: ops.Operation, x: Shape, *parameter: Shape) -> Shape | None:
    """Return the shape behind a function of every value, or behind a norm with a gain per channel."""
    return None if parameter and parameter[0] != x[:1] else x


def _convolution(operation: ops.Convolution, x: Shape, weight: Shape) -> Shape | None:
    channels, frames = x
    reach = operation.dilation * (weight[2] - 1)
    if channels != weight[1] * operation.groups:
        return None
    return weight[0], (frames + sum(operation.padding) - reach - 1) // operation.stride + 1


def _transposed(operation: ops.TransposedConvolution, x: Shape, weight: Shape) -> Shape | None:
    channels, frames = x
    reach = operation.dilation * (weight[2] - 1)
    if channels != weight[0]:
        return None
    made = (frames - 1) * operation.stride - 2 * operation.padding + reach + operation.output_padding + 1
    return weight[1] * operation.groups, made


def _linear(_: ops.Linear, x: Shape, weight: Shape) -> Shape | None:
    return (*x[:-1], weight[0]) if x[-1] == weight[1] else None


def _broadcast(_: ops.Operation, x: Shape, y: Shape) -> Shape | None:
    if len(x) != len(y) or any(a != b and 1 not in (a, b) for a, b in zip(x, y, strict=True)):
        return None
    return tuple(map(max, x, y))


def _concatenate(operation: ops.Concatenate, *parts: Shape) -> Shape | None:
    axis = operation.axis - 1
    others = {(*part[:axis], *part[axis + 1 :]) for part in parts}
    if len(others) > 1:
        return None
    return (*parts[0][:axis], sum(part[axis] for part in parts), *parts[0][axis + 1 :])


def _slice(operation: ops.Slice, x: Shape, *length: Shape) -> Shape:
    axis = operation.axis - 1
    stop = length[0][axis] if length else operation.stop
    kept = len(range(*slice(operation.start, stop).indices(x[axis])))
    return (*x[:axis], kept, *x[axis + 1 :])


_MADE: Mapping[type[ops.Operation], Callable[..., Shape | None]] = {
    ops.Convolution: _convolution,
    ops.TransposedConvolution: _transposed,
    ops.Linear: _linear,
    ops.Add: _broadcast,
    ops.Multiply: _broadcast,
    ops.Concatenate: _concatenate,
    ops.Slice: _slice,
    ops.Pad: lambda operation, x: (x[0], x[1] + sum(operation.padding)),
    ops.Mean: lambda operation, x: (x[0], 1) if operation.keep else x[:1],
}
"""The shape that an operation makes from those of its inputs and weights; None if it does not take them."""
