"""The quantized network for short training: the same outputs and gradients as the Brevitas network, twice as fast on a CPU.

Parameters, forward pass and straight-through gradients (LSQ, arXiv 1902.08153, equation 3) are those of `separator.quantized`.
Tensors are [channels, batch, frames] (`training.channels_first`). Rounding, with a ReLU before it, takes four passes forward and
three backward.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hwsearch.network.graph import Graph
from hwsearch.network.operations import Elementwise, Function, Operation
from hwsearch.network.run import run
from hwsearch.network.sites import LAYERS, WEIGHT, Sites
from hwsearch.separator.allocation import BitAllocation, weight_limit
from hwsearch.separator.quantizers import BIAS_LIMIT, is_float, rounds_bias, stored_scale
from hwsearch.separator.rounded_weights import output_scale
from hwsearch.separator.second_order import mean_output
from hwsearch.training.channels_first import channels_first


class TrainableNetwork:
    """A graph at one allocation, prepared for all training steps.

    Args:
        graph: a graph with one input and one output; the values of its parameters are not used.
        sites: the sites of the graph.
        allocation: bit-width of every site.
        means: mean inputs by layer (`PreparedBase.means`). In place of the bias of such a layer, its output for the mean input is
            trained. So the rounding errors of the weights, which differ from width to width, move no means, and one such output
            serves all widths.
    """

    def __init__(self, graph: Graph, sites: Sites, allocation: BitAllocation, means: Mapping[str, Tensor] | None = None) -> None:
        (self._input,) = graph.inputs
        widths = allocation.by_site
        self._graph = graph
        self._kernels = {operation.name: channels_first(operation, graph) for operation in graph.operations}
        self._layers = {
            layer.name: _Layer(layer, widths[layer.name + WEIGHT], read if rounds_bias(widths[read]) else None, mean)
            for layer in graph.operations
            if isinstance(layer, LAYERS)
            for read, mean in [(sites.read_by(layer), (means or {}).get(layer.name))]
        }
        relus = {each.name for each in graph.operations if isinstance(each, Elementwise) and each.function is Function.RELU}
        self._roundings = {
            tensor: _Rounding(site, widths[site], tensor in relus)
            for site, tensor in sites.tensors.items()
            if not is_float(widths[site])
        }

    def __call__(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """The output for `x`, both [channels, batch, frames], differentiable in all parameters but the zero points.

        Args:
            parameters: parameters as `entered` gives them.
            x: the input.
        """
        output, _ = self.watched(parameters, x, ())
        return output

    def watched(self, parameters: Mapping[str, Tensor], x: Tensor, names: Collection[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the output, and tensors of the graph before they are rounded, by name."""
        found: dict[str, Tensor] = {}

        def at_tensor(name: str, x: Tensor) -> Tensor:
            if name in names:
                found[name] = x
            rounding = self._roundings.get(name)
            if rounding is None:
                return x
            zero_point = int(parameters[f"{rounding.site}.zero_point"])
            high = 2**rounding.bits - 1 - zero_point
            return _round(x, parameters[f"{rounding.site}.scale"], -zero_point, high, rectified=rounding.rectified)

        def how(operation: Operation, _graph: Graph, inputs: tuple[Tensor, ...]) -> Tensor:
            rounding = self._roundings.get(operation.name)
            if rounding is not None and rounding.rectified:
                return inputs[0]
            if (layer := self._layers.get(operation.name)) is not None:
                own = layer.rounded(parameters)
            else:
                own = tuple(parameters[f"{operation.name}.{part}"] for part in operation.parameters)
            return self._kernels[operation.name](*inputs, *own)

        (output,) = run(self._graph, {self._input: x}, at_tensor, how)
        return output, found

    def entered(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters of a `separator.trained.TrainedState` as they are trained."""
        return self._with_biases(parameters, 1.0)

    def left(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return parameters that were trained as those of a `separator.trained.TrainedState`: scales of weights are rounded."""
        names = [f"{name}{WEIGHT}.scale" for name, layer in self._layers.items() if not is_float(layer.bits)]
        stored = {name: stored_scale(parameters[name]) for name in names}
        return self._with_biases({**parameters, **stored}, -1.0)

    def _with_biases(self, parameters: Mapping[str, Tensor], sign: float) -> dict[str, Tensor]:
        biases = {
            f"{name}.bias": parameters[f"{name}.bias"]
            + sign * mean_output(layer.rounded_weight(parameters).detach(), layer.mean.to(parameters[f"{name}.bias"].device))
            for name, layer in self._layers.items()
            if layer.mean is not None
        }
        return {**parameters, **biases}


@dataclass(frozen=True)
class _Rounding:
    """The rounding of a tensor. `rectified` includes the ReLU that makes the tensor."""

    site: str
    bits: int
    rectified: bool


@dataclass(frozen=True)
class _Layer:
    """The rounding of a layer. Its bias is rounded to the grid of the products if `read`, the site of its input, is given."""

    operation: Operation
    bits: int
    read: str | None
    mean: Tensor | None

    def rounded_weight(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The weights on their grid, if they have one."""
        site = self.operation.name + WEIGHT
        if is_float(self.bits):
            return parameters[site]
        limit = weight_limit(self.bits)
        return _round(parameters[site], parameters[f"{site}.scale"], -limit, limit)

    def rounded(self, parameters: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Rounded weights and bias."""
        weight, bias = self.rounded_weight(parameters), parameters[f"{self.operation.name}.bias"]
        if self.mean is not None:
            bias = bias - mean_output(weight, self.mean)
        if self.read is not None and not is_float(self.bits):
            product_scale = output_scale(self.operation, parameters[f"{self.operation.name}{WEIGHT}.scale"])
            product_scale = product_scale * parameters[f"{self.read}.scale"]
            bias = _round(bias, product_scale.expand(len(bias)), -BIAS_LIMIT, BIAS_LIMIT)
        return weight, bias


def _round(x: Tensor, scale: Tensor, low: float, high: float, *, rectified: bool = False) -> Tensor:
    """Round x, or its positive part if `rectified`, to the grid low * scale .. high * scale."""
    y: Tensor = _Round.apply(x, scale, low, high, rectified)  # type: ignore[no-untyped-call]
    return y


class _Round(torch.autograd.Function):
    """x -> clamp(round(x / scale), low, high) * scale, with a scale that broadcasts to x.

    The gradient of x passes where nothing is clipped. The gradient of the scale is the integer, minus the quotient where nothing
    is clipped.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: float, high: float, rectified: bool) -> Tensor:  # noqa: FBT001
        quotient = x / scale
        low = max(low, 0.0) if rectified else low
        y = quotient.round().clamp_(low, high).mul_(scale)
        ctx.save_for_backward(quotient, y, scale)
        # A ReLU clips at zero, not half a step below.
        ctx.ends = (0.0 if rectified else low - 0.5), high + 0.5
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        quotient, y, scale = ctx.saved_tensors
        passed = torch.ops.aten.hardtanh_backward(gradient, quotient, *ctx.ends)
        if scale.ndim == 0:
            to_scale = torch.dot(gradient.flatten(), y.flatten()) / scale - torch.dot(passed.flatten(), quotient.flatten())
        else:
            to_scale = (gradient * y).sum_to_size(scale.shape) / scale - (passed * quotient).sum_to_size(scale.shape)
        return passed, to_scale, None, None, None
