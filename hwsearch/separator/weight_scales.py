"""The scales of a base's weights, which are searched once per width and kept in a file for all processes.

The search for the scale of least error passes over all weights about 150 times.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from hwsearch.errors import UserError
from hwsearch.experiment import QuantizationConfig
from hwsearch.network.graph import Graph
from hwsearch.network.operations import Linear, Operation, TransposedConvolution
from hwsearch.network.sites import LAYERS
from hwsearch.separator.allocation import WEIGHT_WIDTHS
from hwsearch.separator.quantizers import is_float, weight_scale

_FORMAT = 1
_WIDTHS = {str(bits) for bits in WEIGHT_WIDTHS if not is_float(bits)}


class WeightScales:
    """Post-training scales by layer and width. They are searched on the CPU and kept on the device of the graph.

    Args:
        graph: the network in full precision.
        config: how scales are chosen.
    """

    def __init__(self, graph: Graph, config: QuantizationConfig) -> None:
        self._graph = graph
        self._layers = {operation.name: operation for operation in graph.operations if isinstance(operation, LAYERS)}
        self._config = config
        self._found: dict[tuple[str, int], Tensor] = {}

    def scale(self, layer: str, bits: int) -> Tensor:
        """Return the scale of the weights of a layer, which broadcasts to them; search it if it is not known."""
        key = layer, bits
        if key not in self._found:
            operation = self._layers[layer]
            weight = self._graph.parameter(operation, "weight")
            scale = weight_scale(_by_channel(operation, weight.cpu()), bits, self._config)
            self._found[key] = shaped_scale(operation, scale.flatten()).to(weight.device)
        return self._found[key]

    def search(self, widths: Iterable[int]) -> bool:
        """Search the scales of all layers at some widths; return whether any was missing."""
        before = len(self._found)
        for bits in widths:
            if not is_float(bits):
                for layer in self._layers:
                    self.scale(layer, bits)
        return len(self._found) > before

    def to_json(self) -> dict[str, Any]:
        """Convert the known scales to a JSON object without loss."""
        layers: dict[str, dict[str, list[float]]] = {}
        for (layer, bits), scale in self._found.items():
            layers.setdefault(layer, {})[str(bits)] = scale.flatten().tolist()
        return {"format": _FORMAT, "layers": layers}

    def take(self, value: Any, source: str) -> None:
        """Add scales from the result of `to_json` for the same weights and configuration.

        Raises:
            UserError: another format, an unknown layer, or an invalid scale or width. Names `source`.
        """
        if not isinstance(value, dict) or value.get("format") != _FORMAT or not isinstance(value.get("layers"), dict):
            raise UserError(f"{source}: holds no weight scales of format {_FORMAT}; delete it and it is made again")
        if set(value["layers"]) - self._layers.keys():
            raise UserError(f"{source}: its layers are not those of the network; delete it and it is made again")
        for layer, by_width in value["layers"].items():
            operation = self._layers[layer]
            weight = self._graph.parameter(operation, "weight")
            rows = _count(operation, weight, self._config)
            if not isinstance(by_width, Mapping):
                raise UserError(f"{source}: holds no scales of '{layer}'; delete it and it is made again")
            for bits, scales in by_width.items():
                if bits not in _WIDTHS or not _are_scales(scales, rows):
                    raise UserError(f"{source}: holds no scales of '{layer}' at {bits} bits; delete it and it is made again")
                scale = torch.tensor(scales, dtype=torch.float32, device=weight.device)
                self._found[layer, int(bits)] = shaped_scale(operation, scale)


def scale_shape(operation: Operation, weight: Tensor, config: QuantizationConfig) -> torch.Size:
    """Return the shape of the scale of the weights of a layer."""
    return shaped_scale(operation, torch.empty(_count(operation, weight, config))).shape


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


def _count(operation: Operation, weight: Tensor, config: QuantizationConfig) -> int:
    """Count the scales of the weights of a layer."""
    return scaled_channels(operation, weight) if config.weight_scale == "per_channel" else 1


def _by_channel(operation: Operation, weight: Tensor) -> Tensor:
    """Return the weights of a layer with those channels first that have scales of their own."""
    return weight.transpose(0, 1) if isinstance(operation, TransposedConvolution) else weight


def _are_scales(value: Any, count: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == count
        and all(isinstance(each, float) and math.isfinite(each) and each > 0.0 for each in value)
    )
