"""The operators of a network in a TensorFlow Lite file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from hwsearch.errors import UserError
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.tflite.grids import StoredGrid
from hwsearch.export.tflite.parts import (
    Placed,
    clipped,
    place,
    requantized,
    widened,
    write_convolution,
    write_leaky_relu,
    write_relu,
    write_sum,
)
from hwsearch.export.tflite.writer import TfliteWriter
from hwsearch.network import operations as ops
from hwsearch.network.shapes import tensor_shapes
from hwsearch.network.sites import WEIGHT
from hwsearch.separator.quantizers import MAX_BITS


@dataclass(frozen=True, eq=False)
class TfliteGraph:
    """A network in a file that is not finished.

    Attributes:
        writer: the file.
        sites: the tensor of each activation site.
        input: the tensor that the file reads.
        output: the tensor that it makes.
    """

    writer: TfliteWriter
    sites: Mapping[str, Placed]
    input: Placed
    output: Placed

    def content(self, metadata: Mapping[str, bytes] | None = None, *, tapped: bool = False) -> bytes:
        """Return the file.

        Args:
            metadata: further content by name.
            tapped: whether the file makes the tensors of all sites instead of its output, to look at them.
        """
        made = [placed.number for placed in self.sites.values()] if tapped else [self.output.number]
        return self.writer.finished(self.input.number, made, metadata or {})

    def stored_input(self, normalised: Tensor) -> NDArray[Any]:
        """Quantize normalised features [1, features, frames] as the file reads them, [1, 1, frames, features]."""
        grid = self.input.grid
        quotient = (normalised / grid.grid.scale).round()
        integers = quotient.clamp(-grid.grid.zero_point, grid.grid.levels - grid.grid.zero_point) + grid.quantization.zero_point
        stored: NDArray[Any] = integers.numpy().transpose(0, 2, 1)[:, None].astype(grid.kind)
        return stored


def write_graph(network: ExportedNetwork, frames: int, *, int4: bool) -> TfliteGraph:
    """Write a network for features [1, 1, frames, features], which are normalised and quantized already.

    Args:
        network: the network.
        frames: number of frames.
        int4: whether weights may be int4.

    Raises:
        UserError: an operation that the format does not take.
    """
    writing = _Writing(network, frames, int4=int4)
    graph = network.network.graph
    for operation in graph.operations:
        writing.write(operation)
    (network_input,), (output,) = graph.inputs, graph.outputs
    sites = {site: writing.tensors[tensor] for site, tensor in network.network.graph_sites.tensors.items()}
    return TfliteGraph(writing.writer, sites, writing.tensors[network_input], writing.tensors[output])


class _Writing:
    """The walk through a network.

    Attributes:
        writer: the file.
        tensors: the tensors of the network in the file.
    """

    def __init__(self, network: ExportedNetwork, frames: int, *, int4: bool) -> None:
        quantized = network.network
        self._int4 = int4
        self._graph = quantized.master_copy()
        self._sites = quantized.graph_sites
        self._weights = {site: weight for site, weight in quantized.quantized_weights().items() if weight is not None}
        self._grids = {site: StoredGrid.of(grid) for site, grid in quantized.activation_grids().items() if grid is not None}
        (network_input,) = self._graph.inputs
        shapes = tensor_shapes(self._graph, {network_input: (network.features, frames)})
        self._shapes = {name: (shape[-1], shape[0]) for name, shape in shapes.items()}
        self._waiting: dict[str, ops.Operation] = {}  # operations that are rounded behind the function that follows them
        self.writer = TfliteWriter()
        self.tensors = {network_input: self._place(network_input, self._grids[network_input])}

    def write(self, operation: ops.Operation) -> None:
        """Write an operation, or let it wait for its function."""
        name = operation.name
        if name in self._sites.grids and name not in self._sites.of_tensor:
            raise _refused(operation)  # a part of another tensor
        if name not in self._sites.of_tensor:
            self._waiting[name] = operation
            return
        before = self._waiting.pop(operation.inputs[0], None)
        site = self._sites.of_tensor[name]
        grid = self._grids[site]
        match operation:
            case ops.Read():
                made = requantized(self.writer, name, self.tensors[operation.inputs[0]], grid)
            case ops.LeakyReLU(slope=slope):
                made = self._leaky_relu(operation, before, slope, grid)
            case ops.PReLU():
                slopes = self._graph.parameter(operation, "slope")
                made = self._leaky_relu(operation, before, float(slopes) if slopes.numel() == 1 else 0.0, grid)
            case ops.Elementwise(function=ops.Function.RELU) if before is not None:
                made = self._computed(before, grid, relu=True)
            case _:
                made = self._computed(operation, grid)
        if made.grid.is_wide and not grid.is_wide:
            made = requantized(self.writer, name, made, grid)
        starts_at_zero = isinstance(operation, ops.Elementwise) and grid.grid.zero_point == 0
        if grid.grid.bits < MAX_BITS and not starts_at_zero:
            made = clipped(self.writer, name, made)
        self.writer.rename(made.number, site)
        self.tensors[name] = made

    def _computed(self, operation: ops.Operation, grid: StoredGrid, *, relu: bool = False) -> Placed:
        """Write an operation into a tensor of a grid, or into int16 that covers it if the operation reads int16."""
        if not all(name in self.tensors for name in operation.inputs):
            raise _refused(operation)  # it is no function that a kernel does along with what is before it
        read = [self.tensors[name] for name in operation.inputs]
        if grid.is_wide or any(each.grid.is_wide for each in read):
            read = [widened(self.writer, each) for each in read]
            grid = _widest(grid)
        made = self._place(operation.name, grid)
        match operation:
            case ops.Convolution(groups=groups) if groups in (1, read[0].shape[1]):
                parameters = self._weights[operation.name + WEIGHT], self._graph.parameter(operation, "bias")
                write_convolution(self.writer, operation, parameters, read[0], made, relu=relu, int4=self._int4)
            case ops.Add() if read[0].shape == read[1].shape:
                write_sum(self.writer, read, made, relu=relu)
            case ops.Elementwise(function=ops.Function.RELU):
                write_relu(self.writer, read[0], made)
            case _:
                raise _refused(operation)
        return made

    def _leaky_relu(self, operation: ops.Operation, before: ops.Operation | None, slope: float, grid: StoredGrid) -> Placed:
        """Write a leaky ReLU in int16, with the operation before it, whose result the network does not round."""
        if slope <= 0:
            raise _refused(operation)
        if before is None:
            read = widened(self.writer, self.tensors[operation.inputs[0]])
        else:
            read = self._computed(before, StoredGrid.wide(grid.grid.low / slope, grid.grid.high))
        made = self._place(operation.name, _widest(grid))
        write_leaky_relu(self.writer, read, made, slope)
        return made

    def _place(self, name: str, grid: StoredGrid) -> Placed:
        return place(self.writer, name, grid, self._shapes[name])


def _widest(grid: StoredGrid) -> StoredGrid:
    """The grid itself if it is int16, else an int16 one that covers it."""
    return grid if grid.is_wide else StoredGrid.wide(grid.grid.low, grid.grid.high)


def _refused(operation: ops.Operation) -> UserError:
    kind = type(operation).__name__
    return UserError(
        f"'{operation.name}' is a {kind} that --format tflite does not take; wanted convolutions, dense or depthwise, sums of "
        "tensors of one shape, ReLU, and leaky ReLU with one positive slope"
    )
