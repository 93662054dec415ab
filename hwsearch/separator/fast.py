"""The network for scoring: the numbers of the Brevitas network, many times faster, without gradients.

Weights are quantized once per site and width. Layers that read the input are computed once per input and widths. A depthwise
convolution is a sum of shifted products, which is two to six times faster on a CPU than torch's.
"""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from hwsearch.experiment import QuantizationConfig
from hwsearch.network.graph import Graph
from hwsearch.network.operations import Convolution, Operation
from hwsearch.network.run import compute, convolve, run
from hwsearch.network.sites import LAYERS, WEIGHT, Sites, find_sites
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.calibration import Calibration
from hwsearch.separator.integer import IntegerLayer, has_kernel, integer_layer, integers_are_fast
from hwsearch.separator.integer_network import IntegerNetwork, fused
from hwsearch.separator.quantizers import (
    MAX_BITS,
    ActivationGrid,
    bias_integers,
    fake_quantize,
    is_float,
    rounds_bias,
)
from hwsearch.separator.rounded_weights import RoundedLayer, RoundedWeights, output_scale

Key = tuple[str, bool, int, int]
"""The name of a layer, whether it is computed in integers, and the widths of its input and weights."""


@dataclass(frozen=True, eq=False)
class KeptInput:
    """An input that many candidates of a network read, with the outputs of the layers that read it.

    Such a layer may read thousands of features and compute a third of all products, but has only one output for each pair of
    widths.

    Attributes:
        normalised: features [batch, features, frames], which must not be changed.
        outputs: of the layers that read them.
    """

    normalised: Tensor
    outputs: dict[Key, Tensor] = field(default_factory=dict)

    def output(self, key: Key, made: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the result of `made` for the features, computed once for each key."""
        if key not in self.outputs:
            self.outputs[key] = made(self.normalised)
        return self.outputs[key]


MaskFunction = Callable[[Tensor | KeptInput], Tensor]
"""Computes the output [batch, channels, frames] of the network from its input [batch, channels, frames], new or kept."""


class FastNetwork:
    """A base at any allocation.

    Args:
        graph: the network in full precision, with one input and one output.
        calibration: grids of the activations.
        config: how weights are rounded.
        weights: the rounded weights. None: each weight is rounded to the nearest integer, and biases stay.
        integers: whether layers whose input and weights have at most 8 bits are computed in integers if the processor is fast at
            it. A TCN of such layers is scored three times faster. Rounding differs slightly: see `hwsearch.separator.integer`.
    """

    def __init__(
        self,
        graph: Graph,
        calibration: Calibration,
        config: QuantizationConfig,
        *,
        weights: RoundedWeights | None = None,
        integers: bool = False,
    ) -> None:
        self._graph = graph
        self._sites = find_sites(graph)
        self._layers = [operation for operation in graph.operations if isinstance(operation, LAYERS)]
        self._calibration = calibration
        self._rounded = RoundedWeights(graph, config) if weights is None else weights
        self._with_kernel = [layer for layer in self._layers if integers and has_kernel(graph, layer)]
        self._functions = fused(graph)
        self._packed: dict[tuple[str, int, int], IntegerLayer] = {}

    def mask_function(self, allocation: BitAllocation) -> MaskFunction:
        """Make the function of the network at an allocation."""
        widths = allocation.by_site
        grids = {site: self._calibration.grid(site, widths[site]) for site in self._sites.activations}
        integers = self._integer_layers(widths) if integers_are_fast() else {}
        weights = {
            layer.name: self._rounded.layer(layer.name, bits)
            for layer in self._layers
            if layer.name not in integers and not is_float(bits := widths[layer.name + WEIGHT])
        }
        graph = with_weights(self._graph, self._sites, weights, grids) if weights else self._graph
        if not integers:
            return rounded_function(graph, self._sites, grids, widths)
        network = IntegerNetwork(graph, self._sites, self._functions, integers, grids, fast_compute)
        keys = _input_keys(self._graph, self._sites, widths, integers)

        def run_kept(kept: KeptInput) -> Tensor:
            return network.run(kept.normalised, lambda name: kept.output(keys[name], partial(network.on_input, name)))

        return _without_gradients(run_kept)

    def _integer_layers(self, widths: Mapping[str, int]) -> dict[str, IntegerLayer]:
        """Return the layers that are computed in integers, packed once per widths."""
        found = {}
        for layer in self._with_kernel:
            site, bits = self._sites.read_by(layer), widths[layer.name + WEIGHT]
            if max(bits, widths[site]) <= MAX_BITS:
                key = layer.name, bits, widths[site]
                if key not in self._packed:
                    read, rounded = self._calibration.grids[site][widths[site]], self._rounded.layer(layer.name, bits)
                    self._packed[key] = integer_layer(layer, rounded.weight, rounded.bias, read)
                found[layer.name] = self._packed[key]
        return found


def _without_gradients(run_kept: Callable[[KeptInput], Tensor]) -> MaskFunction:
    """Make a function of kept inputs take new ones as well."""

    def mask(x: Tensor | KeptInput) -> Tensor:
        with torch.no_grad():
            return run_kept(x if isinstance(x, KeptInput) else KeptInput(x))

    return mask


def with_weights(
    graph: Graph, sites: Sites, weights: Mapping[str, RoundedLayer], grids: Mapping[str, ActivationGrid | None]
) -> Graph:
    """Replace layers of a graph by quantized ones, by name, and round their biases where the input has a grid."""
    parameters = dict(graph.parameters)
    for name, rounded in weights.items():
        layer = graph.by_name[name]
        parameters[f"{name}.weight"], parameters[f"{name}.bias"] = rounded.weight.value, rounded.bias
        grid = grids[sites.read_by(layer)]
        if grid is not None and rounds_bias(grid.bits):
            product_scale = output_scale(layer, rounded.weight.scale) * grid.scale
            parameters[f"{name}.bias"] = bias_integers(rounded.bias, product_scale) * product_scale
    return replace(graph, parameters=parameters)


def rounded_function(
    graph: Graph, sites: Sites, grids: Mapping[str, ActivationGrid | None], widths: Mapping[str, int]
) -> MaskFunction:
    """Make the function of a graph with quantized weights, with its activations rounded to the grids of their sites.

    Graphs that share a kept input may only differ in `widths`.
    """
    (network_input,) = graph.inputs
    rounded = {tensor: grid for site, tensor in sites.tensors.items() if (grid := grids[site]) is not None}
    keys = _input_keys(graph, sites, widths)
    input_grid = rounded.get(network_input)
    if all(reader.name in keys for reader in graph.readers[network_input]) and network_input not in graph.outputs:
        rounded.pop(network_input, None)  # only kept outputs are read, and the input is rounded where they are made

    def at_tensor(name: str, x: Tensor) -> Tensor:
        grid = rounded.get(name)
        return x if grid is None else fake_quantize(x, grid)

    def run_kept(kept: KeptInput) -> Tensor:
        def how(operation: Operation, graph: Graph, inputs: tuple[Tensor, ...]) -> Tensor:
            if operation.name not in keys:
                return fast_compute(operation, graph, inputs)

            def made(features: Tensor) -> Tensor:
                values = features if input_grid is None else fake_quantize(features, input_grid)
                return fast_compute(operation, graph, (values,))

            return kept.output(keys[operation.name], made)

        return run(graph, {network_input: kept.normalised}, at_tensor, how)[0]

    return _without_gradients(run_kept)


def _input_keys(graph: Graph, sites: Sites, widths: Mapping[str, int], integers: Container[str] = ()) -> dict[str, Key]:
    """Return the keys of the layers that read the input, by name; `integers` are computed in integers."""
    return {
        layer.name: (layer.name, layer.name in integers, widths[sites.read_by(layer)], widths[layer.name + WEIGHT])
        for layer in graph.operations
        if isinstance(layer, LAYERS) and layer.inputs[0] in graph.inputs
    }


def fast_compute(operation: Operation, graph: Graph, inputs: tuple[Tensor, ...]) -> Tensor:
    """Compute an operation as `run.compute`, but depthwise layers as sums of shifted products."""
    if isinstance(operation, Convolution):
        return fast_convolve(operation, inputs[0], graph.parameter(operation, "weight"), graph.parameter(operation, "bias"))
    return compute(operation, graph, inputs)


def fast_convolve(operation: Convolution, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve as `run.convolve`, but depthwise layers that keep the frames as sums of shifted products."""
    shifts = depthwise_shifts(operation, weight)
    if shifts is None:
        return convolve(operation, x, weight, bias)
    frames = x.shape[-1]
    taps = weight[:, 0, :, None]
    # The sum starts with the bias and the unshifted tap, which covers every frame.
    first = shifts.index(0)
    # addcmul takes three times as long if it broadcasts bias and gain into a new tensor.
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
    """Return the shift of each tap of a depthwise layer that keeps the frames: output frame t reads input frame t + shift.

    None for other layers, and without an unshifted tap.
    """
    kernel = weight.shape[2]
    shifts = tuple(tap * operation.dilation - operation.padding[0] for tap in range(kernel))
    keeps_frames = operation.stride == 1 and sum(operation.padding) == (kernel - 1) * operation.dilation
    depthwise = operation.groups > 1 and weight.shape[:2] == (operation.groups, 1)
    return shifts if depthwise and keeps_frames and 0 in shifts else None
