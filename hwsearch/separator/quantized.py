"""The Brevitas network: what a bit allocation means, what is trained and what is exported.

Every weight and activation keeps its scale as a parameter that starts from the post-training grid, so that
training may move it; the weights stay floating-point master copies. The trunk of the residual network is
quantized once per block and read by both `expand` and the add. A bias is a 32-bit integer times input scale
times weight scale where both are quantized, as integer kernels take it, and floating point otherwise.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from brevitas.function.ops_ste import round_ste
from brevitas.inject import ExtendedInjector
from brevitas.inject.enum import FloatToIntImplType
from brevitas.nn import QuantConv1d, QuantIdentity, QuantReLU
from brevitas.proxy import ActQuantProxyFromInjector, BiasQuantProxyFromInjector, WeightQuantProxyFromInjector
from torch import Tensor, nn
from torch.nn import functional

from hwsearch.experiment import QuantizationConfig, SeparatorConfig
from hwsearch.separator.allocation import BitAllocation, activation_sites
from hwsearch.separator.calibration import Calibration
from hwsearch.separator.folding import FoldedLayer, FoldedNetwork, has_activation, input_site
from hwsearch.separator.quantizers import (
    BIAS_LIMIT,
    ActivationGrid,
    QuantizedWeight,
    is_float,
    quantize_weight,
    weight_limit,
    weight_scale,
)

_SMALLEST_SCALE = 1e-12
"""Training may not push a scale to zero or below."""

GridOutput = tuple[Tensor, Tensor, Tensor, Tensor]
"""What a Brevitas proxy wants of a quantizer: value, scale, zero point, bit width."""


class GridQuantizer(nn.Module):
    """Rounds to an affine grid, with straight-through gradients to input and scale (LSQ, arXiv 1902.08153).

    Args:
        scale: [] or one that broadcasts over the tensor.
        zero_point: integer that stands for zero.
        bits: width.
        low: lowest integer.
        high: highest integer.
    """

    def __init__(self, scale: Tensor, zero_point: int, bits: int, low: int, high: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale.clone())
        self.zero_point: Tensor
        self.bit_width: Tensor
        self.register_buffer("zero_point", torch.tensor(float(zero_point)), persistent=False)
        self.register_buffer("bit_width", torch.tensor(float(bits)), persistent=False)
        self.low, self.high = low - zero_point, high - zero_point

    def positive_scale(self) -> Tensor:
        """The scale in use."""
        return self.scale.clamp_min(_SMALLEST_SCALE)

    def forward(self, x: Tensor) -> GridOutput:
        scale = self.positive_scale()
        # Rounding before the zero point is added, as ONNX does: half-way cases go to the even quotient.
        quotient = round_ste(x / scale).clamp(self.low, self.high)
        return quotient * scale, scale, self.zero_point, self.bit_width


class BiasQuantizer(nn.Module):
    """Rounds a bias to 32-bit integers times the scale of the products it is added to.

    It takes that scale from the quantizers themselves; Brevitas's own way, quantized tensors handed from layer to
    layer, computes much that nothing reads.

    Args:
        input_quantizer: of the layer's input.
        weight_quantizer: of the layer's weights.
    """

    def __init__(self, input_quantizer: GridQuantizer, weight_quantizer: GridQuantizer) -> None:
        super().__init__()
        self.factors = (input_quantizer, weight_quantizer)  # in a tuple: they belong to other modules
        self.zero_point: Tensor
        self.bit_width: Tensor
        self.register_buffer("zero_point", torch.tensor(0.0), persistent=False)
        self.register_buffer("bit_width", torch.tensor(32.0), persistent=False)

    def forward(self, x: Tensor) -> GridOutput:
        input_scale, weight_scale = (quantizer.positive_scale() for quantizer in self.factors)
        scale = weight_scale.flatten() * input_scale
        return (
            round_ste(x / scale).clamp(-BIAS_LIMIT, BIAS_LIMIT) * scale,
            scale,
            self.zero_point,
            self.bit_width,
        )


class QuantizedMaskNetwork(nn.Module):
    """A mask network at given bit-widths, in Brevitas layers.

    Shape:
        normalised features [batch, features, frames] -> mask [batch, 2 * bins, frames]
    """

    def __init__(
        self,
        folded: FoldedNetwork,
        allocation: BitAllocation,
        calibration: Calibration,
        config: QuantizationConfig,
    ) -> None:
        super().__init__()
        self.config: SeparatorConfig = folded.config
        self.allocation = allocation
        self.pads: Mapping[str, tuple[int, int]] = {name: layer.padding for name, layer in folded.layers.items()}
        widths = allocation.by_site
        quantizers = {site: _grid_quantizer(calibration.grid(site, widths[site])) for site in activation_sites(folded.config)}
        self.sites = nn.ModuleDict(
            {module_key(site): _activation_site(site, quantizer, folded) for site, quantizer in quantizers.items()}
        )
        self.layers = nn.ModuleDict(
            {
                module_key(name): _convolution(
                    layer, widths[f"{name}.weight"], config, quantizers[input_site(folded.config, name)]
                )
                for name, layer in folded.layers.items()
            }
        )

    def forward(self, normalised: Tensor) -> Tensor:
        trunk = self._site("input_proj.output", self._layer("input_proj", self._site("features", normalised)))
        for index in range(self.config.R * self.config.X):
            name = f"blocks.{index}"
            y = self._site(f"{name}.expand.output", self._layer(f"{name}.expand", trunk))
            y = self._site(f"{name}.depthwise.output", self._layer(f"{name}.depthwise", y))
            y = self._site(f"{name}.project.output", self._layer(f"{name}.project", y))
            trunk = self._site(f"{name}.add.output", trunk + y)
        return self._site("mask_head.output", self._layer("mask_head", trunk))

    def quantized_weights(self) -> dict[str, QuantizedWeight | None]:
        """Weights by site as they are now; none where they stay in floating point."""
        found: dict[str, QuantizedWeight | None] = {}
        for name in self.pads:
            site = f"{name}.weight"
            bits = self.allocation.by_site[site]
            layer = self.convolution(name)
            quantizer = layer.weight_quant.tensor_quant
            found[site] = None if is_float(bits) else quantize_weight(layer.weight, quantizer.positive_scale(), bits)
        return found

    def activation_grids(self) -> dict[str, ActivationGrid | None]:
        """Activation grids by site as they are now; none where the site stays in floating point."""
        found: dict[str, ActivationGrid | None] = {}
        for site in activation_sites(self.config):
            bits = self.allocation.by_site[site]
            if is_float(bits):
                found[site] = None
                continue
            module = cast(_ActivationSite, self.sites[module_key(site)])
            quantizer = module.quantizer.act_quant.fused_activation_quant_proxy.tensor_quant
            found[site] = ActivationGrid(bits, float(quantizer.positive_scale().detach()), int(quantizer.zero_point))
        return found

    def master_copy(self) -> FoldedNetwork:
        """The floating-point weights as a folded network, as training has left them."""
        layers: dict[str, FoldedLayer] = {}
        for name, pads in self.pads.items():
            layer = self.convolution(name)
            weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
            layers[name] = FoldedLayer(weight, bias, layer.dilation[0], layer.groups, pads)
        slopes: dict[str, float] = {}
        for site in activation_sites(self.config):
            activation = cast(_ActivationSite, self.sites[module_key(site)]).activation
            if isinstance(activation, nn.PReLU):
                slopes[site] = float(activation.weight.detach())
        return FoldedNetwork(self.config, layers, slopes)

    def convolution(self, name: str) -> Any:
        """The Brevitas convolution of a layer."""
        return self.layers[module_key(name)]

    def _site(self, site: str, x: Tensor) -> Tensor:
        return cast(Tensor, self.sites[module_key(site)](x))

    def _layer(self, name: str, x: Tensor) -> Tensor:
        layer, pads = self.convolution(name), self.pads[name]
        padded = x if layer.padding != (0,) or not any(pads) else functional.pad(x, pads)
        return cast(Tensor, layer(padded))


def build_quantized(
    folded: FoldedNetwork, allocation: BitAllocation, calibration: Calibration, config: QuantizationConfig
) -> QuantizedMaskNetwork:
    """The network that an allocation means, post-training, in eval mode.

    Args:
        folded: full-precision weights with the norms folded in.
        allocation: width of every site.
        calibration: grids of the activations.
        config: how weight scales are chosen.
    """
    return QuantizedMaskNetwork(folded, allocation, calibration, config).eval()


def module_key(name: str) -> str:
    """A layer or site as the key of a module (which can hold no dot)."""
    return name.replace(".", "_")


class _ActivationSite(nn.Module):
    """Non-linearity, then quantizer; either may be absent, and a quantizer may hold its ReLU."""

    def __init__(self, activation: nn.Module | None, quantizer: Any) -> None:
        super().__init__()
        self.activation = activation
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Any:
        y = x if self.activation is None else self.activation(x)
        return y if self.quantizer is None else self.quantizer(y)


def _grid_quantizer(grid: ActivationGrid | None) -> GridQuantizer | None:
    if grid is None:
        return None
    return GridQuantizer(torch.tensor(grid.scale), grid.zero_point, grid.bits, 0, grid.levels)


def _activation_site(site: str, quantizer: GridQuantizer | None, folded: FoldedNetwork) -> _ActivationSite:
    slope = folded.slopes.get(site)
    activation: nn.Module | None = None
    if slope is not None:
        activation = nn.PReLU(init=slope)
    elif has_activation(site):
        activation = nn.ReLU()
    if quantizer is None:
        return _ActivationSite(activation, None)
    injector = _injector(ActQuantProxyFromInjector, quantizer, signed=False, narrow_range=False)
    if isinstance(activation, nn.ReLU):
        return _ActivationSite(None, QuantReLU(act_quant=injector))
    return _ActivationSite(activation, QuantIdentity(act_quant=injector))


def _convolution(layer: FoldedLayer, bits: int, config: QuantizationConfig, input_quantizer: GridQuantizer | None) -> QuantConv1d:
    weight_quant = bias_quant = None
    if not is_float(bits):
        limit = weight_limit(bits)
        quantizer = GridQuantizer(weight_scale(layer.weight, bits, config), 0, bits, -limit, limit)
        weight_quant = _injector(WeightQuantProxyFromInjector, quantizer, signed=True, narrow_range=True)
        if input_quantizer is not None:
            bias_quantizer = BiasQuantizer(input_quantizer, quantizer)
            bias_quant = _injector(BiasQuantProxyFromInjector, bias_quantizer, signed=True, narrow_range=False)
    channels, per_group, kernel = layer.weight.shape
    convolution = QuantConv1d(
        per_group * layer.groups,
        channels,
        kernel,
        # Brevitas pads both ends alike; a causal layer is padded outside.
        padding=layer.padding[0] if layer.padding[0] == layer.padding[1] else 0,
        dilation=layer.dilation,
        groups=layer.groups,
        weight_quant=weight_quant,
        bias_quant=bias_quant,
    )
    with torch.no_grad():
        convolution.weight.copy_(layer.weight)
        convolution.bias.copy_(layer.bias)
    return convolution


def _injector(proxy: type, quantizer: nn.Module, *, signed: bool, narrow_range: bool) -> type[ExtendedInjector]:
    """Brevitas's way of being given a quantizer: a class whose attributes its proxy reads."""
    attributes = {
        "proxy_class": proxy,
        "tensor_quant": quantizer,
        "signed": signed,
        "narrow_range": narrow_range,
        "float_to_int_impl_type": FloatToIntImplType.ROUND,
        "requires_input_scale": False,
    }
    return cast(type[ExtendedInjector], type(ExtendedInjector)("GridInjector", (ExtendedInjector,), attributes))
