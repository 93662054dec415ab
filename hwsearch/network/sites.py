"""Sites: the tensors of a graph whose bit-width is chosen.

Every layer's weights are a site, `LAYER.weight`. Of the tensors between operations those are sites, `LAYER.output`, that an
operation reads or that leave the network, except for

- what goes into the elementwise function behind a layer, a sum or a norm: layer and function are one, and the site is behind it;
- what only a concatenation reads, and once: the concatenation is rounded as a whole;
- parts and padded forms of a tensor: they are on its grid.

A site is named after the layer, sum or other operation whose result it holds, function included. The network's inputs are sites
under their own names, and so is what a `Read` hands to a layer, `LAYER.input`.
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
    Multiply,
    Operation,
    Pad,
    PReLU,
    Read,
    Slice,
    TransposedConvolution,
)

LAYERS = (Convolution, TransposedConvolution, Linear)
"""Operations whose weights are quantized."""

FUNCTIONS = (Elementwise, LeakyReLU, PReLU)
"""Elementwise functions, which the operation before them takes with it."""

_CARRY = (Add, Multiply, Concatenate)
"""Operations that make a new tensor of what they read, without weights of their own."""

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
        carried: activation sites whose tensor no layer makes, and that layers read and others carry on (`network.reading`); and
            sums that go into the next sum.
    """

    weights: tuple[str, ...]
    activations: tuple[str, ...]
    tensors: Mapping[str, str]
    grids: Mapping[str, str]
    carried: tuple[str, ...] = ()

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
            site = operation.name if isinstance(operation, Read) else _anchor(graph, operation).name + OUTPUT
            tensors[site], grids[operation.name] = operation.name, site
    weights = tuple(operation.name + WEIGHT for operation in graph.operations if isinstance(operation, LAYERS))
    both = _sources(graph, grids, _CARRY) & _sources(graph, grids, (*LAYERS, Read))
    carried = tuple(
        site
        for site, tensor in tensors.items()
        if (site in both and site.removesuffix(OUTPUT) + WEIGHT not in weights) or _is_summed_on(graph, tensor)
    )
    return Sites(weights, tuple(tensors), tensors, grids, carried)


def _is_taken_up(graph: Graph, operation: Operation) -> bool:
    """Whether the one operation that reads a tensor is rounded in its place."""
    if operation.name in graph.outputs or len(graph.readers[operation.name]) != 1:
        return False
    (reader,) = graph.readers[operation.name]
    fused = isinstance(operation, _TAKES_FUNCTION) and isinstance(reader, FUNCTIONS)
    return fused or (isinstance(reader, Concatenate) and reader.inputs.count(operation.name) == 1)


def _sources(graph: Graph, grids: Mapping[str, str], kinds: tuple[type[Operation], ...]) -> set[str]:
    """The sites that operations of some kinds read."""
    readers = (operation for operation in graph.operations if isinstance(operation, kinds))
    return {grids[name] for reader in readers for name in reader.inputs if name in grids}


def _is_summed_on(graph: Graph, tensor: str) -> bool:
    """Whether a tensor is a sum that goes into another, and that no layer reads."""
    readers = graph.readers[tensor]
    sums = isinstance(graph.by_name.get(tensor), Add) and any(isinstance(reader, Add) for reader in readers)
    return sums and not any(isinstance(reader, LAYERS) for reader in readers)


def _anchor(graph: Graph, operation: Operation) -> Operation:
    """The operation that a tensor is named after."""
    if isinstance(operation, FUNCTIONS):
        before = graph.by_name.get(operation.inputs[0])
        if before is not None and _is_taken_up(graph, before) and not isinstance(before, Concatenate):
            return before
    return operation
