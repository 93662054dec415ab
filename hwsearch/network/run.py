"""Running a graph: in floating point as it stands, or with something else in place of an operation or behind a tensor."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from hwsearch.network.graph import Graph
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
    Read,
    Slice,
    Softmax,
    TransposedConvolution,
)

TensorFunction = Callable[[str, Tensor], Tensor]
"""What happens to a tensor of the graph, by name: it is observed, rounded, or left as it is."""

Compute = Callable[[Operation, Graph, tuple[Tensor, ...]], Tensor]
"""How an operation makes its tensor from those that it reads."""

_FUNCTIONS: Mapping[Function, Callable[[Tensor], Tensor]] = {
    Function.RELU: torch.relu,
    Function.SIGMOID: torch.sigmoid,
    Function.TANH: torch.tanh,
}


def compute(operation: Operation, graph: Graph, inputs: tuple[Tensor, ...]) -> Tensor:
    """An operation as torch computes it."""
    return computed(operation, *inputs, *(graph.parameter(operation, part) for part in operation.parameters))


def computed(operation: Operation, *tensors: Tensor) -> Tensor:
    """An operation as torch computes it from its inputs and its parameters, in the order in which it names them."""
    return _COMPUTED[type(operation)](operation, *tensors)


def convolve(operation: Convolution, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A convolution with weights and bias of one's own: [batch, in, frames] -> [batch, out, frames]."""
    padded = functional.pad(x, operation.padding) if any(operation.padding) else x
    return functional.conv1d(padded, weight, bias, operation.stride, 0, operation.dilation, operation.groups)


def _transposed(operation: TransposedConvolution, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    shape = operation.stride, operation.padding, operation.output_padding, operation.groups, operation.dilation
    return functional.conv_transpose1d(x, weight, bias, *shape)


def _layer_norm(operation: LayerNorm, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.layer_norm(x.transpose(1, 2), weight.shape, weight, bias, operation.epsilon).transpose(1, 2)


def _affine(_: Affine, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x * weight[:, None].to(x.dtype) + bias[:, None].to(x.dtype)


def _slice(operation: Slice, x: Tensor, *length: Tensor) -> Tensor:
    stop = length[0].shape[operation.axis] if length else operation.stop
    return x[(slice(None),) * operation.axis + (slice(operation.start, stop),)]


_COMPUTED: Mapping[type[Operation], Callable[..., Tensor]] = {
    Convolution: convolve,
    TransposedConvolution: _transposed,
    Linear: lambda _, x, weight, bias: functional.linear(x, weight, bias),
    Elementwise: lambda operation, x: _FUNCTIONS[operation.function](x),
    LeakyReLU: lambda operation, x: functional.leaky_relu(x, operation.slope),
    PReLU: lambda _, x, slope: functional.prelu(x, slope),
    Softmax: lambda operation, x: torch.softmax(x, operation.axis),
    Add: lambda _, x, y: x + y,
    Multiply: lambda _, x, y: x * y,
    Read: lambda _, x: x,
    Concatenate: lambda operation, *parts: torch.cat(parts, operation.axis),
    Slice: _slice,
    Pad: lambda operation, x: functional.pad(x, operation.padding),
    Mean: lambda operation, x: x.mean(2, keepdim=operation.keep),
    GroupNorm: lambda operation, x, weight, bias: functional.group_norm(x, operation.groups, weight, bias, operation.epsilon),
    LayerNorm: _layer_norm,
    Affine: _affine,
}
"""How each operation makes its tensor from those that it reads and its parameters."""


def run(
    graph: Graph, inputs: Mapping[str, Tensor], at_tensor: TensorFunction | None = None, how: Compute = compute
) -> tuple[Tensor, ...]:
    """Run a graph.

    Args:
        graph: the network.
        inputs: a tensor for each input of the graph.
        at_tensor: called for every tensor in the order of execution, inputs first; what it returns takes the tensor's place.
        how: computes each operation.

    Returns:
        The graph's outputs.
    """
    tensors: dict[str, Tensor] = {}
    for name in graph.inputs:
        tensors[name] = inputs[name] if at_tensor is None else at_tensor(name, inputs[name])
    for operation in graph.operations:
        made = how(operation, graph, tuple(tensors[name] for name in operation.inputs))
        for name in graph.last_reads[operation.name]:
            del tensors[name]
        tensors[operation.name] = made if at_tensor is None else at_tensor(operation.name, made)
    return tuple(tensors[name] for name in graph.outputs)
