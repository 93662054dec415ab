"""Groups of channels that can be left out of a graph together.

Only layers make new channels. A sum of two tensors adds their channels one by one, so channels at the
same place stand or fall together, and so do those of a depthwise layer and of its input. Such channels are a *class*. The
classes that lie in the same tensors are a *group*: any number of them can be left out.

A class stays whole if something else decides its number of channels: an input or an output of the graph, a layer with several
groups, a linear layer over channels, a norm with several groups, a softmax over channels, or a sum or product that broadcasts.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from hwsearch.network import operations as ops
from hwsearch.network.graph import Graph
from hwsearch.network.shapes import Shape, tensor_shapes
from hwsearch.network.sites import LAYERS

CHANNELS = ".channels"
"""What the name of a group of channels ends with."""

Channels = NDArray[np.int64]
"""The class of each channel of a tensor."""

_CHANNEL_AXIS = 1


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can be left out together.

    Attributes:
        name: `LAYER.channels`, after the first layer that makes them.
        classes: numbers of their classes, in rising order.
        layers: names of the layers that make or read them.
        tensors: names of the tensors that they lie in.
    """

    name: str
    classes: tuple[int, ...]
    layers: frozenset[str]
    tensors: frozenset[str]


@dataclass(frozen=True, eq=False)
class ChannelClasses:
    """The classes of the channels of a graph.

    Attributes:
        of_tensor: the classes of the channels of each tensor.
        groups: in the order of their first layers.
    """

    of_tensor: Mapping[str, Channels]
    groups: tuple[ChannelGroup, ...]


def channel_classes(graph: Graph, inputs: Mapping[str, Shape]) -> ChannelClasses:
    """Find the classes and groups of a graph, given the shapes of its inputs."""
    found = _Classes(graph, tensor_shapes(graph, inputs))
    tensors = {name: found.resolved(channels) for name, channels in found.tensors.items()}
    return ChannelClasses(tensors, tuple(_groups(graph, tensors, found.whole())))


def _groups(graph: Graph, tensors: Mapping[str, Channels], whole: frozenset[int]) -> Iterable[ChannelGroup]:
    """List the groups."""
    holders: dict[int, list[str]] = {}
    for name in graph.by_name:
        for each in set(tensors[name].tolist()) - whole:
            holders.setdefault(each, []).append(name)
    together: dict[tuple[str, ...], list[int]] = {}
    for each, held in holders.items():
        together.setdefault(tuple(held), []).append(each)
    used: set[str] = set()
    for names, classes in sorted(together.items(), key=lambda entry: min(entry[1])):
        near = dict.fromkeys((*names, *(reader.name for name in names for reader in graph.readers[name])))
        layers = [name for name in near if isinstance(graph.by_name[name], LAYERS)]
        group = next(each for each in _names(layers[0] if layers else names[0]) if each not in used)
        used.add(group)
        yield ChannelGroup(group, tuple(sorted(classes)), frozenset(layers), frozenset(names))


def _names(layer: str) -> Iterable[str]:
    """Names for the groups that a layer makes, which are seldom more than one."""
    yield layer + CHANNELS
    number = 2
    while True:
        yield f"{layer}{CHANNELS}.{number}"
        number += 1


class _Classes:
    """A union-find over the channels of all tensors."""

    def __init__(self, graph: Graph, shapes: Mapping[str, Shape]) -> None:
        self._graph = graph
        self._shapes = shapes
        self._parents: list[int] = []
        self._whole: set[int] = set()
        self.tensors: dict[str, Channels] = {}
        for name in graph.inputs:
            self.tensors[name] = self._new(shapes[name][0])
            self._keep(self.tensors[name])
        for operation in graph.operations:
            self.tensors[operation.name] = self._made(operation)
        for name in graph.outputs:
            self._keep(self.tensors[name])

    def resolved(self, channels: Channels) -> Channels:
        """Return the classes of channels."""
        return np.array([self._root(int(each)) for each in channels], np.int64)

    def whole(self) -> frozenset[int]:
        """Return the classes that stay whole."""
        return frozenset(self._root(each) for each in self._whole)

    def _made(self, operation: ops.Operation) -> Channels:
        read = [self.tensors[name] for name in operation.inputs]
        make = self._MAKE.get(type(operation), _Classes._same)
        return make(self, operation, self._shapes[operation.name], *read)

    def _same(self, _: ops.Operation, __: Shape, read: Channels, *___: Channels) -> Channels:
        return read

    def _layer(self, operation: ops.Convolution | ops.TransposedConvolution, shape: Shape, read: Channels) -> Channels:
        if operation.groups == 1:
            return self._new(shape[0])
        if isinstance(operation, ops.Convolution) and operation.groups == len(read) == shape[0]:
            return read
        return self._apart(read, shape[0])

    def _linear(self, _: ops.Linear, shape: Shape, read: Channels) -> Channels:
        """A product over the channels, once a mean has taken the frames; else over the frames."""
        return self._apart(read, shape[0]) if len(shape) == 1 else read

    def _joined(self, operation: ops.Concatenate, _: Shape, *read: Channels) -> Channels:
        if operation.axis == _CHANNEL_AXIS:
            return np.concatenate(read)
        for other in read[1:]:
            self._join(read[0], other)
        return read[0]

    def _part(self, operation: ops.Slice, shape: Shape, read: Channels, *length: Channels) -> Channels:
        if operation.axis != _CHANNEL_AXIS:
            return read
        for each in (read, *length) if length else ():
            self._keep(each)
        return read[operation.start :][: shape[0]] if length else read[operation.start : operation.stop]

    def _norm(self, operation: ops.GroupNorm, _: Shape, read: Channels) -> Channels:
        if operation.groups > 1:
            self._keep(read)
        return read

    def _softmax(self, operation: ops.Softmax, _: Shape, read: Channels) -> Channels:
        if operation.axis == _CHANNEL_AXIS:
            self._keep(read)
        return read

    def _paired(self, _: ops.Operation, __: Shape, first: Channels, second: Channels) -> Channels:
        if len(first) == len(second):
            self._join(first, second)
            return first
        for each in (first, second):
            self._keep(each)
        return max(first, second, key=len)

    def _apart(self, read: Channels, made: int) -> Channels:
        """Keep whole what a layer reads and makes."""
        self._keep(read)
        found = self._new(made)
        self._keep(found)
        return found

    def _new(self, count: int) -> Channels:
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return np.arange(first, first + count, dtype=np.int64)

    def _keep(self, channels: Channels) -> None:
        self._whole.update(int(each) for each in channels)

    def _join(self, first: Channels, second: Channels) -> None:
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            low, high = sorted((self._root(a), self._root(b)))
            self._parents[high] = low

    def _root(self, channel: int) -> int:
        while self._parents[channel] != channel:
            self._parents[channel] = self._parents[self._parents[channel]]
            channel = self._parents[channel]
        return channel

    _MAKE: ClassVar[Mapping[type[ops.Operation], Callable[..., Channels]]] = {
        ops.Convolution: _layer,
        ops.TransposedConvolution: _layer,
        ops.Linear: _linear,
        ops.Add: _paired,
        ops.Multiply: _paired,
        ops.Concatenate: _joined,
        ops.Slice: _part,
        ops.GroupNorm: _norm,
        ops.Softmax: _softmax,
    }
    """Returns the classes of what an operation makes, from the shape of it and the classes of what it reads."""
