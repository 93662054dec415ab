"""Every layer at every width that its choice may take, made once for all cost weights."""

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
    """The grids of a layer's options; none where weights or input stay in floating point.

    Attributes:
        operation: the layer.
        weights: by option of the weights, width and scale.
        inputs: by option of the input.
    """

    operation: Operation
    weights: tuple[tuple[int, Tensor] | None, ...]
    inputs: tuple[ActivationGrid | None, ...]

    def quantized(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """A layer at every option.

        A bias is rounded where both its weights and its input are.

        Args:
            weight: of the layer.
            bias: [out].

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
    """A base at every option of a problem.

    Attributes:
        base: what is quantized.
        problem: sites, widths and groups; its loss is not used.
        widths: by site, the width of each option of its choice.
        grids: by layer name.
        layers: by layer name, its weights and biases at every option, as `LayerGrids.quantized` gives them.
    """

    base: PreparedBase
    problem: AllocationProblem
    widths: Mapping[str, tuple[int, ...]]
    grids: Mapping[str, LayerGrids]
    layers: Mapping[str, tuple[Tensor, Tensor]]


def make_options(base: PreparedBase, problem: AllocationProblem) -> SiteOptions:
    """Quantize every layer at every width that its choice may take, as `FastNetwork` does: seconds."""
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
    return SiteOptions(base, problem, widths, grids, layers)


def _quantized_bias(bias: Tensor, scale: Tensor, grid: ActivationGrid | None) -> Tensor:
    if grid is None or not rounds_bias(grid.bits):
        return bias
    product_scale = scale * grid.scale
    return bias_integers(bias, product_scale) * product_scale
