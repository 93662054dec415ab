"""Sites: the tensors of a graph whose bit-width is chosen.

Every layer's weights are a site, `LAYER.weight`. Of the tensors between operations those are sites, `LAYER.output`, that an
operation reads or that leave the network, except for

- what goes into the elementwise function behind a layer, a sum or a norm: layer and function are one, and the site is behind it;
- what only a concatenation reads: the concatenation is rounded as a whole;
- parts and padded forms of a tensor: they are on its grid.

A site is named after the layer, sum or other operation whose result it holds, function included. The network's inputs are sites
under their own names.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from hwsearch.network.graph import Graph
from hwsearch.network.operations import (
    Add,
    Concatenate,
    Convolution,
    Elementwise,
    GroupNorm,
    LayerNorm,
    LeakyReLU,
    Linear,
    Operation,
    Pad,
    PReLU,
    Slice,
    TransposedConvolution,
)

LAYERS = (Convolution, TransposedConvolution, Linear)
"""Operations whose weights are quantized."""

FUNCTIONS = (Elementwise, LeakyReLU, PReLU)
"""Elementwise functions, which the operation before them takes with it."""

_TAKES_FUNCTION = (*LAYERS, Add, GroupNorm, LayerNorm)
_ON_THE_SAME_GRID = (Slice, Pad)

WEIGHT, OUTPUT = ".weight", ".output"


@dataclass(frozen=True)
class Sites:
    """The sites of a graph, in the order of execution.

    Attributes:
        weights: weight sites.
        activations: activation sites.
        tensors: the graph's tensor of each activation site.
        grids: for each tensor that is on a site's grid, that site: the tensor itself, or what it is a part of.
    """

    weights: tuple[str, ...]
    activations: tuple[str, ...]
    tensors: Mapping[str, str]
    grids: Mapping[str, str]

    @property
    def all(self) -> tuple[str, ...]:
        """Weight sites, then activation sites."""
        return self.weights + self.activations

    def read_by(self, operation: Operation) -> str:
        """The site that an operation's first input is on."""
        return self.grids[operation.inputs[0]]


def find_sites(graph: Graph) -> Sites:
    """The sites of a graph."""
    tensors: dict[str, str] = {}
    grids: dict[str, str] = {}
    for name in graph.inputs:
        tensors[name] = grids[name] = name
    for operation in graph.operations:
        if isinstance(operation, _ON_THE_SAME_GRID) and operation.inputs[0] in grids:
            grids[operation.name] = grids[operation.inputs[0]]
        elif not _is_taken_up(graph, operation):
            site = _anchor(graph, operation).name + OUTPUT
            tensors[site], grids[operation.name] = operation.name, site
    weights = tuple(operation.name + WEIGHT for operation in graph.operations if isinstance(operation, LAYERS))
    return Sites(weights, tuple(tensors), tensors, grids)


def _is_taken_up(graph: Graph, operation: Operation) -> bool:
    """Whether the one operation that reads a tensor is rounded in its place."""
    if operation.name in graph.outputs or len(graph.readers[operation.name]) != 1:
        return False
    (reader,) = graph.readers[operation.name]
    fused = isinstance(operation, _TAKES_FUNCTION) and isinstance(reader, FUNCTIONS)
    return fused or isinstance(reader, Concatenate)


def _anchor(graph: Graph, operation: Operation) -> Operation:
    """The operation that a tensor is named after."""
    if isinstance(operation, FUNCTIONS):
        before = graph.by_name.get(operation.inputs[0])
        if before is not None and _is_taken_up(graph, before) and not isinstance(before, Concatenate):
            return before
    return operation
