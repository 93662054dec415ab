"""The scorer's network: the numbers of the Brevitas network, many times faster.

Weights are quantized once per site and width, and kept. So are the outputs of the first layers for each input. Rounding to a
grid takes four passes in place. A depthwise convolution is a sum of shifted products, on a CPU two to six times faster than the
library's. There are no gradients.
"""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hwsearch.experiment import QuantizationConfig
from hwsearch.network.graph import Graph
from hwsearch.network.operations import Convolution, Operation
from hwsearch.network.run import compute, convolve, run
from hwsearch.network.sites import LAYERS, WEIGHT, Sites, find_sites
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.calibration import Calibration
from hwsearch.separator.integer import MAX_BITS, IntegerLayer, has_kernel, integer_layer, integers_are_fast
from hwsearch.separator.integer_network import IntegerNetwork, fused
from hwsearch.separator.quantizers import (
    ActivationGrid,
    QuantizedWeight,
    bias_integers,
    fake_quantize,
    is_float,
    quantize_weight,
    rounds_bias,
)
from hwsearch.separator.weight_scales import WeightScales, output_scale

Key = tuple[str, bool, int, int]
"""A layer's name, whether it is computed in integers, and the widths of its input and weights."""


@dataclass(frozen=True, eq=False)
class KeptInput:
    """An input that many candidates of one network read, with the outputs of the layers that read it.

    Such a layer may read thousands of features, while others read hundreds of channels. It computes a third of all products, but
    has only as many different outputs as widths. Each takes the memory of one activation.

    Attributes:
        normalised: features [batch, features, frames]; not to be changed any more.
        outputs: of the layers that read them.
    """

    normalised: Tensor
    outputs: dict[Key, Tensor] = field(default_factory=dict)

    def output(self, key: Key, made: Callable[[Tensor], Tensor]) -> Tensor:
        """What `made` makes of the features, computed once for each key."""
        if key not in self.outputs:
            self.outputs[key] = made(self.normalised)
        return self.outputs[key]


MaskFunction = Callable[[Tensor | KeptInput], Tensor]
"""The network's input [batch, channels, frames], new or kept, to its output [batch, channels, frames]."""


class FastNetwork:
    """One base at any allocation.

    Args:
        graph: the network in full precision, of one input and one output.
        calibration: grids of the activations.
        config: how weight scales are chosen.
        scales: those that are known already.
        integers: whether layers whose input and weights have at most 8 bits are computed in integers, where the processor is
            fast at it. A TCN of such layers is scored three times faster. They round differently from float kernels: see
            `hwsearch.separator.integer`.
    """

    def __init__(
        self,
        graph: Graph,
        calibration: Calibration,
        config: QuantizationConfig,
        *,
        scales: WeightScales | None = None,
        integers: bool = False,
    ) -> None:
        self._graph = graph
        self._sites = find_sites(graph)
        self._layers = [operation for operation in graph.operations if isinstance(operation, LAYERS)]
        self._calibration = calibration
        self._scales = WeightScales(graph, config) if scales is None else scales
        self._with_kernel = [layer for layer in self._layers if integers and has_kernel(graph, layer)]
        self._functions = fused(graph)
        self._weights: dict[tuple[str, int], tuple[QuantizedWeight, Tensor]] = {}
        self._packed: dict[tuple[str, int, int], IntegerLayer] = {}

    def mask_function(self, allocation: BitAllocation) -> MaskFunction:
        """The network at an allocation."""
        widths = allocation.by_site
        grids = {site: self._calibration.grid(site, widths[site]) for site in self._sites.activations}
        integers = self._integer_layers(widths) if integers_are_fast() else {}
        weights = {}
        for layer in self._layers:
            if layer.name not in integers and not is_float(bits := widths[layer.name + WEIGHT]):
                quantized, value = self._quantized(layer, bits)
                weights[layer.name] = value, quantized.scale
        graph = with_weights(self._graph, self._sites, weights, grids) if weights else self._graph
        if not integers:
            return rounded_function(graph, self._sites, grids, widths)

        def how(operation: Operation, inputs: tuple[Tensor, ...]) -> Tensor:
            return fast_compute(operation, graph, inputs)

        network = IntegerNetwork(self._graph, self._sites, self._functions, integers, grids, how)
        return _kept_outputs(network, _input_keys(self._graph, self._sites, widths, integers))

    def _quantized(self, layer: Operation, bits: int) -> tuple[QuantizedWeight, Tensor]:
        """Quantized weights of a layer and their values, computed once."""
        key = layer.name, bits
        if key not in self._weights:
            quantized = quantize_weight(self._graph.parameter(layer, "weight"), self._scales.scale(layer.name, bits), bits)
            self._weights[key] = quantized, quantized.value
        return self._weights[key]

    def _integer_layers(self, widths: Mapping[str, int]) -> dict[str, IntegerLayer]:
        """The layers that are computed in integers, packed once for each of their widths."""
        found = {}
        for layer in self._with_kernel:
            site, bits = self._sites.read_by(layer), widths[layer.name + WEIGHT]
            if max(bits, widths[site]) <= MAX_BITS:
                key = layer.name, bits, widths[site]
                if key not in self._packed:
                    read, bias = self._calibration.grids[site][widths[site]], self._graph.parameter(layer, "bias")
                    self._packed[key] = integer_layer(layer, self._quantized(layer, bits)[0], bias, read)
                found[layer.name] = self._packed[key]
        return found


def _kept_outputs(network: IntegerNetwork, keys: Mapping[str, Key]) -> MaskFunction:
    """A network in integers that takes inputs new or kept."""

    def mask(x: Tensor | KeptInput) -> Tensor:
        kept = x if isinstance(x, KeptInput) else KeptInput(x)
        with torch.no_grad():
            return network.run(
                kept.normalised, lambda name: kept.output(keys[name], lambda features: network.on_input(name, features))
            )

    return mask


def with_weights(
    graph: Graph, sites: Sites, weights: Mapping[str, tuple[Tensor, Tensor]], grids: Mapping[str, ActivationGrid | None]
) -> Graph:
    """A graph with quantized weights, and biases rounded to the grid of the products where there is one.

    Args:
        graph: the network.
        sites: its sites.
        weights: for each quantized layer, values and scale of its weights.
        grids: of the activation sites; none where a site stays in floating point.
    """
    parameters = dict(graph.parameters)
    for name, (value, scale) in weights.items():
        layer = graph.by_name[name]
        parameters[f"{name}.weight"] = value
        grid = grids[sites.read_by(layer)]
        if grid is not None and rounds_bias(grid.bits):
            product_scale = output_scale(layer, scale) * grid.scale
            parameters[f"{name}.bias"] = bias_integers(parameters[f"{name}.bias"], product_scale) * product_scale
    return replace(graph, parameters=parameters)


def rounded_function(
    graph: Graph, sites: Sites, grids: Mapping[str, ActivationGrid | None], widths: Mapping[str, int]
) -> MaskFunction:
    """A graph whose weights are quantized, with its activations rounded.

    Args:
        graph: of one input and one output.
        sites: its sites.
        grids: of the activation sites; none where a site stays in floating point.
        widths: of all sites; inputs that are kept must be kept for graphs that differ in nothing else.
    """
    (network_input,) = graph.inputs
    rounded = {tensor: grid for site, tensor in sites.tensors.items() if (grid := grids[site]) is not None}
    keys = _input_keys(graph, sites, widths)
    if all(reader.name in keys for reader in graph.readers[network_input]) and network_input not in graph.outputs:
        input_grid = rounded.pop(network_input, None)  # kept outputs stand for it: it is rounded where one is made
    else:
        input_grid = rounded.get(network_input)

    def at_tensor(name: str, x: Tensor) -> Tensor:
        grid = rounded.get(name)
        return x if grid is None else fake_quantize(x, grid)

    def mask(x: Tensor | KeptInput) -> Tensor:
        kept = x if isinstance(x, KeptInput) else KeptInput(x)

        def how(operation: Operation, graph: Graph, inputs: tuple[Tensor, ...]) -> Tensor:
            if operation.name not in keys:
                return fast_compute(operation, graph, inputs)

            def made(features: Tensor) -> Tensor:
                values = features if input_grid is None else fake_quantize(features, input_grid)
                return fast_compute(operation, graph, (values,))

            return kept.output(keys[operation.name], made)

        with torch.no_grad():
            return run(graph, {network_input: kept.normalised}, at_tensor, how)[0]

    return mask


def _input_keys(graph: Graph, sites: Sites, widths: Mapping[str, int], integers: Container[str] = ()) -> dict[str, Key]:
    """Keys of the layers that read the graph's input, by name; `integers` are those that are computed in such."""
    return {
        layer.name: (layer.name, layer.name in integers, widths[sites.read_by(layer)], widths[layer.name + WEIGHT])
        for layer in graph.operations
        if isinstance(layer, LAYERS) and layer.inputs[0] in graph.inputs
    }


def fast_compute(operation: Operation, graph: Graph, inputs: tuple[Tensor, ...]) -> Tensor:
    """`run.compute`, with depthwise layers as sums of shifted products."""
    if isinstance(operation, Convolution):
        return fast_convolve(operation, inputs[0], graph.parameter(operation, "weight"), graph.parameter(operation, "bias"))
    return compute(operation, graph, inputs)


def fast_convolve(operation: Convolution, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`run.convolve`, with depthwise layers that keep the frames as sums of shifted products."""
    shifts = depthwise_shifts(operation, weight)
    if shifts is None:
        return convolve(operation, x, weight, bias)
    frames = x.shape[-1]
    taps = weight[:, 0, :, None]
    # The tap without a shift covers every frame; it starts the sum, and the bias with it.
    first = shifts.index(0)
    # In place: broadcasting both bias and gain into a new tensor takes addcmul three times as long.
    y = torch.empty_like(x).copy_(bias[:, None]).addcmul_(x, taps[:, first])
    for tap in sorted(range(len(shifts)), key=lambda tap: abs(shifts[tap])):
        shift = shifts[tap]
        if shift != 0 and abs(shift) < frames:
            # Frames outside are zero.
            here = slice(max(0, -shift), frames - max(0, shift))
            there = slice(max(0, shift), frames - max(0, -shift))
            y[..., here].addcmul_(x[..., there], taps[:, tap])
    return y


def depthwise_shifts(operation: Convolution, weight: Tensor) -> tuple[int, ...] | None:
    """The shift of each tap of a depthwise layer that keeps the frames: output frame t reads input frame t + shift.

    None for another layer, and for one without an unshifted tap.
    """
    kernel = weight.shape[2]
    shifts = tuple(tap * operation.dilation - operation.padding[0] for tap in range(kernel))
    keeps_frames = operation.stride == 1 and sum(operation.padding) == (kernel - 1) * operation.dilation
    depthwise = operation.groups > 1 and weight.shape[:2] == (operation.groups, 1)
    return shifts if depthwise and keeps_frames and 0 in shifts else None
