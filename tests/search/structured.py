"""Small experiments that may leave out parts of their network."""

from functools import cache

from hypothesis import strategies as st

from hwsearch.experiment import Experiment
from hwsearch.network.graph import Graph
from hwsearch.network.options import Options
from hwsearch.search.experiment_space import experiment_space
from hwsearch.search.space import Point, SearchSpace
from hwsearch.separator.untrained import untrained_network
from tests.search.synthetic import make_experiment

STRUCTURE = {"*.kept": [0], "*.channels": [0.25, 0.5]}
"""Each block, and a quarter or half of each group of channels."""

TCN = {"X": 2, "R": 1, "B": 8, "H": 16, "n_fft": 128, "hop_length": 64}
CONV_TASNET = {"network": "conv-tasnet", "N": 12, "L": 8, "B": 8, "H": 12, "Sc": 6, "X": 2, "R": 2}
FEW = {"weight_bits": [2, 4, 8], "activation_bits": [4, 8], "trunk_bits": [4, 8]}
WIDE = FEW | {"trunk_bits": [16]}

KINDS: dict[str, dict[str, object]] = {
    "tcn": {"separator": TCN, "trunk_bits": [8]},
    "causal": {"separator": TCN | {"causal": True, "activation": "prelu"}, **FEW},
    "grouped": {"separator": TCN | {"X": 3}, **FEW, "groups": [["blocks.*.expand.weight"], ["blocks.1.*.output"]]},
    "wide": {"separator": TCN, **WIDE},
    "tied": {"separator": TCN | {"X": 3}, **FEW, "quantization": {"tied_adds": True}, "structure": {"*.channels": [0.25, 0.5]}},
    "tied-wide": {"separator": TCN, **WIDE, "quantization": {"tied_adds": True}},
    "conv-tasnet": {"separator": CONV_TASNET, **FEW},
    "channels": {"separator": TCN, **FEW, "structure": {"*.channels": [0.5]}},
    "blocks": {"separator": CONV_TASNET, **FEW, "structure": {"blocks.[01].kept": [0]}},
}


@cache
def experiment_of(kind: str, *targets: str) -> Experiment:
    return make_experiment(20, **{"structure": STRUCTURE, "targets": list(targets), **KINDS[kind]})


@cache
def space_of(kind: str) -> SearchSpace:
    return experiment_space(experiment_of(kind))


def graph_and_options(experiment: Experiment) -> tuple[Graph, Options]:
    """An experiment's whole network, and what can be left out of it."""
    network = untrained_network(experiment)
    return network.graph, network.options(1000)


def points(space: SearchSpace) -> st.SearchStrategy[Point]:
    """Any points of a space, most of them not canonical."""
    return st.tuples(*(st.integers(0, count - 1) for count in space.shape))
