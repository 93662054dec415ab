"""Sites: the tensors of a graph whose bit-width is chosen.

The weights of every layer are a site, `LAYER.weight`. The result of an operation is a site, `OPERATION.output`, unless

- it goes into the elementwise function behind a layer, a sum or a norm: both are rounded once, behind the function, and the site
  is named after the operation before it;
- only a concatenation reads it, and once: the concatenation is rounded as a whole;
- it is a part or a padded form of another tensor: it is on the grid of that tensor.

The inputs of the network are sites under their own names, and so is the result of a `Read`, `LAYER.input`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from hwsearch.network import operations as ops
from hwsearch.network.graph import Graph

LAYERS = (ops.Convolution, ops.TransposedConvolution, ops.Linear)
"""Operations whose weights are quantized."""

FUNCTIONS = (ops.Elementwise, ops.LeakyReLU, ops.PReLU)
"""Elementwise functions, which are fused with the operation before them."""

_CARRY = (ops.Add, ops.Multiply, ops.Concatenate)
"""Operations that make a new tensor from several others without weights."""

TAKES_FUNCTION = (*LAYERS, ops.Add, ops.GroupNorm, ops.LayerNorm)
"""Operations that such a function is fused with."""

_ON_THE_SAME_GRID = (ops.Slice, ops.Pad)

WEIGHT, OUTPUT = ".weight", ".output"
_INPUT = ".input"


@dataclass(frozen=True)
class Tie:
    """Activation sites whose grids have one scale.

    Attributes:
        sites: rounded tensors; they have one width, too.
        sums: sums of them, and of each other, in a trunk of 16 bits. With the scale of the sites such a sum is never rounded.
    """

    sites: tuple[str, ...]
    sums: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sites:
    """The sites of a graph, in the order of execution.

    Attributes:
        weights: weight sites.
        activations: activation sites.
        tensors: the tensor of each activation site.
        grids: for each tensor, the site whose grid it is on: its own, or that of the tensor that it is a part of.
        carried: activation sites that make up residual trunks (`with_reads`): tensors that no layer makes, and that both layers
            and sums read; sums that only go into other sums; and sums that a `Read` reads.
        ties: activation sites that share their scales (`tied`); none unless the experiment ties them.
    """

    weights: tuple[str, ...]
    activations: tuple[str, ...]
    tensors: Mapping[str, str]
    grids: Mapping[str, str]
    carried: tuple[str, ...] = ()
    ties: tuple[Tie, ...] = ()

    @cached_property
    def of_tensor(self) -> dict[str, str]:
        """The site of each tensor that has one."""
        return {tensor: site for site, tensor in self.tensors.items()}

    @property
    def all(self) -> tuple[str, ...]:
        """Weight sites, then activation sites."""
        return self.weights + self.activations

    def read_by(self, operation: ops.Operation) -> str:
        """Return the site whose grid the first input of an operation is on."""
        return self.grids[operation.inputs[0]]


def find_sites(graph: Graph) -> Sites:
    """Find the sites of a graph."""
    tensors: dict[str, str] = {}
    grids: dict[str, str] = {}
    for name in graph.inputs:
        tensors[name] = grids[name] = name
    for operation in graph.operations:
        if isinstance(operation, _ON_THE_SAME_GRID) and operation.inputs[0] in grids:
            grids[operation.name] = grids[operation.inputs[0]]
        elif not _is_taken_up(graph, operation):
            site = operation.name if isinstance(operation, ops.Read) else _anchor(graph, operation).name + OUTPUT
            tensors[site], grids[operation.name] = operation.name, site
    weights = tuple(operation.name + WEIGHT for operation in graph.operations if isinstance(operation, LAYERS))
    both = _sources(graph, grids, _CARRY) & _sources(graph, grids, (*LAYERS, ops.Read))
    carried = tuple(
        site
        for site, tensor in tensors.items()
        if (site in both and site.removesuffix(OUTPUT) + WEIGHT not in weights) or _is_summed_on(graph, tensor)
    )
    return Sites(weights, tuple(tensors), tensors, grids, carried)


def with_reads(graph: Graph, *, sums: bool = False) -> Graph:
    """Put a `Read` before each layer that reads a carried tensor, so that its input gets a bit-width of its own.

    With `sums`, every layer that reads a sum gets one, and the sum is carried. Where blocks may be left out, any sum may turn out
    to be the one that a layer reads.

    A residual trunk goes through many sums. Rounding it to 8 bits at each of them causes most of the loss of 8-bit activations.
    Carried in 16 bits and read by each layer in 8, it loses little, and the layers stay in 8 bits. The result of a layer is never
    carried: integer kernels round it to 8 bits.
    """
    sites = find_sites(graph)
    operations: list[ops.Operation] = []
    for operation in graph.operations:
        read = operation
        source = operation.inputs[0]
        wide = sites.grids.get(source) in sites.carried or (sums and isinstance(graph.by_name.get(source), ops.Add))
        if isinstance(operation, LAYERS) and wide:
            operations.append(ops.Read(operation.name + _INPUT, operation.inputs))
            read = replace(operation, inputs=(operation.name + _INPUT,))
        operations.append(read)
    return replace(graph, operations=tuple(operations))


def tied(graph: Graph, sites: Sites) -> Sites:
    """Tie the scales of the tensors that each sum adds, so that integers can be added as they are.

    In a graph with reads (`with_reads`), the carried sums belong to the tie of what they add: all sums of a trunk have one scale,
    and none is rounded. In other graphs each sum is rounded to a grid of its own, which it shares with what it is added to next.
    """
    reads = any(isinstance(operation, ops.Read) for operation in graph.operations)
    sets: list[set[str]] = []
    sums: set[str] = set()
    for operation in graph.operations:
        if isinstance(operation, ops.Add):
            joined = {sites.grids[name] for name in operation.inputs if name in sites.grids}
            own = sites.grids.get(operation.name)
            if reads and own in sites.carried:
                joined.add(own)
                sums.add(own)
            apart = [each for each in sets if not each & joined]
            sets = [*apart, joined.union(*(each for each in sets if each & joined))]
    ties = (
        Tie(
            tuple(site for site in sites.activations if site in members and site not in sums),
            tuple(site for site in sites.activations if site in members and site in sums),
        )
        for members in sets
        if len(members) > 1
    )
    return replace(sites, ties=tuple(sorted(ties, key=lambda tie: sites.activations.index(tie.sites[0]))))


def _is_taken_up(graph: Graph, operation: ops.Operation) -> bool:
    """Whether only one operation reads the result of another, and is rounded in its place."""
    if operation.name in graph.outputs or len(graph.readers[operation.name]) != 1:
        return False
    (reader,) = graph.readers[operation.name]
    fused = isinstance(operation, TAKES_FUNCTION) and isinstance(reader, FUNCTIONS)
    return fused or (isinstance(reader, ops.Concatenate) and reader.inputs.count(operation.name) == 1)


def _sources(graph: Graph, grids: Mapping[str, str], kinds: tuple[type[ops.Operation], ...]) -> set[str]:
    """Find the sites that operations of some kinds read."""
    readers = (operation for operation in graph.operations if isinstance(operation, kinds))
    return {grids[name] for reader in readers for name in reader.inputs if name in grids}


def _is_summed_on(graph: Graph, tensor: str) -> bool:
    """Whether a tensor is a sum that goes into another sum or into a `Read`, and that no layer reads as it is."""
    readers = graph.readers[tensor]
    into = any(isinstance(reader, ops.Add | ops.Read) for reader in readers)
    return isinstance(graph.by_name.get(tensor), ops.Add) and into and not any(isinstance(reader, LAYERS) for reader in readers)


def _anchor(graph: Graph, operation: ops.Operation) -> ops.Operation:
    """Return the operation that the site of another is named after."""
    if isinstance(operation, FUNCTIONS):
        before = graph.by_name.get(operation.inputs[0])
        if before is not None and _is_taken_up(graph, before) and not isinstance(before, ops.Concatenate):
            return before
    return operation
