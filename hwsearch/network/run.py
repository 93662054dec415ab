"""Run a graph in floating point. Callers may compute operations, and change tensors, in their own way."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from hwsearch.network import operations as ops
from hwsearch.network.graph import Graph

TensorFunction = Callable[[str, Tensor], Tensor]
"""Observes or changes a tensor of the graph, given its name."""

Compute = Callable[[ops.Operation, Graph, tuple[Tensor, ...]], Tensor]
"""Computes an operation of a graph from the tensors that it reads."""

_FUNCTIONS: Mapping[ops.Function, Callable[[Tensor], Tensor]] = {
    ops.Function.RELU: torch.relu,
    ops.Function.SIGMOID: torch.sigmoid,
    ops.Function.TANH: torch.tanh,
}


def compute(operation: ops.Operation, graph: Graph, inputs: tuple[Tensor, ...]) -> Tensor:
    """Compute an operation with torch."""
    return computed(operation, *inputs, *(graph.parameter(operation, part) for part in operation.parameters))


def computed(operation: ops.Operation, *tensors: Tensor) -> Tensor:
    """Compute an operation with torch from its inputs and then its parameters, in the order of `operation.parameters`."""
    return _COMPUTED[type(operation)](operation, *tensors)


def convolve(operation: ops.Convolution, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve [batch, in, frames] to [batch, out, frames]."""
    padded = functional.pad(x, operation.padding) if any(operation.padding) else x
    return functional.conv1d(padded, weight, bias, operation.stride, 0, operation.dilation, operation.groups)


def _transposed(operation: ops.TransposedConvolution, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    shape = operation.stride, operation.padding, operation.output_padding, operation.groups, operation.dilation
    return functional.conv_transpose1d(x, weight, bias, *shape)


def _layer_norm(operation: ops.LayerNorm, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.layer_norm(x.transpose(1, 2), weight.shape, weight, bias, operation.epsilon).transpose(1, 2)


def _affine(_: ops.Affine, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x * weight[:, None].to(x.dtype) + bias[:, None].to(x.dtype)


def _slice(operation: ops.Slice, x: Tensor, *length: Tensor) -> Tensor:
    stop = length[0].shape[operation.axis] if length else operation.stop
    return x[(slice(None),) * operation.axis + (slice(operation.start, stop),)]


_COMPUTED: Mapping[type[ops.Operation], Callable[..., Tensor]] = {
    ops.Convolution: convolve,
    ops.TransposedConvolution: _transposed,
    ops.Linear: lambda _, x, weight, bias: functional.linear(x, weight, bias),
    ops.Elementwise: lambda operation, x: _FUNCTIONS[operation.function](x),
    ops.LeakyReLU: lambda operation, x: functional.leaky_relu(x, operation.slope),
    ops.PReLU: lambda _, x, slope: functional.prelu(x, slope),
    ops.Softmax: lambda operation, x: torch.softmax(x, operation.axis),
    ops.Add: lambda _, x, y: x + y,
    ops.Multiply: lambda _, x, y: x * y,
    ops.Read: lambda _, x: x,
    ops.Concatenate: lambda operation, *parts: torch.cat(parts, operation.axis),
    ops.Slice: _slice,
    ops.Pad: lambda operation, x: functional.pad(x, operation.padding),
    ops.Mean: lambda operation, x: x.mean(2, keepdim=operation.keep),
    ops.GroupNorm: lambda operation, x, weight, bias: functional.group_norm(x, operation.groups, weight, bias, operation.epsilon),
    ops.LayerNorm: _layer_norm,
    ops.Affine: _affine,
}
"""Computes each operation from its inputs and parameters."""


def run(
    graph: Graph, inputs: Mapping[str, Tensor], at_tensor: TensorFunction | None = None, how: Compute = compute
) -> tuple[Tensor, ...]:
    """Run a graph.

    Args:
        graph: the network.
        inputs: by name.
        at_tensor: called for every tensor in the order of execution, inputs first; its result replaces the tensor.
        how: computes each operation.

    Returns:
        The outputs of the graph.
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
