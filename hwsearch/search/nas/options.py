"""Every layer quantized at every width that its site may take, once for all cost weights."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hwsearch.network.operations import Operation
from hwsearch.network.sites import LAYERS, WEIGHT
from hwsearch.search.exact.problem import AllocationProblem
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.quantizers import ActivationGrid, bias_integers, is_float, quantize_weight, rounds_bias
from hwsearch.separator.weight_scales import output_scale


@dataclass(frozen=True, eq=False)
class LayerGrids:
    """The grids of a layer's options. An option in floating point has none."""

    operation: Operation
    weights: tuple[tuple[int, Tensor] | None, ...]
    """Width and scale of each option of the weights."""
    inputs: tuple[ActivationGrid | None, ...]
    """Grid of each option of the input."""

    def quantized(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize the layer's weight and bias [out] at every option.

        A bias is rounded if both the weights and the input are.

        Returns:
            Weights [weight options, ...], and biases [weight options, input options, out].
        """
        weights, biases = [], []
        for grid in self.weights:
            if grid is None:
                weights.append(weight)
                biases.append(bias.expand(len(self.inputs), -1))
                continue
            bits, scale = grid
            weights.append(quantize_weight(weight, scale, bits).value)
            output = output_scale(self.operation, scale)
            biases.append(torch.stack([_quantized_bias(bias, output, before) for before in self.inputs]))
        return torch.stack(weights), torch.stack(biases)


@dataclass(frozen=True, eq=False)
class SiteOptions:
    """A base at every option of a problem."""

    base: PreparedBase
    problem: AllocationProblem
    """Sites, widths and groups. Its loss is not used."""
    grids: Mapping[str, LayerGrids]
    """By layer name."""
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
                weights=tuple(
                    None if is_float(bits) else (bits, base.scales.scale(name, bits)) for bits in widths[name + WEIGHT]
                ),
                inputs=tuple(base.calibration.grid(read, bits) for bits in widths[read]),
            )
            layers[name] = grids[name].quantized(base.graph.parameter(layer, "weight"), base.graph.parameter(layer, "bias"))
    return SiteOptions(base, problem, grids, layers)


def _quantized_bias(bias: Tensor, scale: Tensor, grid: ActivationGrid | None) -> Tensor:
    if grid is None or not rounds_bias(grid.bits):
        return bias
    product_scale = scale * grid.scale
    return bias_integers(bias, product_scale) * product_scale
