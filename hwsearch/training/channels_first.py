"""Differentiable operations of a graph on tensors [channels, batch, frames], which are fast on a CPU for any batch.

In this layout a 1x1 convolution is one matrix product, and a depthwise convolution is a sum of shifted products. Torch computes
the other operations on transposed views [batch, channels, frames].
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hwsearch.network.graph import Graph
from hwsearch.network.operations import Add, Convolution, Elementwise, LeakyReLU, Multiply, Operation, PReLU, Read
from hwsearch.network.run import computed
from hwsearch.separator.fast import depthwise_shifts

_WITHOUT_AXIS = (Elementwise, LeakyReLU, Add, Multiply, Read)
"""Operations that need no views, because they ignore the meaning of axes. The views took about two percent of a training step."""

Kernel = Callable[..., Tensor]
"""Computes the tensor of an operation from its inputs, followed by its parameters."""


def channels_first(operation: Operation, graph: Graph) -> Kernel:
    """The kernel of an operation. It depends on the shapes of the graph's parameters, not on their values."""
    if isinstance(operation, Convolution):
        weight = graph.parameter(operation, "weight")
        if weight.shape[2] == operation.groups == operation.stride == 1 and operation.padding == (0, 0):
            return pointwise
        if (shifts := depthwise_shifts(operation, weight)) is not None:
            return lambda x, weight, bias: depthwise(x, weight, bias, shifts)
    one_slope = isinstance(operation, PReLU) and len(graph.parameter(operation, "slope")) == 1
    if one_slope or isinstance(operation, _WITHOUT_AXIS):
        return partial(computed, operation)
    return by_torch(operation)


def by_torch(operation: Operation) -> Kernel:
    """The kernel by which torch computes an operation on transposed views."""

    def transposed(*tensors: Tensor) -> Tensor:
        inputs, parameters = tensors[: len(operation.inputs)], tensors[len(operation.inputs) :]
        return computed(operation, *(x.transpose(0, 1) for x in inputs), *parameters).transpose(0, 1)

    return transposed


def pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 1x1 convolution: [in, batch, frames] to [out, batch, frames]."""
    return torch.addmm(bias[:, None], weight[:, :, 0], x.flatten(1)).reshape(-1, *x.shape[1:])


def depthwise(x: Tensor, weight: Tensor, bias: Tensor, shifts: tuple[int, ...]) -> Tensor:
    """A depthwise convolution: output frame t reads input frame t + shift for the shift of each tap."""
    y: Tensor = _Depthwise.apply(x, weight[:, 0], bias, shifts)  # type: ignore[no-untyped-call]
    return y


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, bias: Tensor, shifts: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x, taps)
        ctx.shifts = shifts
        y = _shifted_sum(x, taps, shifts)
        return y.add_(bias[:, None, None])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, taps = ctx.saved_tensors
        to_x = _shifted_sum(gradient, taps, tuple(-shift for shift in ctx.shifts))
        to_taps = torch.zeros_like(taps)
        for tap, shift in enumerate(ctx.shifts):
            if abs(shift) < x.shape[-1]:
                here, there = _overlap(shift, x.shape[-1])
                to_taps[:, tap] = (gradient[..., here] * x[..., there]).sum(dim=(1, 2))
        return to_x, to_taps, gradient.sum(dim=(1, 2)), None


def _shifted_sum(x: Tensor, taps: Tensor, shifts: tuple[int, ...]) -> Tensor:
    """The sum over taps [channels, kernel] of tap * x[..., frame + shift]; frames outside x are zero."""
    frames = x.shape[-1]
    order = sorted(range(len(shifts)), key=lambda tap: abs(shifts[tap]))
    if shifts[order[0]] != 0:
        raise ValueError("a depthwise layer without an unshifted tap")
    y = x * taps[:, order[0], None, None]
    for tap in order[1:]:
        if abs(shifts[tap]) < frames:
            here, there = _overlap(shifts[tap], frames)
            y[..., here].addcmul_(x[..., there], taps[:, tap, None, None])
    return y


def _overlap(shift: int, frames: int) -> tuple[slice, slice]:
    """The output frames that read an existing input frame, and those input frames."""
    return slice(max(0, -shift), frames - max(0, shift)), slice(max(0, shift), frames - max(0, -shift))
