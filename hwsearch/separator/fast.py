"""The scorer's network: the numbers of the Brevitas network, many times faster.

Weights are quantized once per site and width and kept, and so is what the first layer makes of each input, norms are folded,
rounding to a grid is four passes in place, and a depthwise convolution is a sum of shifted products, on a CPU two to six times
faster than the library's. No gradients.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hwsearch.experiment import QuantizationConfig
from hwsearch.separator.allocation import BitAllocation, activation_sites
from hwsearch.separator.calibration import Calibration
from hwsearch.separator.folding import FoldedLayer, FoldedNetwork, convolve, input_site, run_folded
from hwsearch.separator.integer import MAX_BITS, IntegerLayer, first_layer, integer_layer, integers_are_fast, run_integer
from hwsearch.separator.quantizers import (
    ActivationGrid,
    QuantizedWeight,
    bias_integers,
    fake_quantize,
    is_float,
    quantize_weight,
)
from hwsearch.separator.weight_scales import WeightScales

_FIRST = "input_proj"


@dataclass(frozen=True, eq=False)
class KeptInput:
    """An input that many candidates of one network read, and what their first layer makes of it.

    That layer reads thousands of features where others read hundreds of channels: a third of all products, for as many
    different results as it has widths. Each takes the memory of one activation.

    Attributes:
        normalised: features [batch, features, frames]; not to be changed any more.
        trunks: the first layer's output, by arithmetic and the widths of the features and of the layer's weights.
    """

    normalised: Tensor
    trunks: dict[tuple[bool, int, int], Tensor] = field(default_factory=dict)

    def trunk(self, key: tuple[bool, int, int], compute: Callable[[Tensor], Tensor]) -> Tensor:
        """What `compute` makes of the features, computed once for each key."""
        if key not in self.trunks:
            self.trunks[key] = compute(self.normalised)
        return self.trunks[key]


MaskFunction = Callable[[Tensor | KeptInput], Tensor]
"""Normalised features [batch, features, frames], new ones or kept, to mask [batch, 2 * bins, frames]."""


class FastNetwork:
    """One base at any allocation.

    Args:
        folded: full-precision weights with the norms folded in.
        calibration: grids of the activations.
        config: how weight scales are chosen.
        scales: those that are known already.
        integers: whether candidates may be computed in 8-bit integers, where all their widths and the processor allow. That is
            three times faster, and rounds differently from float kernels: see `hwsearch.separator.integer`.
    """

    def __init__(
        self,
        folded: FoldedNetwork,
        calibration: Calibration,
        config: QuantizationConfig,
        *,
        scales: WeightScales | None = None,
        integers: bool = False,
    ) -> None:
        self._folded = folded
        self._calibration = calibration
        self._scales = WeightScales(folded, config) if scales is None else scales
        self._integers = integers and not folded.slopes
        self._weights: dict[tuple[str, int], tuple[QuantizedWeight, Tensor]] = {}
        self._integer_layers: dict[tuple[str, int, int], IntegerLayer] = {}

    def mask_function(self, allocation: BitAllocation) -> MaskFunction:
        """The network at an allocation."""
        widths = allocation.by_site
        grids = {site: self._calibration.grid(site, widths[site]) for site in activation_sites(self._folded.config)}
        if self._integers and max(widths.values()) <= MAX_BITS and integers_are_fast():
            return self._in_integers(widths, {site: grid for site, grid in grids.items() if grid is not None})
        return self._in_floats(widths, grids)

    def _in_floats(self, widths: Mapping[str, int], grids: Mapping[str, ActivationGrid | None]) -> MaskFunction:
        layers: dict[str, FoldedLayer] = {}
        for name, layer in self._folded.layers.items():
            bits = widths[f"{name}.weight"]
            if is_float(bits):
                layers[name] = layer
                continue
            quantized, weight = self._quantized(name, bits)
            grid = grids[input_site(self._folded.config, name)]
            bias = layer.bias
            if grid is not None:
                product_scale = quantized.scale.flatten() * grid.scale
                bias = bias_integers(bias, product_scale) * product_scale
            layers[name] = replace(layer, weight=weight, bias=bias)
        network = replace(self._folded, layers=layers)
        first = layers[_FIRST]
        key = False, widths["features"], widths[f"{_FIRST}.weight"]

        def at_site(site: str, x: Tensor) -> Tensor:
            grid = grids[site]
            return x if grid is None else fake_quantize(x, grid)

        def mask(x: Tensor | KeptInput) -> Tensor:
            kept = x if isinstance(x, KeptInput) else KeptInput(x)

            def behind_features(site: str, x: Tensor) -> Tensor:
                return x if site == "features" else at_site(site, x)

            def convolution(x: Tensor, layer: FoldedLayer) -> Tensor:
                if layer is first:
                    return kept.trunk(key, lambda features: fast_convolve(at_site("features", features), first))
                return fast_convolve(x, layer)

            with torch.no_grad():
                return run_folded(network, kept.normalised, behind_features, convolution)

        return mask

    def _in_integers(self, widths: Mapping[str, int], grids: Mapping[str, ActivationGrid]) -> MaskFunction:
        layers = {name: self._integer_layer(name, widths) for name in self._folded.layers}
        key = True, widths["features"], widths[f"{_FIRST}.weight"]

        def mask(x: Tensor | KeptInput) -> Tensor:
            kept = x if isinstance(x, KeptInput) else KeptInput(x)
            with torch.no_grad():
                trunk = kept.trunk(key, lambda features: first_layer(features, layers[_FIRST]))
                return run_integer(self._folded, layers, grids, trunk)

        return mask

    def _quantized(self, name: str, bits: int) -> tuple[QuantizedWeight, Tensor]:
        """Quantized weights of a layer and their values, computed once."""
        key = name, bits
        if key not in self._weights:
            quantized = quantize_weight(self._folded.layers[name].weight, self._scales.scale(name, bits), bits)
            self._weights[key] = quantized, quantized.value
        return self._weights[key]

    def _integer_layer(self, name: str, widths: Mapping[str, int]) -> IntegerLayer:
        bits, site = widths[f"{name}.weight"], input_site(self._folded.config, name)
        key = name, bits, widths[site]
        if key not in self._integer_layers:
            read = self._calibration.grids[site][widths[site]]
            self._integer_layers[key] = integer_layer(self._folded.layers[name], self._quantized(name, bits)[0], read)
        return self._integer_layers[key]


def fast_convolve(x: Tensor, layer: FoldedLayer) -> Tensor:
    """`folding.convolve`, with depthwise layers as sums of shifted products."""
    if layer.groups == 1:
        return convolve(x, layer)
    frames = x.shape[-1]
    taps = layer.weight[:, 0, :, None]
    y: Tensor | None = None
    # The tap without a shift covers every frame; it starts the sum, and the bias with it.
    kernel = taps.shape[1]
    shifts = [tap * layer.dilation - layer.padding[0] for tap in range(kernel)]
    order = sorted(range(kernel), key=lambda tap: abs(shifts[tap]))
    for tap in order:
        shift, gain = shifts[tap], taps[:, tap]
        if y is None:
            # In place: broadcasting both bias and gain into a new tensor takes addcmul three times as long.
            y = torch.empty_like(x).copy_(layer.bias[:, None]).addcmul_(x, gain)
        elif abs(shift) < frames:
            # Output frame t reads input frame t + shift; frames outside are zero.
            here = slice(max(0, -shift), frames - max(0, shift))
            there = slice(max(0, shift), frames - max(0, -shift))
            y[..., here].addcmul_(x[..., there], gain)
    if y is None or shifts[order[0]] != 0:
        raise ValueError("a depthwise layer without an unshifted tap")
    return y
