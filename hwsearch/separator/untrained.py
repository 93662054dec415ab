"""The network of an experiment before it is trained: its graph and sites, for all that needs no numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch

from hw_models.workload import Workload
from hwsearch.data.arrays import ARRAYS
from hwsearch.experiment import Experiment, SeparatorConfig
from hwsearch.network.graph import Graph
from hwsearch.network.sites import Sites, find_sites
from hwsearch.separator.features import feature_count
from hwsearch.separator.folding import as_graph, fold
from hwsearch.separator.tcn import MaskNetwork
from hwsearch.separator.workload import build_workload

_KEPT = 16
"""Networks that a process keeps."""


@dataclass(frozen=True, eq=False)
class UntrainedNetwork:
    """A network without its numbers.

    Attributes:
        graph: its parameters are zeros, which take no memory.
        channels: of each input of the graph.
    """

    graph: Graph
    channels: Mapping[str, int]

    @cached_property
    def sites(self) -> Sites:
        """The graph's sites."""
        return find_sites(self.graph)

    def workload(self, frames: int, frame_seconds: float, *, per_channel: bool, name: str = "separator") -> Workload:
        """The workload of one inference; see `build_workload`."""
        return build_workload(self.graph, self.sites, self.channels, frames, frame_seconds, name, per_channel=per_channel)


def untrained_network(experiment: Experiment) -> UntrainedNetwork:
    """The network of an experiment, the same each time in a process."""
    config = experiment.separator
    features = feature_count(ARRAYS[experiment.data.array], config.n_fft // 2 + 1, config.ipd, beam=config.beam)
    return network_of(config, features)


def untrained_graph(experiment: Experiment) -> Graph:
    """The graph of an experiment's network, with zeros for numbers."""
    return untrained_network(experiment).graph


def untrained_sites(experiment: Experiment) -> Sites:
    """The sites of an experiment's network."""
    return untrained_network(experiment).sites


@lru_cache(maxsize=_KEPT)
def network_of(config: SeparatorConfig, features: int) -> UntrainedNetwork:
    """The network that a configuration has for so many features."""
    with torch.random.fork_rng(devices=[]):  # whose numbers others draw
        graph = as_graph(fold(MaskNetwork(config, features).eval()))
    zeros = {name: tensor.new_zeros(()).expand(tensor.shape) for name, tensor in graph.parameters.items()}
    graph = replace(graph, parameters=zeros)
    return UntrainedNetwork(graph, dict.fromkeys(graph.inputs, features))
