"""The workload of a network for the cost simulator: layer shapes and sites, without weights.

An operation of the graph is a layer, except that

- a ReLU, leaky ReLU or PReLU behind a layer, sum or norm costs nothing if both are rounded once; a sigmoid or hyperbolic tangent
  there is a function in place;
- a part or padded form of a tensor is not copied: its reader is a layer that does not read whole tensors;
- a tensor that only a concatenation reads is written into the result of the concatenation; other inputs are copied.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from hw_models.workload import WEIGHTED, Layer, LayerKind, Workload
from hwsearch.network import operations as ops
from hwsearch.network.graph import Graph
from hwsearch.network.shapes import Shape, tensor_shapes
from hwsearch.network.sites import FUNCTIONS, LAYERS, WEIGHT, Sites

_FRAMES = 2
"""Axis of the frames in [batch, channels, frames]."""

_KINDS: Mapping[type[ops.Operation], LayerKind] = {
    ops.Add: LayerKind.ADD,
    ops.Multiply: LayerKind.MULTIPLY,
    ops.Mean: LayerKind.POOL,
    ops.GroupNorm: LayerKind.NORM,
    ops.LayerNorm: LayerKind.NORM,
    ops.Softmax: LayerKind.SOFTMAX,
}
"""The kinds of layers without weights."""


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
    """Make the workload of one inference.

    Args:
        graph: the network, folded.
        sites: the sites of the graph.
        channels: of each input.
        frames: of the inputs.
        frame_seconds: from one frame to the next.
        name: of the workload, for messages.
        per_channel: whether weights have a scale per output channel.

    Raises:
        ValueError: an operation does not take tensors of these shapes, or folding leaves no such operation.
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
    """Drop the look-ahead of a layer if `Workload.causal` implies it."""
    usual = 0 if causal else (layer.kernel_size - 1) * layer.dilation // 2
    return replace(layer, ahead=None) if layer.ahead == usual else layer


class _Layers:
    """The layers of a graph."""

    def __init__(self, graph: Graph, sites: Sites, shapes: Mapping[str, Shape], frames: int) -> None:
        self._graph = graph
        self._sites = sites
        self._shapes = shapes
        self._frames = frames

    def __iter__(self) -> Iterator[Layer]:
        for operation in self._graph.operations:
            if (layer := self._layer(operation)) is not None:
                yield layer

    def _layer(self, operation: ops.Operation) -> Layer | None:
        """Make the layer of an operation; None if it costs nothing of its own."""
        if (kind := _KINDS.get(type(operation))) is not None:
            normed = isinstance(operation, ops.GroupNorm)
            over_frames = normed or (isinstance(operation, ops.Softmax) and operation.axis == _FRAMES)
            return self._plain(operation, kind, over_positions=over_frames)
        match operation:
            case ops.Slice() | ops.Pad():
                return None
            case ops.Concatenate():
                return self._copied(operation)
            case ops.Convolution() | ops.TransposedConvolution() | ops.Linear():
                return self._weighted(operation)
        return self._function(operation)

    def _function(self, operation: ops.Operation) -> Layer | None:
        """Make the layer of a function of every value; None if it costs nothing beside the layer before it."""
        read, written = (self._shapes[name] for name in (operation.inputs[0], operation.name))
        if isinstance(operation, ops.Affine) or len(operation.inputs) != 1 or read != written:
            raise ValueError(f"'{operation.name}' is a {type(operation).__name__}, which is not charged")
        straight = not isinstance(operation, ops.Elementwise) or operation.function is ops.Function.RELU
        fused = isinstance(operation, FUNCTIONS) and operation.inputs[0] not in self._sites.grids
        return None if fused and straight else self._plain(operation, LayerKind.FUNCTION)

    def _weighted(self, operation: ops.Convolution | ops.TransposedConvolution | ops.Linear) -> Layer:
        if isinstance(operation, ops.Linear):
            return self._plain(operation, LayerKind.CONV)
        read, written = self._shapes[operation.inputs[0]], self._shapes[operation.name]
        groups, kernel = operation.groups, self._graph.parameter(operation, "weight").shape[2]
        depthwise = isinstance(operation, ops.Convolution) and groups > 1 and groups == read[0] == written[0]
        kind = LayerKind.CONV if isinstance(operation, ops.Convolution) else LayerKind.TRANSPOSED
        layer = self._plain(operation, LayerKind.DEPTHWISE if depthwise else kind)
        layer = replace(layer, kernel_size=kernel, dilation=operation.dilation, groups=1 if depthwise else groups)
        if kernel == 1 or not layer.keeps_frames:
            return layer
        padding = operation.padding if isinstance(operation, ops.TransposedConvolution) else operation.padding[1]
        return replace(layer, ahead=padding)

    def _copied(self, operation: ops.Concatenate) -> Layer | None:
        """Make the layer of the inputs of a concatenation that are copied; None if there are none."""
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

    def _plain(self, operation: ops.Operation, kind: LayerKind, *, over_positions: bool = False) -> Layer:
        """Make a layer with one tap that reads all inputs of an operation."""
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

    def _constants(self, operation: ops.Operation) -> int:
        """Count the parameters of an operation and the function fused with it, without layers and single slopes of sites."""
        count = 0
        if not isinstance(operation, LAYERS):
            sizes = [self._graph.parameter(operation, part).numel() for part in operation.parameters]
            recorded = isinstance(operation, ops.PReLU) and sizes == [1] and operation.name in self._sites.tensors.values()
            count = 0 if recorded else sum(sizes)
        if operation.name not in self._sites.grids and isinstance(reader := self._graph.readers[operation.name][0], ops.PReLU):
            count += self._constants(reader)
        return count

    def _is_whole(self, operation: ops.Operation, *, pair: bool) -> bool:
        """Whether an operation reads and writes only tensors that have the shapes of their sites."""
        for name in operation.inputs:
            site = self._sites.grids.get(name)
            if site is not None and self._shapes[name] != self._shapes[self._sites.tensors[site]]:
                return False
            if pair and self._shapes[name] != self._shapes[operation.name]:
                return False
        site = self._written(operation.name)
        return self._shapes[operation.name] == self._shapes[self._sites.tensors[site]]

    def _moves(self, operation: ops.Operation) -> bool:
        """Whether an operation reads a tensor that is cut or padded along the frames."""
        return any(isinstance(view, ops.Pad) or view.axis == _FRAMES for view in self._views(operation))

    def _views(self, operation: ops.Operation) -> Iterator[ops.Slice | ops.Pad]:
        """List the parts and padded forms of tensors that an operation reads, directly or as parts of each other."""
        for name in operation.inputs:
            before = self._graph.by_name.get(name)
            while isinstance(before, ops.Slice | ops.Pad):
                yield before
                before = self._graph.by_name.get(before.inputs[0])

    def _read(self, name: str) -> str:
        """Return the site of a tensor that is read; that of the function behind it if both are rounded once."""
        return self._sites.grids.get(name) or self._written(name)

    def _written(self, name: str) -> str:
        """Return the site that holds the result of an operation."""
        while name not in self._sites.grids:
            (reader,) = self._graph.readers[name]
            name = reader.name
        return self._sites.grids[name]

    def _unlike(self, positions: int) -> int | None:
        """Return positions if they differ from the workload's frames."""
        return None if positions == self._frames else positions


def _positions(shape: Shape) -> int:
    """Count the frames of a tensor; one behind a mean that drops them."""
    return shape[1] if len(shape) > 1 else 1
