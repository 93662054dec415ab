"""A network as the cost simulator sees it: layer shapes and sites, no weights.

An operation of the graph is a layer, except that

- a ReLU, leaky ReLU or PReLU that is rounded together with a layer, sum or norm costs nothing beside it; a sigmoid or hyperbolic
  tangent there is a function in place;
- a part or padded form of a tensor is read where it lies: its reader is a layer that does not read whole tensors;
- what only a concatenation reads is written where the concatenation has it; the rest of its inputs are copied.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from hw_models.workload import WEIGHTED, Layer, LayerKind, Workload
from hwsearch.network.graph import Graph
from hwsearch.network.operations import (
    Add,
    Affine,
    Concatenate,
    Convolution,
    Elementwise,
    Function,
    GroupNorm,
    LayerNorm,
    Linear,
    Mean,
    Multiply,
    Operation,
    Pad,
    PReLU,
    Slice,
    Softmax,
    TransposedConvolution,
)
from hwsearch.network.shapes import Shape, tensor_shapes
from hwsearch.network.sites import FUNCTIONS, LAYERS, WEIGHT, Sites

_FRAMES = 2
"""The axis of frames, the batch's counted."""

_KINDS: Mapping[type[Operation], LayerKind] = {
    Add: LayerKind.ADD,
    Multiply: LayerKind.MULTIPLY,
    Mean: LayerKind.POOL,
    GroupNorm: LayerKind.NORM,
    LayerNorm: LayerKind.NORM,
    Softmax: LayerKind.SOFTMAX,
}
"""Operations without weights that are a layer each."""


def build_workload(
    graph: Graph,
    sites: Sites,
    channels: Mapping[str, int],
    frames: int,
    frame_seconds: float,
    name: str,
    *,
    per_channel: bool,
) -> Workload:
    """The workload of one inference.

    Args:
        graph: the network, folded.
        sites: its sites.
        channels: of each of its inputs.
        frames: of its inputs.
        frame_seconds: from one frame to the next.
        name: what messages call the workload.
        per_channel: whether weights have a scale per output channel.

    Raises:
        ValueError: an operation that does not take tensors of the shapes that it gets, or that is none of a folded graph.
    """
    shapes = tensor_shapes(graph, {tensor: (channels[tensor], frames) for tensor in graph.inputs})
    layers = tuple(_Layers(graph, sites, shapes, frames))
    causal = not any(layer.ahead for layer in layers)
    return Workload(
        name=name,
        layers=tuple(_without_usual_ahead(layer, causal=causal) for layer in layers),
        frames=frames,
        frame_seconds=frame_seconds,
        per_channel_scales=per_channel,
        site_channels={site: shapes[tensor][0] for site, tensor in sites.tensors.items()},
        causal=causal,
    )


def _without_usual_ahead(layer: Layer, *, causal: bool) -> Layer:
    """Drop a layer's look-ahead if it is the usual one, which the workload's `causal` already states."""
    usual = 0 if causal else (layer.kernel_size - 1) * layer.dilation // 2
    return replace(layer, ahead=None) if layer.ahead == usual else layer


class _Layers:
    """Goes through a graph once."""

    def __init__(self, graph: Graph, sites: Sites, shapes: Mapping[str, Shape], frames: int) -> None:
        self._graph = graph
        self._sites = sites
        self._shapes = shapes
        self._frames = frames

    def __iter__(self) -> Iterator[Layer]:
        for operation in self._graph.operations:
            layer = self._layer(operation)
            if layer is not None:
                yield layer

    def _layer(self, operation: Operation) -> Layer | None:
        """Return the layer that an operation is charged as; none if it costs nothing of its own."""
        if (kind := _KINDS.get(type(operation))) is not None:
            over_frames = isinstance(operation, GroupNorm) or (isinstance(operation, Softmax) and operation.axis == _FRAMES)
            return self._plain(operation, kind, over_positions=over_frames)
        match operation:
            case Slice() | Pad():
                return None
            case Concatenate():
                return self._copied(operation)
            case Convolution() | TransposedConvolution() | Linear():
                return self._weighted(operation)
        return self._function(operation)

    def _function(self, operation: Operation) -> Layer | None:
        """A function of every value, on its own or in place; none where it costs nothing beside the layer before it."""
        read, written = (self._shapes[name] for name in (operation.inputs[0], operation.name))
        if isinstance(operation, Affine) or len(operation.inputs) != 1 or read != written:
            raise ValueError(f"'{operation.name}' is a {type(operation).__name__}, which is not charged")
        straight = not isinstance(operation, Elementwise) or operation.function is Function.RELU
        fused = isinstance(operation, FUNCTIONS) and operation.inputs[0] not in self._sites.grids
        return None if fused and straight else self._plain(operation, LayerKind.FUNCTION)

    def _weighted(self, operation: Convolution | TransposedConvolution | Linear) -> Layer:
        if isinstance(operation, Linear):
            return self._plain(operation, LayerKind.CONV)
        read, written = self._shapes[operation.inputs[0]], self._shapes[operation.name]
        groups, kernel = operation.groups, self._graph.parameter(operation, "weight").shape[2]
        depthwise = isinstance(operation, Convolution) and groups > 1 and groups == read[0] == written[0]
        kind = LayerKind.CONV if isinstance(operation, Convolution) else LayerKind.TRANSPOSED
        layer = self._plain(operation, LayerKind.DEPTHWISE if depthwise else kind)
        layer = replace(layer, kernel_size=kernel, dilation=operation.dilation, groups=1 if depthwise else groups)
        if kernel == 1 or not layer.keeps_frames:
            return layer
        padding = operation.padding if isinstance(operation, TransposedConvolution) else operation.padding[1]
        return replace(layer, ahead=padding)

    def _copied(self, operation: Concatenate) -> Layer | None:
        """What of a concatenation is not written there by the layers before it."""
        copied = [name for name in operation.inputs if name in self._sites.grids]
        if not copied:
            return None
        shapes = [self._shapes[name] for name in copied]
        layer = self._plain(operation, LayerKind.CONCATENATE)
        whole = layer.whole and len(copied) == len(operation.inputs) > 1 and operation.axis != _FRAMES
        channels = shapes[0][0] if operation.axis == _FRAMES else sum(shape[0] for shape in shapes)
        positions = sum(_positions(shape) for shape in shapes) if operation.axis == _FRAMES else _positions(shapes[0])
        return replace(
            layer,
            in_channels=channels,
            out_channels=channels,
            input_sites=tuple(self._sites.grids[name] for name in copied),
            positions=self._unlike(positions),
            input_positions=None,
            whole=whole,
        )

    def _plain(self, operation: Operation, kind: LayerKind, *, over_positions: bool = False) -> Layer:
        """A layer of one tap that reads all inputs of an operation and writes where its result ends up."""
        read, written = self._shapes[operation.inputs[0]], self._shapes[operation.name]
        channels = read[0] if kind in (LayerKind.CONV, LayerKind.TRANSPOSED) else written[0]
        pair = kind in (LayerKind.ADD, LayerKind.MULTIPLY)
        positions, input_positions = _positions(written), _positions(written if pair else read)
        return Layer(
            name=operation.name,
            kind=kind,
            in_channels=channels,
            out_channels=written[0],
            kernel_size=1,
            dilation=1,
            weight_site=operation.name + WEIGHT if kind in WEIGHTED else None,
            input_sites=tuple(self._read(name) for name in operation.inputs),
            output_site=self._written(operation.name),
            bias=kind in WEIGHTED,
            positions=self._unlike(positions),
            input_positions=input_positions if input_positions != positions or self._moves(operation) else None,
            whole=self._is_whole(operation, pair=pair),
            over_positions=over_positions,
            constants=self._constants(operation),
        )

    def _constants(self, operation: Operation) -> int:
        """Trained numbers of an operation, and of the function that goes with it, that neither are weights nor biases of a layer
        nor the one slope that a site's record holds.
        """
        count = 0
        if not isinstance(operation, LAYERS):
            sizes = [self._graph.parameter(operation, part).numel() for part in operation.parameters]
            recorded = isinstance(operation, PReLU) and sizes == [1] and operation.name in self._sites.tensors.values()
            count = 0 if recorded else sum(sizes)
        if operation.name not in self._sites.grids and isinstance(reader := self._graph.readers[operation.name][0], PReLU):
            count += self._constants(reader)
        return count

    def _is_whole(self, operation: Operation, *, pair: bool) -> bool:
        """Whether an operation reads and writes tensors of the shapes that their sites have, and no others."""
        for name in operation.inputs:
            site = self._sites.grids.get(name)
            if site is not None and self._shapes[name] != self._shapes[self._sites.tensors[site]]:
                return False
            if pair and self._shapes[name] != self._shapes[operation.name]:
                return False
        site = self._written(operation.name)
        return self._shapes[operation.name] == self._shapes[self._sites.tensors[site]]

    def _moves(self, operation: Operation) -> bool:
        """Whether an operation reads a tensor that is cut or padded along its frames."""
        return any(isinstance(view, Pad) or view.axis == _FRAMES for view in self._views(operation))

    def _views(self, operation: Operation) -> Iterator[Slice | Pad]:
        """The parts and padded forms of tensors that an operation reads, and what these are parts of."""
        for name in operation.inputs:
            before = self._graph.by_name.get(name)
            while isinstance(before, Slice | Pad):
                yield before
                before = self._graph.by_name.get(before.inputs[0])

    def _read(self, name: str) -> str:
        """The site that a tensor is on; that of its function where it is rounded behind one."""
        return self._sites.grids.get(name) or self._written(name)

    def _written(self, name: str) -> str:
        """The site that holds what an operation makes."""
        while name not in self._sites.grids:
            (reader,) = self._graph.readers[name]
            name = reader.name
        return self._sites.grids[name]

    def _unlike(self, positions: int) -> int | None:
        """Positions where they are not the workload's frames."""
        return None if positions == self._frames else positions


def _positions(shape: Shape) -> int:
    """Frames of a tensor; one where a mean has taken them."""
    return shape[1] if len(shape) > 1 else 1
