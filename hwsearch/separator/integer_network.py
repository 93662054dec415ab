"""A graph whose layers of few bits run on integer kernels, and everything else in floats.

A tensor is held as integers where a kernel made it or a kernel reads it, and as values where anything else reads it. Values keep
the graph's axes, [batch, channels, frames]. Behind a kernel they lie channels-last in memory, and elementwise operations leave
them so.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from hwsearch.network.graph import Graph
from hwsearch.network.operations import Add, Elementwise, Function, LeakyReLU, Operation, Pad, PReLU, Read, Slice
from hwsearch.network.sites import LAYERS, Sites
from hwsearch.separator.integer import MAX_BITS, IntegerLayer, from_grid, has_kernel, integers_on, is_product, run_layer, to_grid
from hwsearch.separator.quantizers import ActivationGrid, fake_quantize

_FRAMES_LAST = 3
"""Axes of a tensor whose last are channels and frames."""


@dataclass(frozen=True)
class Fused:
    """A function that a layer's kernel takes with it.

    Attributes:
        name: of the function and of the tensor that it makes.
        slope: where its argument is negative.
    """

    name: str
    slope: float


def fused(graph: Graph) -> dict[str, Fused]:
    """The functions that kernels take, by layer: a ReLU, and behind a matrix product any that has one slope."""
    found = {}
    for layer in graph.operations:
        readers = graph.readers[layer.name]
        if has_kernel(graph, layer) and len(readers) == 1 and layer.name not in graph.outputs:
            slope = _slope(graph, readers[0])
            if slope == 0.0 or (slope is not None and is_product(layer, graph.parameter(layer, "weight"))):
                found[layer.name] = Fused(readers[0].name, slope)
    return found


def _slope(graph: Graph, function: Operation) -> float | None:
    """The slope where the argument is negative, if an operation is linear on both sides of zero and leaves what is above."""
    match function:
        case Elementwise(function=Function.RELU):
            return 0.0
        case LeakyReLU(slope=slope):
            return slope
        case PReLU():
            slopes = graph.parameter(function, "slope")
            return float(slopes) if slopes.numel() == 1 else None
        case _:
            return None


@dataclass(frozen=True, eq=False)
class _Integers:
    """A tensor on a grid: uint8, channels-last."""

    tensor: Tensor
    grid: ActivationGrid


@dataclass(frozen=True, eq=False)
class _Tensors:
    """The tensors of one run that are still to be read, in one form or in both."""

    values: dict[str, Tensor]
    integers: dict[str, _Integers]

    def value(self, name: str) -> Tensor:
        """A tensor's values; those that integers stand for are kept."""
        if name not in self.values:
            integers = self.integers[name]
            self.values[name] = _turned(from_grid(integers.tensor, integers.grid))
        return self.values[name]

    def read_by(self, operation: Operation) -> tuple[Tensor, ...]:
        """The values that an operation reads."""
        if isinstance(operation, Slice):  # of a second input it reads the length
            return self.value(operation.inputs[0]), *map(self.in_one_form, operation.inputs[1:])
        return tuple(map(self.value, operation.inputs))

    def in_one_form(self, name: str) -> Tensor:
        """A tensor with the graph's axes, in a form that it has."""
        return _turned(self.integers[name].tensor) if name in self.integers else self.values[name]

    def drop(self, names: Iterable[str]) -> None:
        """Forget tensors."""
        for name in names:
            self.values.pop(name, None)
            self.integers.pop(name, None)


class IntegerNetwork:
    """A graph at one allocation.

    Args:
        graph: the network, of one input and one output.
        sites: its sites.
        functions: what `fused` found in the graph.
        layers: those that run on kernels, by name.
        grids: by activation site; none where a site stays in floating point.
        how: computes any other operation from values.
    """

    def __init__(
        self,
        graph: Graph,
        sites: Sites,
        functions: Mapping[str, Fused],
        layers: Mapping[str, IntegerLayer],
        grids: Mapping[str, ActivationGrid | None],
        how: Callable[[Operation, tuple[Tensor, ...]], Tensor],
    ) -> None:
        self._graph = graph
        self._layers = layers
        self._fused = {layer: function for layer, function in functions.items() if layer in layers}
        self._taken = {function.name for function in self._fused.values()}
        self._grids = {tensor: grid for site, tensor in sites.tensors.items() if (grid := grids[site]) is not None}
        self._how = how
        (self._input,), (self._output,) = graph.inputs, graph.outputs
        self._as_integers = self._read_as_integers()
        self._as_values = self._read_as_values()

    def on_input(self, name: str, features: Tensor) -> Tensor:
        """What a layer that reads the input makes of it, not rounded: [batch, channels, frames] of both."""
        if name in self._layers:
            layer = self._layers[name]
            x = _turned(integers_on(features, layer.read)).contiguous()
            return _turned(run_layer(x, layer, None, self._function_of(name).slope))
        grid = self._grids.get(self._input)
        return self._how(self._graph.by_name[name], (features if grid is None else fake_quantize(features, grid),))

    def run(self, features: Tensor, on_input: Callable[[str], Tensor]) -> Tensor:
        """The graph's output, [batch, channels, frames].

        Args:
            features: the input.
            on_input: by a layer's name, gives what the method `on_input` made for it, now or earlier. It is not changed.
        """
        tensors = _Tensors({}, {})
        if not all(isinstance(reader, LAYERS) for reader in self._graph.readers[self._input]) or self._input == self._output:
            self._round(self._input, features, tensors)
        for operation in self._graph.operations:
            if operation.name not in self._taken:
                self._run(operation, tensors, on_input)
            tensors.drop(self._graph.last_reads[operation.name])
        if self._output in tensors.integers:
            output = tensors.integers[self._output]
            return from_grid(_turned(output.tensor).contiguous(), output.grid)
        return tensors.values[self._output].contiguous()

    def _run(self, operation: Operation, tensors: _Tensors, on_input: Callable[[str], Tensor]) -> None:
        """Add what an operation makes to the tensors, or what the function makes that its kernel takes."""
        name = self._function_of(operation.name).name
        if isinstance(operation, LAYERS) and operation.inputs[0] == self._input:
            self._round(name, on_input(operation.name), tensors)
        elif operation.name in self._layers:
            self._run_kernel(operation, tensors)
        elif name in self._as_integers and self._moves(operation):
            tensors.integers[name] = self._moved(operation, tensors)
        elif isinstance(operation, Add):
            self._round(name, self._sum(operation, tensors), tensors)
        else:
            self._round(name, self._how(operation, tensors.read_by(operation)), tensors)

    def _run_kernel(self, operation: Operation, tensors: _Tensors) -> None:
        function = self._function_of(operation.name)
        grid = self._grids.get(function.name)
        layer, x = self._layers[operation.name], tensors.integers[operation.inputs[0]].tensor
        if grid is not None and grid.bits <= MAX_BITS:
            tensors.integers[function.name] = _Integers(run_layer(x, layer, grid, function.slope), grid)
        else:
            self._round(function.name, _turned(run_layer(x, layer, None, function.slope)), tensors)

    def _function_of(self, operation: str) -> Fused:
        """The function that a layer's kernel takes with it; without one, that which leaves its result as it is."""
        return self._fused.get(operation) or Fused(operation, 1.0)

    def _sum(self, operation: Operation, tensors: _Tensors) -> Tensor:
        """A sum of values, in place of the first where nothing else needs them."""
        one, other = operation.inputs
        values, more = tensors.value(one), tensors.value(other)
        ours = one != other and one in self._graph.last_reads[operation.name] and self._is_its_own(one)
        return values.add_(more) if ours and values.shape == more.shape else values + more

    def _round(self, name: str, x: Tensor, tensors: _Tensors) -> None:
        """Round a tensor to its grid where it has one, and keep it in the forms in which it is read."""
        grid = self._grids.get(name)
        if grid is None:
            tensors.values[name] = x
        elif name not in self._as_integers:
            tensors.values[name] = fake_quantize(x, grid)
        elif name in self._as_values:
            integers, tensors.values[name] = to_grid(x, grid)
            tensors.integers[name] = _Integers(_turned(integers).contiguous(), grid)
        else:
            tensors.integers[name] = _Integers(_turned(integers_on(x, grid)).contiguous(), grid)

    def _read_as_integers(self) -> frozenset[str]:
        """The tensors that kernels read, and those that these are parts of. What reads the input is computed apart."""
        found = {self._graph.by_name[layer].inputs[0] for layer in self._layers} - {self._input}
        for operation in reversed(self._graph.operations):
            if operation.name in found and self._moves(operation):
                found.add(operation.inputs[0])
        return frozenset(found)

    def _read_as_values(self) -> frozenset[str]:
        """The tensors that are read by what is neither a kernel nor moves integers."""
        return frozenset(
            name
            for operation in self._graph.operations
            if operation.name not in self._layers and not (operation.name in self._as_integers and self._moves(operation))
            for name in operation.inputs
        )

    def _moves(self, operation: Operation) -> bool:
        """Whether an operation leaves the integers that it reads as they are: their grid is that of its result."""
        grid = self._grids.get(operation.name)
        match operation:
            case Slice() | Pad():
                return grid is None
            case Read(inputs=(source,)):
                return grid is not None and grid == self._grids.get(source)
            case _:
                return False

    def _moved(self, operation: Operation, tensors: _Tensors) -> _Integers:
        """What such an operation makes."""
        source = tensors.integers[operation.inputs[0]]
        match operation:
            case Slice():
                part = self._how(operation, tuple(map(tensors.in_one_form, operation.inputs)))
                return _Integers(_turned(part).contiguous(), source.grid)
            case Pad(padding=padding):
                padded = functional.pad(source.tensor, (0, 0, *padding), value=source.grid.zero_point)
                return _Integers(padded, source.grid)
            case _:
                return source

    def _is_its_own(self, tensor: str) -> bool:
        """Whether a tensor's values were made for it by rounding, and no other tensor's are the same in memory."""
        if tensor not in self._grids:
            return False
        others = [reader.name for reader in self._graph.readers[tensor] if isinstance(reader, Slice | Pad | Read)]
        return all(name in self._grids for name in others)


def _turned(x: Tensor) -> Tensor:
    """Channels and frames exchanged, where there are frames."""
    return x.transpose(1, 2) if x.ndim == _FRAMES_LAST else x
