"""The weights of a base at every width: they are rounded once per layer and width and kept in a file for all processes.

Scales of least error and second-order rounding pass over the weights hundreds of times.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from hwsearch.errors import UserError
from hwsearch.experiment import QuantizationConfig
from hwsearch.network.graph import Graph
from hwsearch.network.operations import Linear, Operation, TransposedConvolution
from hwsearch.network.sites import LAYERS, WEIGHT
from hwsearch.separator.allocation import WEIGHT_WIDTHS, BitAllocation, weight_limit
from hwsearch.separator.quantizers import QuantizedWeight, is_float, quantize_weight, weight_scale
from hwsearch.separator.second_order import InputStatistics, least_error_scale, mean_error, second_order_integers

_SECOND_ORDER_BITS = 8
"""Widest weights that are rounded to second order. Wider ones lose nothing that could be measured."""

_MEND = "delete it and it is made again"
_NONE = torch.empty(0)

Statistics = Mapping[str, InputStatistics]


@dataclass(frozen=True, eq=False)
class RoundedLayer:
    """A layer at a width.

    Attributes:
        weight: the weights on their grid.
        bias: [out], not rounded.
    """

    weight: QuantizedWeight
    bias: Tensor


class RoundedWeights:
    """Post-training weights by layer and width. They are made on the CPU and kept on the device of the graph.

    Args:
        graph: the network in full precision.
        config: how weights are rounded.
        statistics: measures the inputs of the layers, on the CPU. It is called if something is to be rounded. None: weights are
            rounded to the nearest integers, and biases stay, whatever `config` says.
    """

    def __init__(self, graph: Graph, config: QuantizationConfig, statistics: Callable[[], Statistics] | None = None) -> None:
        self._graph = graph
        self._layers = {operation.name: operation for operation in graph.operations if isinstance(operation, LAYERS)}
        self._config = config
        self._statistics = statistics if config.bias_correction or config.rounding == "second-order" else None
        self._found: dict[tuple[str, int], RoundedLayer] = {}

    def layer(self, name: str, bits: int) -> RoundedLayer:
        """Return a layer at a width; round it if that was not done before."""
        key = name, bits
        if key not in self._found:
            weight = self._graph.parameters[name + WEIGHT]
            self._found[key] = _on(self._rounded(self._layers[name], bits), weight.device)
        return self._found[key]

    def round(self, widths: Iterable[int]) -> bool:
        """Round all layers at some widths; return whether any was missing."""
        before = len(self._found)
        for bits in widths:
            if not is_float(bits):
                for name in self._layers:
                    self.layer(name, bits)
        return len(self._found) > before

    def master(self, name: str, bits: int) -> Tensor:
        """Return floating-point weights that the nearest rounding takes to the weights of a layer at a width."""
        weight, rounded = self._graph.parameters[name + WEIGHT], self.layer(name, bits).weight
        nearest = quantize_weight(weight, rounded.scale, bits).integers == rounded.integers
        return torch.where(nearest, weight, rounded.value)

    def graph_at(self, allocation: BitAllocation) -> Graph:
        """Return the graph with the master weights and the biases of an allocation."""
        parameters = dict(self._graph.parameters)
        for name in self._layers:
            if not is_float(bits := allocation.by_site[name + WEIGHT]):
                parameters[name + WEIGHT], parameters[f"{name}.bias"] = self.master(name, bits), self.layer(name, bits).bias
        return replace(self._graph, parameters=parameters)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return all that is rounded, by name."""
        found = {}
        for (name, bits), layer in self._found.items():
            kind = torch.int8 if bits <= 8 else torch.int16
            found[f"{name}@{bits}.integers"] = layer.weight.integers.to(kind)
            found[f"{name}@{bits}.scale"] = layer.weight.scale
            found[f"{name}@{bits}.bias"] = layer.bias
        return found

    def take(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Add what `to_tensors` gave for the same graph and configuration.

        Raises:
            UserError: a tensor that fits no layer and width, or that is missing. Names `path`.
        """
        found = {}
        for key in dict.fromkeys(name.rpartition(".")[0] for name in tensors):
            name, _, bits = key.rpartition("@")
            if name not in self._layers or not bits.isdigit() or int(bits) not in WEIGHT_WIDTHS:
                raise UserError(f"{path}: holds rounded weights of '{key}'; wanted layers of the network; {_MEND}")
            found[name, int(bits)] = self._layer_from(key, name, int(bits), tensors, path)
        self._found |= found

    def _layer_from(self, key: str, name: str, bits: int, tensors: Mapping[str, Tensor], path: Path) -> RoundedLayer:
        """Check the tensors of a layer at a width."""
        operation = self._layers[name]
        weight, bias = self._graph.parameters[name + WEIGHT], self._graph.parameters[f"{name}.bias"]
        shapes = {"integers": weight.shape, "scale": scale_shape(operation, weight, self._config), "bias": bias.shape}
        parts = {part: tensors.get(f"{key}.{part}", _NONE) for part in shapes}
        good = all(parts[part].shape == shape for part, shape in shapes.items()) and bool((parts["scale"] > 0).all())
        if not good or int(parts["integers"].abs().max()) > weight_limit(bits):
            raise UserError(f"{path}: holds other weights than '{name}' has at {bits} bits; {_MEND}")
        integers, scale, bias = (tensor.clone() for tensor in parts.values())
        return _on(RoundedLayer(QuantizedWeight(bits, integers.to(torch.int32), scale), bias), weight.device)

    def _rounded(self, operation: Operation, bits: int) -> RoundedLayer:
        weight, bias = (self._graph.parameter(operation, part).cpu() for part in ("weight", "bias"))
        with one_thread():
            return self._round_layer(operation, bits, weight, bias)

    def _round_layer(self, operation: Operation, bits: int, weight: Tensor, bias: Tensor) -> RoundedLayer:
        scale = shaped_scale(operation, weight_scale(_by_channel(operation, weight), bits, self._config).flatten())
        statistics = None if self._statistics is None else self._statistics().get(operation.name)
        if statistics is None:
            return RoundedLayer(quantize_weight(weight, scale, bits), bias)
        if self._config.rounding == "second-order" and bits <= _SECOND_ORDER_BITS:
            limit = weight_limit(bits)
            if self._config.weight_scale_method == "mse":
                scale = least_error_scale(weight, scale, limit, statistics)
            rounded = QuantizedWeight(bits, second_order_integers(weight, scale, limit, statistics), scale)
        else:
            rounded = quantize_weight(weight, scale, bits)
        return RoundedLayer(rounded, bias + mean_error(weight - rounded.value, statistics).float())


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: with more, sums have another order, and the last bits differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _on(layer: RoundedLayer, device: torch.device) -> RoundedLayer:
    weight = layer.weight
    moved = QuantizedWeight(weight.bits, weight.integers.to(device), weight.scale.to(device))
    return RoundedLayer(moved, layer.bias.to(device))


def scale_shape(operation: Operation, weight: Tensor, config: QuantizationConfig) -> torch.Size:
    """Return the shape of the scale of the weights of a layer."""
    count = scaled_channels(operation, weight) if config.weight_scale == "per_channel" else 1
    return shaped_scale(operation, torch.empty(count)).shape


def scaled_channels(operation: Operation, weight: Tensor) -> int:
    """Count the channels of a layer that have scales of their own; the groups of a transposed convolution share theirs."""
    return len(_by_channel(operation, weight))


def output_scale(operation: Operation, scale: Tensor) -> Tensor:
    """Return the scale of each output channel [out], or one for all [1]."""
    flat = scale.flatten()
    if isinstance(operation, TransposedConvolution) and len(flat) > 1:
        return flat.repeat(operation.groups)
    return flat


def shaped_scale(operation: Operation, scale: Tensor) -> Tensor:
    """Reshape scales [channels] or [1] so that they broadcast to the weights of a layer."""
    if isinstance(operation, TransposedConvolution):
        return scale[None, :, None]
    return scale[:, None] if isinstance(operation, Linear) else scale[:, None, None]


def _by_channel(operation: Operation, weight: Tensor) -> Tensor:
    """Return the weights of a layer with those channels first that have scales of their own."""
    return weight.transpose(0, 1) if isinstance(operation, TransposedConvolution) else weight
