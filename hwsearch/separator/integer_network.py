"""A graph whose layers of few bits run on integer kernels, and everything else in floats.

Kernels make and read integers; everything else reads values. Values have the axes of the graph, [batch, channels, frames]. Behind
a kernel they are channels-last in memory, and remain so behind elementwise operations.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from torch.nn import functional

from hwsearch.network.graph import Graph
from hwsearch.network.operations import Add, Elementwise, Function, LeakyReLU, Operation, Pad, PReLU, Read, Slice
from hwsearch.network.run import Compute
from hwsearch.network.sites import LAYERS, Sites
from hwsearch.separator.integer import IntegerLayer, from_grid, has_kernel, integers_on, is_product, run_layer, to_grid
from hwsearch.separator.quantizers import MAX_BITS, ActivationGrid, fake_quantize

_FRAMES_LAST = 3
"""Axes of a tensor with channels and frames."""


@dataclass(frozen=True)
class Fused:
    """A function that the kernel of a layer computes; `slope` is that for negative arguments."""

    name: str
    slope: float


def fused(graph: Graph) -> dict[str, Fused]:
    """Find the functions that kernels compute, by layer: a ReLU, or behind a matrix product any with one slope."""
    found = {}
    for layer in graph.operations:
        readers = graph.readers[layer.name]
        if has_kernel(graph, layer) and len(readers) == 1 and layer.name not in graph.outputs:
            slope = _slope(graph, readers[0])
            if slope == 0.0 or (slope is not None and is_product(layer, graph.parameter(layer, "weight"))):
                found[layer.name] = Fused(readers[0].name, slope)
    return found


def _slope(graph: Graph, function: Operation) -> float | None:
    """Return the slope of a function for negative arguments, if it has one slope and leaves positive ones as they are."""
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
    """The tensors of one run that are not dead, as values, integers or both; and how layers compute the input."""

    values: dict[str, Tensor]
    integers: dict[str, _Integers]
    on_input: Callable[[str], Tensor]

    def value(self, name: str) -> Tensor:
        """Return the values of a tensor; convert integers only once."""
        if name not in self.values:
            integers = self.integers[name]
            self.values[name] = _turned(from_grid(integers.tensor, integers.grid))
        return self.values[name]

    def read_by(self, operation: Operation) -> tuple[Tensor, ...]:
        """Return the inputs of an operation as values."""
        if isinstance(operation, Slice):  # reads only the length of a second input
            return self.value(operation.inputs[0]), *map(self.in_one_form, operation.inputs[1:])
        return tuple(map(self.value, operation.inputs))

    def in_one_form(self, name: str) -> Tensor:
        """Return the integers or else the values of a tensor, with the axes of the graph."""
        return _turned(self.integers[name].tensor) if name in self.integers else self.values[name]

    def drop(self, names: Iterable[str]) -> None:
        for name in names:
            self.values.pop(name, None)
            self.integers.pop(name, None)


class IntegerNetwork:
    """A graph at one allocation.

    Args:
        graph: the network with quantized weights, with one input and one output.
        sites: the sites of the graph.
        functions: the result of `fused`.
        layers: those that run on kernels, by name.
        grids: by activation site; None for floating point.
        how: computes other operations from values.
    """

    def __init__(
        self,
        graph: Graph,
        sites: Sites,
        functions: Mapping[str, Fused],
        layers: Mapping[str, IntegerLayer],
        grids: Mapping[str, ActivationGrid | None],
        how: Compute,
    ) -> None:
        self._graph = graph
        self._layers = layers
        self._fused = {layer: function for layer, function in functions.items() if layer in layers}
        self._grids = {tensor: grid for site, tensor in sites.tensors.items() if (grid := grids[site]) is not None}
        self._how = how
        (self._input,), (self._output,) = graph.inputs, graph.outputs
        self._as_integers = self._read_as_integers()
        self._as_values = self._read_as_values()
        on_layers = all(isinstance(reader, LAYERS) for reader in graph.readers[self._input])
        self._rounds_input = not on_layers or self._input == self._output
        taken = {function.name for function in self._fused.values()}
        self._steps = [
            (self._function_of(operation.name).name, self._step(operation), graph.last_reads[operation.name])
            for operation in graph.operations
            if operation.name not in taken
        ]

    def on_input(self, name: str, features: Tensor) -> Tensor:
        """Compute a layer that reads the input, without rounding the result; both are [batch, channels, frames]."""
        if name in self._layers:
            layer = self._layers[name]
            x = _turned(integers_on(features, layer.read)).contiguous()
            return _turned(run_layer(x, layer, None, self._function_of(name).slope))
        grid = self._grids.get(self._input)
        return self._how(self._graph.by_name[name], self._graph, (features if grid is None else fake_quantize(features, grid),))

    def run(self, features: Tensor, on_input: Callable[[str], Tensor]) -> Tensor:
        """Compute the output, [batch, channels, frames].

        Args:
            features: the input.
            on_input: returns the result of the method `on_input` for a layer, possibly from a cache. It is not changed.
        """
        tensors = _Tensors({}, {}, on_input)
        if self._rounds_input:
            self._round(self._input, features, tensors)
        for name, step, dead in self._steps:
            made = step(tensors)
            if isinstance(made, _Integers):
                tensors.integers[name] = made
            else:
                self._round(name, made, tensors)
            tensors.drop(dead)
        if self._output in tensors.integers:
            output = tensors.integers[self._output]
            return from_grid(_turned(output.tensor).contiguous(), output.grid)
        return tensors.values[self._output].contiguous()

    def _step(self, operation: Operation) -> Callable[[_Tensors], "Tensor | _Integers"]:
        """Choose how an operation is computed, together with the function that its kernel takes."""
        name = operation.name
        if isinstance(operation, LAYERS) and operation.inputs[0] == self._input:
            return lambda tensors: tensors.on_input(name)
        if name in self._layers:
            return partial(self._kernel, operation)
        if name in self._as_integers and self._moves(operation):
            return partial(self._moved, operation)
        if isinstance(operation, Add):
            return partial(self._sum, operation)
        return lambda tensors: self._how(operation, self._graph, tensors.read_by(operation))

    def _kernel(self, operation: Operation, tensors: _Tensors) -> "Tensor | _Integers":
        function, x = self._function_of(operation.name), tensors.integers[operation.inputs[0]].tensor
        grid = self._grids.get(function.name)
        if grid is None or grid.bits > MAX_BITS:
            return _turned(run_layer(x, self._layers[operation.name], None, function.slope))
        return _Integers(run_layer(x, self._layers[operation.name], grid, function.slope), grid)

    def _function_of(self, operation: str) -> Fused:
        """Return the function that the kernel of a layer computes, or one that changes nothing."""
        return self._fused.get(operation) or Fused(operation, 1.0)

    def _sum(self, operation: Operation, tensors: _Tensors) -> Tensor:
        """Add values, in place of the first if nothing else needs them."""
        one, other = operation.inputs
        values, more = tensors.value(one), tensors.value(other)
        ours = one != other and one in self._graph.last_reads[operation.name] and self._is_its_own(one)
        return values.add_(more) if ours and values.shape == more.shape else values + more

    def _round(self, name: str, x: Tensor, tensors: _Tensors) -> None:
        """Round a tensor to its grid, if it has one, and keep it in the forms in which it is read."""
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
        """Find the tensors that kernels read, and those that these are parts of; but not the input of the network."""
        found = {self._graph.by_name[layer].inputs[0] for layer in self._layers} - {self._input}
        for operation in reversed(self._graph.operations):
            if operation.name in found and self._moves(operation):
                found.add(operation.inputs[0])
        return frozenset(found)

    def _read_as_values(self) -> frozenset[str]:
        """Find the tensors that an operation reads that neither runs on a kernel nor moves integers."""
        return frozenset(
            name
            for operation in self._graph.operations
            if operation.name not in self._layers and not (operation.name in self._as_integers and self._moves(operation))
            for name in operation.inputs
        )

    def _moves(self, operation: Operation) -> bool:
        """Whether an operation only moves integers: input and result have the same grid."""
        grid = self._grids.get(operation.name)
        match operation:
            case Slice() | Pad():
                return grid is None
            case Read(inputs=(source,)):
                return grid is not None and grid == self._grids.get(source)
            case _:
                return False

    def _moved(self, operation: Operation, tensors: _Tensors) -> _Integers:
        """Compute an operation that only moves integers."""
        source = tensors.integers[operation.inputs[0]]
        match operation:
            case Slice():
                part = self._how(operation, self._graph, tuple(map(tensors.in_one_form, operation.inputs)))
                return _Integers(_turned(part).contiguous(), source.grid)
            case Pad(padding=padding):
                padded = functional.pad(source.tensor, (0, 0, *padding), value=source.grid.zero_point)
                return _Integers(padded, source.grid)
            case _:
                return source

    def _is_its_own(self, tensor: str) -> bool:
        """Whether the values of a tensor are the result of rounding and share no memory with another tensor."""
        if tensor not in self._grids:
            return False
        others = [reader.name for reader in self._graph.readers[tensor] if isinstance(reader, Slice | Pad | Read)]
        return all(name in self._grids for name in others)


def _turned(x: Tensor) -> Tensor:
    """Exchange channels and frames, if there are frames."""
    return x.transpose(1, 2) if x.ndim == _FRAMES_LAST else x
