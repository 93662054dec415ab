"""The Brevitas network of a bit allocation: the reference for its numbers, and the source of exported files.

Weights are floating-point master copies. The scale of every weight and activation is a parameter that starts from the
post-training grid. A tensor is quantized once, whatever reads it. Where input and weights of a layer are quantized, its bias is a
32-bit integer times both scales, as integer kernels need it; otherwise it is floating point.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from brevitas.function.ops_ste import round_ste
from brevitas.inject import ExtendedInjector
from brevitas.inject.enum import FloatToIntImplType
from brevitas.nn import QuantConv1d, QuantConvTranspose1d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.proxy import ActQuantProxyFromInjector, BiasQuantProxyFromInjector, WeightQuantProxyFromInjector
from torch import Tensor, nn
from torch.nn import functional

from hwsearch.experiment import QuantizationConfig
from hwsearch.network import operations as ops
from hwsearch.network.graph import Graph
from hwsearch.network.run import compute, run
from hwsearch.network.sites import FUNCTIONS, LAYERS, WEIGHT, find_sites, tied
from hwsearch.separator.allocation import BitAllocation, weight_limit
from hwsearch.separator.calibration import Calibration
from hwsearch.separator.quantizers import (
    BIAS_LIMIT,
    ActivationGrid,
    QuantizedWeight,
    is_float,
    quantize_weight,
    rounds_bias,
)
from hwsearch.separator.rounded_weights import RoundedWeights, output_scale
from hwsearch.separator.tied_scales import followers

_SMALLEST_SCALE = 1e-12
"""Training cannot make a scale smaller."""

GridOutput = tuple[Tensor, Tensor, Tensor, Tensor]
"""Value, scale, zero point and bit width, which Brevitas expects from a quantizer."""


class GridQuantizer(nn.Module):
    """Rounds to an affine grid, with straight-through gradients to input and scale (LSQ, arXiv 1902.08153).

    Args:
        scale: broadcasts over the tensor. A parameter is used as it is; quantizers may share one.
        zero_point: the integer of zero.
        bits: width.
        low: lowest integer.
        high: highest integer.
    """

    def __init__(self, scale: Tensor, zero_point: int, bits: int, low: int, high: int) -> None:
        super().__init__()
        self.scale = scale if isinstance(scale, nn.Parameter) else nn.Parameter(scale.clone())
        self.zero_point: Tensor
        self.bit_width: Tensor
        self.register_buffer("zero_point", torch.tensor(float(zero_point)), persistent=False)
        self.register_buffer("bit_width", torch.tensor(float(bits)), persistent=False)
        self.low, self.high = low - zero_point, high - zero_point

    def positive_scale(self) -> Tensor:
        """Return the scale in use."""
        return self.scale.clamp_min(_SMALLEST_SCALE)

    def forward(self, x: Tensor) -> GridOutput:
        scale = self.positive_scale()
        # As in ONNX, the zero point is added after rounding: ties go to the even quotient.
        quotient = round_ste(x / scale).clamp(self.low, self.high)
        return quotient * scale, scale, self.zero_point, self.bit_width


class BiasQuantizer(nn.Module):
    """Rounds a bias to 32-bit integers times the scale of the products that it is added to.

    It reads that scale from the quantizers of the layer's input and weights, which is faster than passing Brevitas's quantized
    tensors from layer to layer.
    """

    def __init__(self, layer: ops.Operation, input_quantizer: GridQuantizer, weight_quantizer: GridQuantizer) -> None:
        super().__init__()
        self.layer = layer
        self.factors = (input_quantizer, weight_quantizer)  # in a tuple: they belong to other modules
        self.zero_point: Tensor
        self.bit_width: Tensor
        self.register_buffer("zero_point", torch.tensor(0.0), persistent=False)
        self.register_buffer("bit_width", torch.tensor(32.0), persistent=False)

    def forward(self, x: Tensor) -> GridOutput:
        input_scale, weight_scale = (quantizer.positive_scale() for quantizer in self.factors)
        scale = output_scale(self.layer, weight_scale) * input_scale
        value = round_ste(x / scale).clamp(-BIAS_LIMIT, BIAS_LIMIT) * scale
        return value, scale, self.zero_point, self.bit_width


class QuantizedNetwork(nn.Module):
    """A graph at an allocation, with Brevitas layers. It takes the graph's input and returns its output.

    Attributes:
        graph: the floating-point network, whose parameters are those of this module.
        graph_sites: the sites of the graph.
        allocation: width of every site.
        sites: the quantizer of each activation site, with the function before it.
        layers: the Brevitas layers.
        trained: parameters of other operations.
    """

    def __init__(
        self, weights: RoundedWeights, allocation: BitAllocation, calibration: Calibration, *, ties: bool = False
    ) -> None:
        super().__init__()
        graph = weights.graph_at(allocation)
        self.allocation = allocation
        self.graph_sites = tied(graph, find_sites(graph)) if ties else find_sites(graph)
        layers = [operation for operation in graph.operations if isinstance(operation, LAYERS)]
        self._keys = _module_keys((*self.graph_sites.activations, *graph.by_name))
        widths = allocation.by_site
        quantizers: dict[str, GridQuantizer | None] = dict.fromkeys(self.graph_sites.activations)
        holders = followers(self.graph_sites.ties, allocation.widths)
        for site in allocation.quantized(quantizers):
            grid = calibration.grids[site][widths[site]]
            holder, _ = holders.get((site, widths[site]), (site, 0))
            found = quantizers[holder]  # its own, which is still to be made, or one before it
            step = torch.tensor(grid.scale) if found is None else found.scale
            quantizers[site] = GridQuantizer(step, grid.zero_point, grid.bits, 0, grid.levels)
        self.sites = nn.ModuleDict(
            {self._keys[site]: _ActivationSite(self._function(graph, site), quantizers[site]) for site in quantizers}
        )
        self.layers = nn.ModuleDict()
        for layer in layers:
            bits = widths[layer.name + WEIGHT]
            scale = None if is_float(bits) else weights.layer(layer.name, bits).weight.scale
            read = quantizers[self.graph_sites.read_by(layer)]
            self.layers[self._keys[layer.name]] = _layer(layer, graph, bits, scale, read)
        self.trained = nn.ParameterDict()
        self.graph = replace(graph, parameters=self._parameters_of(graph))

    def forward(self, x: Tensor) -> Tensor:
        (network_input,) = self.graph.inputs
        (output,) = run(self.graph, {network_input: x}, self._at_tensor, self._compute)
        return output

    def quantized_weights(self) -> dict[str, QuantizedWeight | None]:
        """Return the current weights by site; None for floating point."""
        found: dict[str, QuantizedWeight | None] = dict.fromkeys(self.graph_sites.weights)
        for site in self.allocation.quantized(found):
            layer = self.layer(site.removesuffix(WEIGHT))
            scale = layer.weight_quant.tensor_quant.positive_scale()
            found[site] = quantize_weight(layer.weight, scale, self.allocation.by_site[site])
        return found

    def activation_grids(self) -> dict[str, ActivationGrid | None]:
        """Return the current activation grids by site; None for floating point."""
        found: dict[str, ActivationGrid | None] = dict.fromkeys(self.graph_sites.activations)
        for site in self.allocation.quantized(found):
            quantizer = self.site(site).quantizer.act_quant.fused_activation_quant_proxy.tensor_quant
            scale, zero_point = float(quantizer.positive_scale().detach()), int(quantizer.zero_point)
            found[site] = ActivationGrid(self.allocation.by_site[site], scale, zero_point)
        return found

    def master_copy(self) -> Graph:
        """Copy the floating-point network with the current parameters."""
        parameters = {name: tensor.detach().clone() for name, tensor in self.graph.parameters.items()}
        return replace(self.graph, parameters=parameters)

    def key(self, name: str) -> str:
        """Return the name of the module of a layer or site, with which nodes of exported files begin."""
        return self._keys[name]

    def layer(self, name: str) -> Any:
        """Return a Brevitas layer."""
        return self.layers[self._keys[name]]

    def site(self, name: str) -> "_ActivationSite":
        """Return the module that makes the tensor of an activation site."""
        return cast(_ActivationSite, self.sites[self._keys[name]])

    def _at_tensor(self, tensor: str, x: Tensor) -> Tensor:
        site = self.graph_sites.of_tensor.get(tensor)
        return x if site is None else cast(Tensor, self.site(site)(x))

    def _compute(self, operation: ops.Operation, graph: Graph, inputs: tuple[Tensor, ...]) -> Tensor:
        if isinstance(operation, LAYERS):
            (x,) = inputs
            if isinstance(operation, ops.Convolution) and operation.padding[0] != operation.padding[1]:
                x = functional.pad(x, operation.padding)
            return cast(Tensor, self.layer(operation.name)(x))
        if isinstance(operation, FUNCTIONS) and operation.name in self.graph_sites.of_tensor:
            return inputs[0]  # the module of the site computes it
        return compute(operation, graph, inputs)

    def _function(self, graph: Graph, site: str) -> nn.Module | None:
        """Make the module of the function before an activation site."""
        operation = graph.by_name.get(self.graph_sites.tensors[site])
        match operation:
            case ops.Elementwise(function=function):
                return _FUNCTIONS[function]()
            case ops.LeakyReLU(slope=slope):
                return nn.LeakyReLU(slope)
            case ops.PReLU():
                trained = graph.parameter(operation, "slope")
                module = nn.PReLU(len(trained))
                module.weight = nn.Parameter(trained.detach().clone())
                return module
            case _:
                return None

    def _parameters_of(self, graph: Graph) -> dict[str, Tensor]:
        """Return the parameters of this module under the graph's names; put those without a module into `trained`."""
        found: dict[str, Tensor] = {}
        for operation in graph.operations:
            for part in operation.parameters:
                name = f"{operation.name}.{part}"
                if isinstance(operation, LAYERS):
                    found[name] = getattr(self.layer(operation.name), part)
                elif isinstance(operation, ops.PReLU) and operation.name in self.graph_sites.of_tensor:
                    site = self.site(self.graph_sites.of_tensor[operation.name])
                    found[name] = cast(nn.PReLU, site.activation).weight
                else:
                    key = f"{self._keys[operation.name]}_{part}"
                    self.trained[key] = nn.Parameter(graph.parameters[name].detach().clone())
                    found[name] = self.trained[key]
        return found


_FUNCTIONS: Mapping[ops.Function, type[nn.Module]] = {
    ops.Function.RELU: nn.ReLU,
    ops.Function.SIGMOID: nn.Sigmoid,
    ops.Function.TANH: nn.Tanh,
}


def build_quantized(
    graph: Graph,
    allocation: BitAllocation,
    calibration: Calibration,
    config: QuantizationConfig,
    weights: RoundedWeights | None = None,
) -> QuantizedNetwork:
    """Quantize a network with one input and one output after training; it is in eval mode.

    Args:
        graph: the network in full precision.
        allocation: width of every site.
        calibration: grids of the activations.
        config: how weights are rounded.
        weights: the rounded weights. None: each weight is rounded to the nearest integer, and biases stay.
    """
    rounded = RoundedWeights(graph, config) if weights is None else weights
    return QuantizedNetwork(rounded, allocation, calibration, ties=bool(config.tied_adds)).eval()


def _module_keys(names: Iterable[str]) -> dict[str, str]:
    """Choose keys of modules by name: without dots, unique, no attribute of modules, and no number, which exporters change."""
    taken: set[str] = set()
    keys: dict[str, str] = {}
    for name in names:
        key = name.replace(".", "_")
        key = f"_{key}" if key.isdigit() else key
        while key in taken or hasattr(nn.ModuleDict, key):
            key += "_"
        taken.add(key)
        keys[name] = key
    return keys


class _ActivationSite(nn.Module):
    """An optional non-linearity, then an optional quantizer, which may contain the ReLU."""

    def __init__(self, activation: nn.Module | None, grid_quantizer: GridQuantizer | None) -> None:
        super().__init__()
        self.activation = activation
        self.quantizer: Any = None
        if grid_quantizer is not None:
            injector = _injector(ActQuantProxyFromInjector, grid_quantizer, signed=False, narrow_range=False)
            if isinstance(activation, nn.ReLU):
                self.activation, self.quantizer = None, QuantReLU(act_quant=injector)
            else:
                self.quantizer = QuantIdentity(act_quant=injector)

    def forward(self, x: Tensor) -> Any:
        y = x if self.activation is None else self.activation(x)
        return y if self.quantizer is None else self.quantizer(y)


def _layer(
    operation: ops.Operation, graph: Graph, bits: int, scale: Tensor | None, input_quantizer: GridQuantizer | None
) -> nn.Module:
    """Make a Brevitas layer with weights and bias of the graph."""
    quantizers: dict[str, Any] = {"weight_quant": None, "bias_quant": None}
    if scale is not None:
        limit = weight_limit(bits)
        quantizer = GridQuantizer(scale, 0, bits, -limit, limit)
        quantizers["weight_quant"] = _injector(WeightQuantProxyFromInjector, quantizer, signed=True, narrow_range=True)
        if input_quantizer is not None and rounds_bias(int(input_quantizer.bit_width)):
            bias_quantizer = BiasQuantizer(operation, input_quantizer, quantizer)
            quantizers["bias_quant"] = _injector(BiasQuantProxyFromInjector, bias_quantizer, signed=True, narrow_range=False)
    weight, bias = graph.parameter(operation, "weight"), graph.parameter(operation, "bias")
    layer = _empty_layer(operation, weight, quantizers)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return cast(nn.Module, layer)


def _empty_layer(operation: ops.Operation, weight: Tensor, quantizers: Mapping[str, Any]) -> Any:
    """Make a Brevitas layer for weights of a shape."""
    match operation:
        case ops.Convolution(stride=stride, dilation=dilation, groups=groups, padding=(before, after)):
            channels, per_group, kernel = weight.shape
            # Brevitas pads both ends equally; other inputs are padded before the layer.
            padding = before if before == after else 0
            shape = (per_group * groups, channels, kernel)
            return QuantConv1d(*shape, stride=stride, padding=padding, dilation=dilation, groups=groups, **quantizers)
        case ops.TransposedConvolution(stride=stride, dilation=dilation, groups=groups, padding=padding, output_padding=longer):
            channels, per_group, kernel = weight.shape
            ends = {"padding": padding, "output_padding": longer}
            shape = (channels, per_group * groups, kernel)
            return QuantConvTranspose1d(*shape, stride=stride, dilation=dilation, groups=groups, **ends, **quantizers)
        case ops.Linear():
            channels, inputs = weight.shape
            return QuantLinear(inputs, channels, bias=True, **quantizers)
        case _:
            raise TypeError(f"'{operation.name}' is no layer")


def _injector(proxy: type, quantizer: nn.Module, *, signed: bool, narrow_range: bool) -> type[ExtendedInjector]:
    """Make the class whose attributes tell a Brevitas proxy to use a quantizer."""
    attributes = {
        "proxy_class": proxy,
        "tensor_quant": quantizer,
        "signed": signed,
        "narrow_range": narrow_range,
        "float_to_int_impl_type": FloatToIntImplType.ROUND,
        "requires_input_scale": False,
    }
    return cast(type[ExtendedInjector], type(ExtendedInjector)("GridInjector", (ExtendedInjector,), attributes))
