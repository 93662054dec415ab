"""The network of an experiment without its parameters: graph, sites and workload."""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from pydantic import TypeAdapter
from torch import nn

from hw_models.workload import Workload
from hwsearch.data.arrays import microphone_array
from hwsearch.experiment import ArraySetting, Experiment, NetworkConfig
from hwsearch.network.graph import Graph
from hwsearch.network.options import Options, Structure, find_options
from hwsearch.network.sites import Sites, find_sites, tied, with_reads
from hwsearch.separator.separator import build_separator
from hwsearch.separator.traced import graph_of, traced
from hwsearch.separator.workload import build_workload

_KEPT = 16
"""Networks that a process caches."""

_CONFIG: TypeAdapter[NetworkConfig] = TypeAdapter(NetworkConfig)


@dataclass(frozen=True, eq=False)
class UntrainedNetwork:
    """A network without its parameters.

    Attributes:
        graph: with one input; its parameters are zeros that take no memory.
        inputs: channels of the input.
        ties: whether the scales of what its sums add are tied.
    """

    graph: Graph
    inputs: int
    ties: bool = False

    @cached_property
    def sites(self) -> Sites:
        """The graph's sites."""
        sites = find_sites(self.graph)
        return tied(self.graph, sites) if self.ties else sites

    def options(self, frames: int) -> Options:
        """Find what can be left out of the network, which takes so many frames."""
        return find_options(self.graph, {self.graph.inputs[0]: (self.inputs, frames)})

    def narrowed(self, structure: Structure, frames: int) -> "UntrainedNetwork":
        """Leave out what a structure does not keep.

        Raises:
            ValueError: an unknown option, or a number that it cannot have.
        """
        return replace(self, graph=self.options(frames).narrowed(self.graph, structure)) if structure else self

    def workload(self, frames: int, frame_seconds: float, *, per_channel: bool, name: str = "separator") -> Workload:
        """Make the workload of one inference; see `build_workload`."""
        channels = dict.fromkeys(self.graph.inputs, self.inputs)
        return build_workload(self.graph, self.sites, channels, frames, frame_seconds, name, per_channel=per_channel)


def untrained_network(experiment: Experiment, *, elastic: bool = False) -> UntrainedNetwork:
    """Return the network of an experiment, from a cache.

    Args:
        experiment: names the network.
        elastic: whether parts of it may be left out, also if the experiment leaves out none; a wide trunk is then read as
            `with_reads` says with `sums`.

    Raises:
        UserError: the network cannot be built or traced.
    """
    data = experiment.data
    config = _CONFIG.dump_json(experiment.separator).decode()  # a key: a module's arguments cannot be hashed
    ties, elastic = bool(experiment.quantization.tied_adds), elastic or bool(experiment.search.structure)
    return _network(config, data.array, data.sample_rate, wide=experiment.search.wide_trunk, elastic=elastic, ties=ties)


def network_of(module: nn.Module, inputs: int) -> UntrainedNetwork:
    """Trace a module that takes tensors [batch, inputs, frames]."""
    return without_numbers(graph_of(module, inputs), inputs)


def untrained_sites(experiment: Experiment) -> Sites:
    return untrained_network(experiment).sites


@lru_cache(maxsize=_KEPT)
def _network(config: str, array: ArraySetting, sample_rate: int, *, wide: bool, elastic: bool, ties: bool) -> UntrainedNetwork:
    with torch.random.fork_rng(devices=[]):  # keeps the state of the generator
        separator = build_separator(_CONFIG.validate_json(config), microphone_array(array), sample_rate)
        graph = traced(separator)
    read = with_reads(graph, sums=elastic) if wide else graph
    return replace(without_numbers(read, separator.front_end.inputs), ties=ties)


def without_numbers(graph: Graph, inputs: int) -> UntrainedNetwork:
    """Replace the parameters of a graph by zeros."""
    zeros = {name: tensor.new_zeros(()).expand(tensor.shape) for name, tensor in graph.parameters.items()}
    return UntrainedNetwork(replace(graph, parameters=zeros), inputs)
