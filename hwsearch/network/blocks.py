"""Residual blocks that can be left out of a graph.

A residual sum adds what a block computes to what the block reads. Without the block, the sum is replaced by its other input. If
the block adds to several sums, as with a skip connection, each is replaced in the same way.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from hwsearch.network import operations as ops
from hwsearch.network.graph import Graph
from hwsearch.network.shapes import Shape, tensor_shapes
from hwsearch.network.sites import FUNCTIONS, LAYERS, TAKES_FUNCTION, find_sites

KEPT = ".kept"
"""What the name of a block ends with."""

_Removed = frozenset[str]


@dataclass(frozen=True)
class Block:
    """A residual block.

    Attributes:
        name: `NAME.kept`, after what the names of its operations have in common, else after its residual sum.
        operations: names of the operations that go with it; sums that are passed by are not among them.
    """

    name: str
    operations: frozenset[str]


def find_blocks(graph: Graph, inputs: Mapping[str, Shape]) -> tuple[Block, ...]:
    """Find the blocks of a graph, given the shapes of its inputs.

    They are in the order of their residual sums. No two share an operation, and all can be left out at once.
    """
    finder = _Finder(graph, tensor_shapes(graph, inputs))
    candidates = [
        (operation.name, removed)
        for operation in graph.operations
        if isinstance(operation, ops.Add)
        for passed, branch in (operation.inputs, operation.inputs[::-1])
        if (removed := finder.removed(operation, passed, branch)) is not None
    ]
    apart: list[tuple[str, _Removed]] = []
    for total, removed in sorted(candidates, key=lambda each: len(each[1])):  # of nested blocks, the inner one
        if not any(removed & other for _, other in apart):
            apart.append((total, removed))
    apart.sort(key=lambda each: finder.position[each[0]])
    # If blocks supply every term of a chain of sums, nothing is left; the first block then has to stay.
    while apart and without(graph, _Removed().union(*(removed for _, removed in apart))) is None:
        del apart[0]
    return tuple(Block(name + KEPT, removed) for name, (_, removed) in zip(_names(apart), apart, strict=True))


def without(graph: Graph, removed: Collection[str]) -> tuple[frozenset[str], dict[str, str]] | None:
    """Return which tensors are gone when operations are left out, and which tensor replaces each sum that lost an input.

    Args:
        graph: the whole network.
        removed: names of operations, those of some blocks.

    Returns:
        Names of operations that are gone, those of sums that are left with no input among them; and by name of a sum, the tensor
        that passes it. None if something that is needed is gone, or if an input of the network would be an output.
    """
    passed: dict[str, str] = {}
    gone = set(removed)
    for operation in graph.operations:
        if operation.name in gone:
            continue
        left = [passed.get(name, name) for name in operation.inputs if name not in gone]
        if len(left) == len(operation.inputs):
            continue
        if not isinstance(operation, ops.Add):
            return None
        if left:
            passed[operation.name] = left[0]
        else:
            gone.add(operation.name)
    lost = any(name in gone or passed.get(name) in graph.inputs for name in graph.outputs)
    return None if lost else (frozenset(gone), passed)


class _Finder:
    """Finds the operations that go with a branch of a sum."""

    def __init__(self, graph: Graph, shapes: Mapping[str, Shape]) -> None:
        self._graph = graph
        self._shapes = shapes
        self._rounded = find_sites(graph).of_tensor
        self.position = {operation.name: number for number, operation in enumerate(graph.operations)}

    def removed(self, total: ops.Operation, passed: str, branch: str) -> _Removed | None:
        """Return the operations that go with a branch; None if the branch is no block beside `passed`."""
        graph, removed = self._graph, set(self._between(passed, branch))
        sums: dict[str, ops.Operation] = {}
        waiting = list(removed)
        while waiting:
            for reader in graph.readers[waiting.pop()]:
                if isinstance(reader, ops.Add) and not removed.issuperset(reader.inputs):
                    sums[reader.name] = reader
                elif reader.name not in removed:
                    sums.pop(reader.name, None)
                    removed.add(reader.name)
                    waiting.append(reader.name)
        if total.name not in sums or passed in removed or removed & set(graph.outputs):
            return None
        if not self._may_pass(passed, total) or not all(self._may_vanish(each) for each in sums.values() if each is not total):
            return None
        removed |= self._needless(removed)
        layers = any(isinstance(graph.by_name[name], LAYERS) for name in removed)
        # What else the block reads would live shorter, or be rounded otherwise, without it.
        read = {name for each in removed for name in graph.by_name[each].inputs}
        return _Removed(removed) if layers and read <= removed | {passed} else None

    def _may_vanish(self, total: ops.Operation) -> bool:
        """Whether a sum and all sums behind it can be replaced by either input, as other blocks may be left out, too."""
        behind = [reader for reader in self._graph.readers[total.name] if isinstance(reader, ops.Add)]
        able = all(self._may_pass(name, total) or self._may_be_bent(name, total) for name in total.inputs)
        return able and all(map(self._may_vanish, behind))

    def _may_be_bent(self, tensor: str, total: ops.Operation) -> bool:
        """Whether the function behind a sum can take a tensor in its place, and both are rounded once, as the sum was."""
        readers, maker = self._graph.readers, self._graph.by_name.get(tensor)
        alone = readers[tensor] == (total,) and isinstance(maker, TAKES_FUNCTION)
        bent = len(readers[total.name]) == 1 and isinstance(readers[total.name][0], FUNCTIONS)
        return alone and bent and self._shapes[tensor] == self._shapes[total.name]

    def _may_pass(self, tensor: str, total: ops.Operation) -> bool:
        """Whether a tensor can stand for a sum: nothing behind the sum reads it, and both are rounded as they are."""
        last = max(self.position[reader.name] for reader in self._graph.readers[tensor])
        alone = last == self.position[total.name] and tensor not in self._graph.outputs
        return alone and {tensor, total.name} <= self._rounded.keys() and self._shapes[tensor] == self._shapes[total.name]

    def _between(self, first: str, last: str) -> set[str]:
        """Return the operations that compute a tensor from another one; none if they do not."""
        behind = {first}
        for operation in self._graph.operations:
            if behind.intersection(operation.inputs):
                behind.add(operation.name)
        found: set[str] = set()
        waiting = [last]
        while waiting:
            name = waiting.pop()
            if name in behind and name != first and name not in found:
                found.add(name)
                waiting.extend(self._graph.by_name[name].inputs)
        return found

    def _needless(self, removed: Collection[str]) -> set[str]:
        """Return further operations whose results only removed ones read."""
        found: set[str] = set()
        for operation in reversed(self._graph.operations):
            readers = self._graph.readers[operation.name]
            unread = bool(readers) and all(reader.name in removed or reader.name in found for reader in readers)
            if unread and operation.name not in removed and operation.name not in self._graph.outputs:
                found.add(operation.name)
        return found


def _names(apart: Sequence[tuple[str, _Removed]]) -> Iterator[str]:
    """Name blocks after what the names of their operations have in common, else after their residual sum."""
    common = [_common_name(removed) for _, removed in apart]
    for name, (total, _) in zip(common, apart, strict=True):
        yield name if name and common.count(name) == 1 else total


def _common_name(names: Collection[str]) -> str:
    """Return what dotted names have in common, whole parts only."""
    parts = zip(*(name.split(".") for name in names), strict=False)
    return ".".join(part[0] for part in takewhile(lambda each: len(set(each)) == 1, parts))
