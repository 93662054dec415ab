"""Bases of which parts may be left out, and structures of them."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

from hwsearch.experiment import QuantizationConfig, SeparatorConfig
from hwsearch.network.graph import Graph
from hwsearch.network.options import Options
from hwsearch.network.sites import with_reads
from hwsearch.network.trace import trace
from hwsearch.separator.calibration import calibrate
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.second_order import input_statistics
from hwsearch.separator.shared import KeptValues
from tests.separator.small import PRELU, RELU, normalised_features, small_network
from tests.training.pools import BASE_SHA256

CONFIGS: Mapping[str, SeparatorConfig] = {
    "relu": RELU.model_copy(update={"X": 3}),
    "prelu": PRELU.model_copy(update={"X": 3, "causal": True}),
}


class Transposed(nn.Module):
    """A transposed convolution between others, and a gate that a layer behind a mean over frames makes.

    What is left out is made by the transposed convolution, or else, without a first layer, read by it.
    """

    def __init__(self, features: int, outputs: int, *, first: bool) -> None:
        super().__init__()
        self.take = nn.Conv1d(features, 8, 1) if first else nn.Identity()
        self.before = nn.Conv1d(8 if first else features, 10, 3, padding=1)
        self.transposed = nn.ConvTranspose1d(10, 6, 3, padding=1)
        self.squeeze = nn.Conv1d(5, 5, 1)
        self.behind = nn.Conv1d(6, 5, 3, padding=1)
        self.head = nn.Conv1d(5, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.take(x))
        x = torch.relu(self.transposed(torch.relu(self.before(x))))
        x = torch.relu(self.behind(x))
        made: torch.Tensor = self.head(x * torch.sigmoid(self.squeeze(x.mean(2, keepdim=True))))
        return made


@cache
def elastic_base(kind: str = "relu", weight_scale: str = "per_channel") -> PreparedBase:
    """A base as it is prepared for a search of structures; its trunk is wide."""
    separator, graph, _ = small_network(CONFIGS.get(kind, CONFIGS["relu"]))
    features = [normalised_features(separator, 3000, mixture) for mixture in (1, 2)]
    graph = with_reads(graph, sums=True) if kind in CONFIGS else _transposed(features[0], first=kind == "transposed-makes")
    config = QuantizationConfig(weight_scale=weight_scale, weight_scale_method="max")
    statistics = input_statistics(graph, features)
    base = PreparedBase(separator, graph, calibrate(graph, features), config, BASE_SHA256, lambda: statistics)
    return replace(
        base,
        means={name: found.mean.float() for name, found in statistics.items()},
        squares={name: found.mean_square.float() for name, found in statistics.items()},
    )


def _transposed(features: torch.Tensor, *, first: bool) -> Graph:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return trace(Transposed(features.shape[1], 2 * 65, first=first).eval(), [features])


def values_of(options: Options) -> KeptValues:
    """Any number of channels, and every block or none."""
    groups = {group.name: tuple(range(1, len(group.classes) + 1)) for group in options.groups}
    return {block.name: (0, 1) for block in options.blocks} | groups


def structures(options: Options, *, blocks: bool = True) -> st.SearchStrategy[dict[str, int]]:
    """Any structure; without `blocks`, all of them are kept."""
    values = {name: kept for name, kept in values_of(options).items() if blocks or kept[0]}
    return st.fixed_dictionaries({name: st.sampled_from(kept) for name, kept in values.items()}).map(options.relevant)


def random_orders(options: Options, seed: int) -> dict[str, list[int]]:
    random = np.random.default_rng(seed)
    return {group.name: random.permutation(group.classes).tolist() for group in options.groups}
