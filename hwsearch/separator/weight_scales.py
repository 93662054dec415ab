"""The scales of a base's weights at every width that is wanted of them: searched once, kept in a file for all that quantize it.

A search for the scale of least error goes over all weights a hundred and fifty times; a thousand workers need not each do that.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from hwsearch.errors import UserError
from hwsearch.experiment import QuantizationConfig
from hwsearch.separator.allocation import WEIGHT_WIDTHS
from hwsearch.separator.folding import FoldedNetwork
from hwsearch.separator.quantizers import is_float, weight_scale

_FORMAT = 1
_WIDTHS = {str(bits) for bits in WEIGHT_WIDTHS if not is_float(bits)}


class WeightScales:
    """Post-training scales by layer and width.

    Args:
        folded: full-precision weights with the norms folded in.
        config: how scales are chosen.
    """

    def __init__(self, folded: FoldedNetwork, config: QuantizationConfig) -> None:
        self._folded = folded
        self._config = config
        self._found: dict[tuple[str, int], Tensor] = {}

    def scale(self, layer: str, bits: int) -> Tensor:
        """As `quantizers.weight_scale`, searched where it is asked for first."""
        key = layer, bits
        if key not in self._found:
            self._found[key] = weight_scale(self._folded.layers[layer].weight, bits, self._config)
        return self._found[key]

    def search(self, widths: Iterable[int]) -> bool:
        """Search all layers' scales at some widths; whether any of them had not been."""
        before = len(self._found)
        for bits in widths:
            if not is_float(bits):
                for layer in self._folded.layers:
                    self.scale(layer, bits)
        return len(self._found) > before

    def to_json(self) -> dict[str, Any]:
        """A JSON object of those that were searched; they keep every bit."""
        layers: dict[str, dict[str, list[float]]] = {}
        for (layer, bits), scale in self._found.items():
            layers.setdefault(layer, {})[str(bits)] = scale.flatten().tolist()
        return {"format": _FORMAT, "layers": layers}

    def take(self, value: Any, source: str) -> None:
        """Take over what `to_json` gave for the same weights and configuration.

        Raises:
            UserError: another format, layers that are not the network's, or what is no scale or width; names `source`.
        """
        if not isinstance(value, dict) or value.get("format") != _FORMAT or not isinstance(value.get("layers"), dict):
            raise UserError(f"{source}: holds no weight scales of format {_FORMAT}; delete it and it is made again")
        if set(value["layers"]) - set(self._folded.layers):
            raise UserError(f"{source}: its layers are not those of the network; delete it and it is made again")
        for layer, by_width in value["layers"].items():
            rows = len(self._folded.layers[layer].weight) if self._config.weight_scale == "per_channel" else 1
            if not isinstance(by_width, Mapping):
                raise UserError(f"{source}: holds no scales of '{layer}'; delete it and it is made again")
            for bits, scales in by_width.items():
                if bits not in _WIDTHS or not _are_scales(scales, rows):
                    raise UserError(f"{source}: holds no scales of '{layer}' at {bits} bits; delete it and it is made again")
                self._found[layer, int(bits)] = torch.tensor(scales, dtype=torch.float32)[:, None, None]


def _are_scales(value: Any, count: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == count
        and all(isinstance(each, float) and math.isfinite(each) and each > 0.0 for each in value)
    )
