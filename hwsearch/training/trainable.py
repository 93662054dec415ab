"""The Brevitas network's numbers and gradients as few plain tensor operations: what short training runs on.

The same parameters, forward pass and straight-through gradients (LSQ, arXiv 1902.08153, equation 3) as
`separator.quantized`, by a test; twice as fast on a CPU. Channels come first and utterances beside each
other, [channels, batch, frames], so that a 1x1 convolution is one matrix product whatever the batch; rounding is
four passes forward and three back; a depthwise convolution is a sum of shifted products.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.folding import FoldedNetwork, has_activation, input_site
from hwsearch.separator.quantizers import BIAS_LIMIT, is_float, weight_limit


def trainable_mask(
    network: FoldedNetwork, allocation: BitAllocation, parameters: Mapping[str, Tensor], normalised: Tensor
) -> Tensor:
    """The mask that a trained state's parameters give, differentiable in all of them but the zero points.

    Args:
        network: the base, for the shape of the network.
        allocation: width of every site.
        parameters: as in `separator.trained.TrainedState`.
        normalised: [features, batch, frames].

    Returns:
        [2 * bins, batch, frames].
    """
    widths = allocation.by_site

    def at_site(site: str, x: Tensor) -> Tensor:
        rectified = has_activation(site) and site not in network.slopes
        if site in network.slopes:
            x = functional.prelu(x, parameters[f"{site}.slope"])
        if is_float(widths[site]):
            return functional.relu(x) if rectified else x
        zero_point = int(parameters[f"{site}.zero_point"])
        high = 2 ** widths[site] - 1 - zero_point
        return _round(x, parameters[f"{site}.scale"], -zero_point, high, rectified=rectified)

    def layer(name: str, x: Tensor) -> Tensor:
        shape, site = network.layers[name], input_site(network.config, name)
        weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
        bits = widths[f"{name}.weight"]
        if not is_float(bits):
            scale, limit = parameters[f"{name}.weight.scale"], weight_limit(bits)
            weight = _round(weight, scale, -limit, limit)
            if not is_float(widths[site]):
                product_scale = scale.flatten() * parameters[f"{site}.scale"]
                bias = _round(bias, product_scale.expand(len(bias)), -BIAS_LIMIT, BIAS_LIMIT)
        if shape.groups == 1:
            return torch.addmm(bias[:, None], weight[:, :, 0], x.flatten(1)).reshape(-1, *x.shape[1:])
        shifts = tuple(tap * shape.dilation - shape.padding[0] for tap in range(weight.shape[-1]))
        y: Tensor = _Depthwise.apply(x, weight[:, 0], bias, shifts)  # type: ignore[no-untyped-call]
        return y

    x = at_site("input_proj.output", layer("input_proj", at_site("features", normalised)))
    for index in range(network.blocks):
        block = f"blocks.{index}"
        y = x
        for stage in ("expand", "depthwise"):
            y = at_site(f"{block}.{stage}.output", layer(f"{block}.{stage}", y))
        x = at_site(f"{block}.add.output", x + at_site(f"{block}.project.output", layer(f"{block}.project", y)))
    return at_site("mask_head.output", layer("mask_head", x))


def _round(x: Tensor, scale: Tensor, low: float, high: float, *, rectified: bool = False) -> Tensor:
    """Round to the grid low * scale .. high * scale; `rectified`: of the positive part of `x`."""
    y: Tensor = _Round.apply(x, scale, low, high, rectified)  # type: ignore[no-untyped-call]
    return y


class _Round(torch.autograd.Function):
    """x -> clamp(round(x / scale), low, high) * scale.

    To x the gradient passes where nothing is clipped. To the scale it is the integer, minus the quotient where nothing
    is clipped. The scale is [], or one per row [rows, 1, 1], or [rows] for x [rows].
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: float, high: float, rectified: bool) -> Tensor:  # noqa: FBT001
        quotient = x / scale
        low = max(low, 0.0) if rectified else low
        y = quotient.round().clamp_(low, high).mul_(scale)
        ctx.save_for_backward(quotient, y, scale)
        # What a ReLU cuts off is cut off at zero, not half a step below it.
        ctx.ends = (0.0 if rectified else low - 0.5), high + 0.5
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        quotient, y, scale = ctx.saved_tensors
        passed = torch.ops.aten.hardtanh_backward(gradient, quotient, *ctx.ends)
        if scale.ndim == 0:
            to_scale = torch.dot(gradient.flatten(), y.flatten()) / scale - torch.dot(passed.flatten(), quotient.flatten())
        elif scale.shape == y.shape:
            to_scale = gradient * y / scale - passed * quotient
        else:
            to_scale = (gradient * y).sum_to_size(scale.shape) / scale - (passed * quotient).sum_to_size(scale.shape)
        return passed, to_scale, None, None, None


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution of [channels, batch, frames] with taps [channels, kernel] at shifts in frames."""

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
    """The sum over taps of gain * x[frame + shift], frames outside being zero."""
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
    """Output frames that read an input frame, and the input frames they read."""
    return slice(max(0, -shift), frames - max(0, shift)), slice(max(0, shift), frames - max(0, -shift))
