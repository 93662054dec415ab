"""What can be left out of a graph: residual blocks, and channels.

A *structure* says what is kept. It maps the name of a block to 0 (left out) or 1, and the name of a group of channels to the
number that is kept. What it does not name is whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from hwsearch.network import operations as ops
from hwsearch.network.blocks import Block, find_blocks, without
from hwsearch.network.channels import ChannelClasses, ChannelGroup, channel_classes
from hwsearch.network.graph import Graph
from hwsearch.network.narrowed import KeptChannels, Parts, narrowed
from hwsearch.network.shapes import Shape

ENOUGH_FRAMES = 4096
"""Frames that are enough for the strides and kernels of any network; their number decides no option."""

Structure = Mapping[str, int]
"""What is kept of each option, by its name."""

Order = Sequence[int]
"""The classes of a group, the most important first."""


@dataclass(frozen=True, eq=False)
class Options:
    """What can be left out of a graph.

    Each layer is shaped by one group at most, and a group lies in one block or outside all of them. So the cost of a layer
    depends on two options at most.

    Attributes:
        blocks: in their order.
        groups: in the order of their first layers.
        classes: of the channels of every tensor.
    """

    blocks: tuple[Block, ...]
    groups: tuple[ChannelGroup, ...]
    classes: ChannelClasses

    @cached_property
    def by_name(self) -> dict[str, Block | ChannelGroup]:
        """Every option by name."""
        blocks: dict[str, Block | ChannelGroup] = {block.name: block for block in self.blocks}
        return blocks | {group.name: group for group in self.groups}

    def is_block(self, name: str) -> bool:
        """Whether an option is a block, and not a group of channels."""
        return isinstance(self.by_name[name], Block)

    def whole(self, name: str) -> int:
        """Return what a structure says of an option that is whole."""
        option = self.by_name[name]
        return 1 if isinstance(option, Block) else len(option.classes)

    def block_around(self, name: str) -> str | None:
        """Return the name of the block that an option is or lies in; None if it lies outside all blocks."""
        option = self.by_name[name]
        if isinstance(option, Block):
            return name
        return next((block.name for block in self.blocks if option.layers <= block.operations), None)

    def relevant(self, structure: Structure) -> dict[str, int]:
        """Return what a structure says, without what is whole and without channels of blocks that are left out.

        Raises:
            ValueError: an unknown option, or a number that it cannot have.
        """
        for name, kept in structure.items():
            if name not in self.by_name:
                raise ValueError(f"unknown option '{name}'; the network's options are like {sorted(self.by_name)[:3]}")
            least, most = 0 if isinstance(self.by_name[name], Block) else 1, self.whole(name)
            if not least <= kept <= most:
                raise ValueError(f"option '{name}' is {kept}; wanted {least} to {most}")
        out = self._removed(structure)
        return {
            name: structure[name]
            for name, option in self.by_name.items()
            if structure.get(name, self.whole(name)) != self.whole(name)
            and not (isinstance(option, ChannelGroup) and option.layers & out)
        }

    def narrowed(self, graph: Graph, structure: Structure, orders: Mapping[str, Order] | None = None) -> Graph:
        """Leave out what a structure does not keep.

        Args:
            graph: the whole network.
            structure: what is kept.
            orders: which channels of a group are kept first; without, those that come first.

        Raises:
            ValueError: an unknown option, or a number that it cannot have.
        """
        kept = self.relevant(structure)
        found = without(graph, self._removed(kept))
        if found is None:
            raise ValueError("these options are not those of the graph")
        removed, passed = found
        channels = self.kept_channels(kept, orders)
        operations: list[ops.Operation] = []
        parameters: dict[str, Tensor] = {}
        for operation in graph.operations:
            if operation.name not in removed and operation.name not in passed:
                narrow = operation
                parts: Parts = {part: graph.parameter(operation, part) for part in operation.parameters}
                if any(len(channels[name].kept) < channels[name].count for name in (*operation.inputs, operation.name)):
                    narrow, parts = narrowed(operation, parts, channels[operation.inputs[0]], channels[operation.name])
                operations.append(replace(narrow, inputs=tuple(passed.get(name, name) for name in operation.inputs)))
                parameters |= {f"{operation.name}.{part}": tensor for part, tensor in parts.items()}
        outputs = tuple(passed.get(name, name) for name in graph.outputs)
        return Graph(graph.inputs, tuple(operations), outputs, parameters)

    def kept_channels(self, structure: Structure, orders: Mapping[str, Order] | None = None) -> dict[str, KeptChannels]:
        """Return the channels of each tensor of the whole network that a structure keeps."""
        left = self._left(structure, orders or {})
        return {name: KeptChannels(classes, left) for name, classes in self.classes.of_tensor.items()}

    def _removed(self, structure: Structure) -> frozenset[str]:
        """Return the operations of the blocks that are left out."""
        out = (block.operations for block in self.blocks if structure.get(block.name) == 0)
        return frozenset[str]().union(*out)

    def _left(self, structure: Structure, orders: Mapping[str, Order]) -> list[int]:
        """Return the classes that are left out."""
        found: list[int] = []
        for group in self.groups:
            order = orders.get(group.name, group.classes)
            found.extend(order[structure.get(group.name, len(order)) :])
        return found


def find_options(graph: Graph, inputs: Mapping[str, Shape]) -> Options:
    """Find what can be left out of a graph, given the shapes of its inputs.

    Where two groups shape one layer or lie in one tensor, the one that fewer layers belong to is an option.
    """
    blocks, classes = find_blocks(graph, inputs), channel_classes(graph, inputs)
    chosen: list[ChannelGroup] = []
    for group in sorted(classes.groups, key=lambda each: len(each.layers)):
        apart = all(group.layers.isdisjoint(other.layers) and group.tensors.isdisjoint(other.tensors) for other in chosen)
        across = any(group.layers & block.operations and not group.layers <= block.operations for block in blocks)
        if apart and not across and len(group.classes) > 1:
            chosen.append(group)
    return Options(blocks, tuple(group for group in classes.groups if group in chosen), classes)
