"""One network for all allocations: each site is a mixture of its quantized versions.

Weights are mixed before the convolution, so a step is one forward and one backward pass, whatever the number of widths. Rounding
passes gradients straight through, except where an activation is clipped. If each mixture is a single option, the network computes
the same as `FastNetwork`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hwsearch.network.graph import Graph
from hwsearch.network.operations import Operation
from hwsearch.network.run import run
from hwsearch.network.sites import LAYERS, WEIGHT
from hwsearch.search.exact.problem import AllocationProblem
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.quantizers import ActivationGrid, bias_integers, fake_quantize, is_float, quantize_weight, rounds_bias
from hwsearch.separator.rounded_weights import output_scale
from hwsearch.training.channels_first import channels_first


@dataclass(frozen=True, eq=False)
class WeightOption:
    """The weights of a layer at a width."""

    bits: int
    scale: Tensor
    weight_change: Tensor
    """What takes the full-precision weights to those that the nearest rounding takes to the base's rounded weights."""
    bias_change: Tensor
    """What takes the full-precision bias to the base's bias at this width."""


@dataclass(frozen=True, eq=False)
class LayerGrids:
    """The grids of a layer's options. An option in floating point has none."""

    operation: Operation
    weights: tuple[WeightOption | None, ...]
    inputs: tuple[ActivationGrid | None, ...]
    """Grid of each option of the input."""

    def quantized(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize the layer's weight and bias [out] at every option.

        A bias is rounded if both the weights and the input are.

        Returns:
            Weights [weight options, ...], and biases [weight options, input options, out].
        """
        weights, biases = [], []
        for option in self.weights:
            if option is None:
                weights.append(weight)
                biases.append(bias.expand(len(self.inputs), -1))
                continue
            weights.append(quantize_weight(weight + option.weight_change, option.scale, option.bits).value)
            output, changed = output_scale(self.operation, option.scale), bias + option.bias_change
            biases.append(torch.stack([_quantized_bias(changed, output, before) for before in self.inputs]))
        return torch.stack(weights), torch.stack(biases)


@dataclass(frozen=True, eq=False)
class SiteOptions:
    """A base at every option of a problem."""

    base: PreparedBase
    problem: AllocationProblem
    """Sites, widths and groups. Its loss is not used."""
    grids: Mapping[str, LayerGrids]
    """The grids of each layer, by its name."""
    layers: Mapping[str, tuple[Tensor, Tensor]]
    """Weights and biases by layer name, from `LayerGrids.quantized`."""


def make_options(base: PreparedBase, problem: AllocationProblem) -> SiteOptions:
    """Quantize every layer at every width that its site may take, as `FastNetwork` does. This takes seconds."""
    widths = dict(problem.widths)
    grids, layers = {}, {}
    for layer in base.graph.operations:
        if isinstance(layer, LAYERS):
            name, read = layer.name, base.sites.read_by(layer)
            grids[name] = LayerGrids(
                operation=layer,
                weights=tuple(None if is_float(bits) else _weight_option(base, name, bits) for bits in widths[name + WEIGHT]),
                inputs=tuple(base.calibration.grid(read, bits) for bits in widths[read]),
            )
            layers[name] = grids[name].quantized(base.graph.parameter(layer, "weight"), base.graph.parameter(layer, "bias"))
    return SiteOptions(base, problem, grids, layers)


def _weight_option(base: PreparedBase, layer: str, bits: int) -> WeightOption:
    rounded, parameters = base.weights.layer(layer, bits), base.graph.parameters
    weight_change = base.weights.master(layer, bits) - parameters[layer + WEIGHT]
    return WeightOption(bits, rounded.weight.scale, weight_change, rounded.bias - parameters[f"{layer}.bias"])


def _quantized_bias(bias: Tensor, scale: Tensor, grid: ActivationGrid | None) -> Tensor:
    if grid is None or not rounds_bias(grid.bits):
        return bias
    product_scale = scale * grid.scale
    return bias_integers(bias, product_scale) * product_scale


class RelaxedNetwork:
    """A base with every site mixed from its options."""

    def __init__(self, options: SiteOptions, *, train_weights: bool = False) -> None:
        """Copy weights and biases; the copies require gradients if they are to be trained."""
        problem, base = options.problem, options.base
        (self._input,) = base.graph.inputs
        self._options = options
        self._train_weights = train_weights
        self._choice = dict(zip(problem.sites, problem.choice_of.tolist(), strict=True))
        self._widths = dict(problem.widths)
        self._kernels = {operation.name: channels_first(operation, base.graph) for operation in base.graph.operations}
        self._versions = {
            tensor: (site, [base.calibration.grid(site, bits) for bits in self._widths[site]])
            for site, tensor in base.sites.tensors.items()
        }
        self.masters = {name: (self._master(f"{name}.weight"), self._master(f"{name}.bias")) for name in options.grids}
        """Copies of weight and bias by layer name."""

    def mask(self, normalised: Tensor, shares: Tensor) -> Tensor:
        """Return the network's output [channels, batch, frames], differentiable in the shares and the trained weights.

        Args:
            normalised: [features, batch, frames].
            shares: [choices, options] share of every option in its mixture; rows sum to 1.
        """
        graph = self._options.base.graph

        def at_tensor(name: str, x: Tensor) -> Tensor:
            if name not in self._versions:
                return x
            site, grids = self._versions[name]
            versions = [x if grid is None else _rounded(x, grid) for grid in grids]
            if len(versions) == 1:
                return versions[0]
            return torch.stack([share * y for share, y in zip(self._shares(site, shares), versions, strict=True)]).sum(dim=0)

        def how(operation: Operation, graph: Graph, inputs: tuple[Tensor, ...]) -> Tensor:
            if operation.name in self.masters:
                return self._kernels[operation.name](*inputs, *self._mixed_layer(operation, shares))
            own = (graph.parameter(operation, part) for part in operation.parameters)
            return self._kernels[operation.name](*inputs, *own)

        (output,) = run(graph, {self._input: normalised}, at_tensor, how)
        return output

    def _master(self, name: str) -> Tensor:
        return self._options.base.graph.parameters[name].clone().requires_grad_(self._train_weights)

    def _shares(self, site: str, shares: Tensor) -> Tensor:
        """Return the shares of a site, [options]."""
        return shares[self._choice[site], : len(self._widths[site])]

    def _mixed_layer(self, layer: Operation, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Mix the weight and the bias of a layer."""
        weight_shares = self._shares(layer.name + WEIGHT, shares)
        input_shares = self._shares(self._options.base.sites.read_by(layer), shares)
        weights, biases = self._options.layers[layer.name]
        masters = self.masters[layer.name]
        if self._train_weights:
            with torch.no_grad():
                weights, biases = self._options.grids[layer.name].quantized(*masters)
        weight = torch.tensordot(weight_shares, weights, dims=1)
        bias = torch.tensordot(input_shares, torch.tensordot(weight_shares, biases, dims=1), dims=1)
        if self._train_weights:
            # The values of the mixture, with the gradients of the master copies.
            weight, bias = (mixed + (copy - copy.detach()) for mixed, copy in zip((weight, bias), masters, strict=True))
        return weight, bias


class _StraightThrough(torch.autograd.Function):
    """Rounds to a grid. The gradient passes where nothing is clipped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: ActivationGrid) -> Tensor:
        half = grid.scale / 2
        ctx.save_for_backward(x)
        ctx.ends = grid.low - half, grid.high + half
        return fake_quantize(x, grid)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradient, x, *ctx.ends), None


def _rounded(x: Tensor, grid: ActivationGrid) -> Tensor:
    y: Tensor = _StraightThrough.apply(x, grid)  # type: ignore[no-untyped-call]
    return y
