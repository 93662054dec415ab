"""The Brevitas network: what a bit allocation means, what is trained and what is exported.

Every weight and activation keeps its scale as a parameter that starts from the post-training grid, so that
training may move it; the weights stay floating-point master copies. A tensor is quantized once, whatever
reads it. A bias is a 32-bit integer times input scale times weight scale where both are quantized, as
integer kernels take it, and floating point otherwise.
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
from hwsearch.network.graph import Graph
from hwsearch.network.operations import (
    Convolution,
    Elementwise,
    Function,
    LeakyReLU,
    Linear,
    Operation,
    PReLU,
    TransposedConvolution,
)
from hwsearch.network.run import compute, run
from hwsearch.network.sites import FUNCTIONS, LAYERS, WEIGHT, find_sites
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.calibration import Calibration
from hwsearch.separator.quantizers import (
    BIAS_LIMIT,
    ActivationGrid,
    QuantizedWeight,
    is_float,
    quantize_weight,
    rounds_bias,
    weight_limit,
)
from hwsearch.separator.weight_scales import WeightScales, output_scale

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
        layer: whose bias it is.
        input_quantizer: of the layer's input.
        weight_quantizer: of the layer's weights.
    """

    def __init__(self, layer: Operation, input_quantizer: GridQuantizer, weight_quantizer: GridQuantizer) -> None:
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
        return (
            round_ste(x / scale).clamp(-BIAS_LIMIT, BIAS_LIMIT) * scale,
            scale,
            self.zero_point,
            self.bit_width,
        )


class QuantizedNetwork(nn.Module):
    """A graph at given bit-widths, its layers Brevitas's.

    Shape:
        the graph's input -> its output

    Attributes:
        graph: the network in floating point; its parameters are those that training moves.
        graph_sites: the graph's sites.
        allocation: width of every site.
        sites: for each activation site its quantizer, and the function that stands before it.
        layers: the Brevitas layers.
        trained: what other operations have been trained to.
    """

    def __init__(self, graph: Graph, allocation: BitAllocation, calibration: Calibration, config: QuantizationConfig) -> None:
        super().__init__()
        self.allocation = allocation
        self.graph_sites = find_sites(graph)
        layers = [operation for operation in graph.operations if isinstance(operation, LAYERS)]
        self._keys = _module_keys((*self.graph_sites.activations, *graph.by_name))
        self._site_of = {tensor: site for site, tensor in self.graph_sites.tensors.items()}
        widths, scales = allocation.by_site, WeightScales(graph, config)
        quantizers = {site: _grid_quantizer(calibration.grid(site, widths[site])) for site in self.graph_sites.activations}
        self.sites = nn.ModuleDict(
            {self._keys[site]: _ActivationSite(self._function(graph, site), quantizers[site]) for site in quantizers}
        )
        self.layers = nn.ModuleDict()
        for layer in layers:
            bits = widths[layer.name + WEIGHT]
            scale = None if is_float(bits) else scales.scale(layer.name, bits)
            read = quantizers[self.graph_sites.read_by(layer)]
            self.layers[self._keys[layer.name]] = _layer(layer, graph, bits, scale, read)
        self.trained = nn.ParameterDict()
        self.graph = replace(graph, parameters=self._parameters_of(graph))

    def forward(self, x: Tensor) -> Tensor:
        (network_input,) = self.graph.inputs
        (output,) = run(self.graph, {network_input: x}, self._at_tensor, self._compute)
        return output

    def quantized_weights(self) -> dict[str, QuantizedWeight | None]:
        """Weights by site as they are now; none where they stay in floating point."""
        found: dict[str, QuantizedWeight | None] = {}
        for site in self.graph_sites.weights:
            bits = self.allocation.by_site[site]
            layer = self.layer(site.removesuffix(WEIGHT))
            quantizer = layer.weight_quant.tensor_quant
            found[site] = None if is_float(bits) else quantize_weight(layer.weight, quantizer.positive_scale(), bits)
        return found

    def activation_grids(self) -> dict[str, ActivationGrid | None]:
        """Activation grids by site as they are now; none where the site stays in floating point."""
        found: dict[str, ActivationGrid | None] = {}
        for site in self.graph_sites.activations:
            bits = self.allocation.by_site[site]
            if is_float(bits):
                found[site] = None
                continue
            quantizer = self.site(site).quantizer.act_quant.fused_activation_quant_proxy.tensor_quant
            found[site] = ActivationGrid(bits, float(quantizer.positive_scale().detach()), int(quantizer.zero_point))
        return found

    def master_copy(self) -> Graph:
        """The floating-point network, as training has left it."""
        parameters = {name: tensor.detach().clone() for name, tensor in self.graph.parameters.items()}
        return replace(self.graph, parameters=parameters)

    def key(self, name: str) -> str:
        """The name that the module of a layer or site has; nodes of exported files begin with it."""
        return self._keys[name]

    def layer(self, name: str) -> Any:
        """The Brevitas layer of that name."""
        return self.layers[self._keys[name]]

    def site(self, name: str) -> "_ActivationSite":
        """The module of an activation site, whose output is the site's tensor."""
        return cast(_ActivationSite, self.sites[self._keys[name]])

    def _at_tensor(self, tensor: str, x: Tensor) -> Tensor:
        site = self._site_of.get(tensor)
        return x if site is None else cast(Tensor, self.site(site)(x))

    def _compute(self, operation: Operation, graph: Graph, inputs: tuple[Tensor, ...]) -> Tensor:
        if isinstance(operation, LAYERS):
            (x,) = inputs
            if isinstance(operation, Convolution) and operation.padding[0] != operation.padding[1]:
                x = functional.pad(x, operation.padding)
            return cast(Tensor, self.layer(operation.name)(x))
        if isinstance(operation, FUNCTIONS) and operation.name in self._site_of:
            return inputs[0]  # the site's module computes it
        return compute(operation, graph, inputs)

    def _function(self, graph: Graph, site: str) -> nn.Module | None:
        """The function before an activation site, as a module."""
        operation = graph.by_name.get(self.graph_sites.tensors[site])
        match operation:
            case Elementwise(function=function):
                return _FUNCTIONS[function]()
            case LeakyReLU(slope=slope):
                return nn.LeakyReLU(slope)
            case PReLU():
                trained = graph.parameter(operation, "slope")
                module = nn.PReLU(len(trained))
                module.weight = nn.Parameter(trained.detach().clone())
                return module
            case _:
                return None

    def _parameters_of(self, graph: Graph) -> dict[str, Tensor]:
        """The graph's parameters as this module has them; those that no other module has are kept here."""
        found: dict[str, Tensor] = {}
        for operation in graph.operations:
            for part in operation.parameters:
                name = f"{operation.name}.{part}"
                if isinstance(operation, LAYERS):
                    found[name] = getattr(self.layer(operation.name), part)
                elif isinstance(operation, PReLU) and operation.name in self._site_of:
                    found[name] = cast(nn.PReLU, self.site(self._site_of[operation.name]).activation).weight
                else:
                    key = f"{self._keys[operation.name]}_{part}"
                    self.trained[key] = nn.Parameter(graph.parameters[name].detach().clone())
                    found[name] = self.trained[key]
        return found


_FUNCTIONS: Mapping[Function, type[nn.Module]] = {
    Function.RELU: nn.ReLU,
    Function.SIGMOID: nn.Sigmoid,
    Function.TANH: nn.Tanh,
}


def build_quantized(
    graph: Graph, allocation: BitAllocation, calibration: Calibration, config: QuantizationConfig
) -> QuantizedNetwork:
    """The network that an allocation means, post-training, in eval mode.

    Args:
        graph: the network in full precision, of one input and one output.
        allocation: width of every site.
        calibration: grids of the activations.
        config: how weight scales are chosen.
    """
    return QuantizedNetwork(graph, allocation, calibration, config).eval()


def _module_key(name: str) -> str:
    """A layer or site as the key of a module, which can hold no dot; exporters write one that is a number differently."""
    key = name.replace(".", "_")
    return f"_{key}" if key.isdigit() else key


def _module_keys(names: Iterable[str]) -> dict[str, str]:
    """Keys of modules by name, made longer where another name has one already, or modules an attribute of that name."""
    taken: set[str] = set()
    keys: dict[str, str] = {}
    for name in names:
        key = _module_key(name)
        while key in taken or hasattr(nn.ModuleDict, key):
            key += "_"
        taken.add(key)
        keys[name] = key
    return keys


class _ActivationSite(nn.Module):
    """Non-linearity, then quantizer; either may be absent, and a quantizer may hold its ReLU."""

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


def _grid_quantizer(grid: ActivationGrid | None) -> GridQuantizer | None:
    if grid is None:
        return None
    return GridQuantizer(torch.tensor(grid.scale), grid.zero_point, grid.bits, 0, grid.levels)


def _layer(
    operation: Operation, graph: Graph, bits: int, scale: Tensor | None, input_quantizer: GridQuantizer | None
) -> nn.Module:
    """A layer of Brevitas's with the weights of a graph's."""
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


def _empty_layer(operation: Operation, weight: Tensor, quantizers: Mapping[str, Any]) -> Any:
    """A layer of Brevitas's for weights of a shape."""
    match operation:
        case Convolution(stride=stride, dilation=dilation, groups=groups, padding=(before, after)):
            channels, per_group, kernel = weight.shape
            # Brevitas pads both ends alike; a layer whose ends differ is padded outside.
            padding = before if before == after else 0
            shape = (per_group * groups, channels, kernel)
            return QuantConv1d(*shape, stride=stride, padding=padding, dilation=dilation, groups=groups, **quantizers)
        case TransposedConvolution(stride=stride, dilation=dilation, groups=groups, padding=padding, output_padding=longer):
            channels, per_group, kernel = weight.shape
            ends = {"padding": padding, "output_padding": longer}
            shape = (channels, per_group * groups, kernel)
            return QuantConvTranspose1d(*shape, stride=stride, dilation=dilation, groups=groups, **ends, **quantizers)
        case Linear():
            channels, inputs = weight.shape
            return QuantLinear(inputs, channels, bias=True, **quantizers)
        case _:
            raise TypeError(f"'{operation.name}' is no layer")


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
