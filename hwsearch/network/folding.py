"""Fold affine maps and zero padding into the convolutions beside them.

At inference a batch norm is the affine map y -> (y - mean) * gamma / sqrt(variance + eps) + beta per channel (arXiv 1502.03167,
algorithm 2). The weights and bias of the layer before it absorb it if nothing else reads that layer. Otherwise it becomes a
depthwise convolution of one tap. Zero padding before a convolution becomes the padding of the convolution.
"""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from hwsearch.network.graph import Graph
from hwsearch.network.operations import Affine, Convolution, Linear, Operation, Pad, TransposedConvolution


def fold(graph: Graph) -> Graph:
    """Make the same function without `Affine`, and without a `Pad` that only convolutions read."""
    for step in (_fold_affine, _fold_padding):
        while (folded := step(graph)) is not None:
            graph = folded
    return graph


def _fold_affine(graph: Graph) -> Graph | None:
    """Fold the first affine map of a graph; return None if it has none."""
    for affine in graph.operations:
        if isinstance(affine, Affine):
            source = affine.inputs[0]
            layer = graph.by_name.get(source)
            alone = graph.readers[source] == (affine,) and source not in graph.outputs
            if alone and isinstance(layer, Convolution | TransposedConvolution | Linear):
                return _absorbed(graph, layer, affine)
            return _as_depthwise(graph, affine)
    return None


def _absorbed(graph: Graph, layer: Operation, affine: Affine) -> Graph:
    """Let a layer do the affine map behind it. Double precision leaves one rounding, at the end."""
    gain, offset = graph.parameter(affine, "weight").double(), graph.parameter(affine, "bias").double()
    weight, bias = graph.parameter(layer, "weight").double(), graph.parameter(layer, "bias").double()
    if isinstance(layer, TransposedConvolution):  # [in, out / groups, kernel]
        grouped = weight.reshape(layer.groups, -1, *weight.shape[1:])
        weight = (grouped * gain.reshape(layer.groups, 1, -1, 1)).reshape(weight.shape)
    else:  # [out, ...]
        weight = weight * gain.reshape(-1, *[1] * (weight.ndim - 1))
    bias = bias * gain + offset
    return _replaced(graph, affine, None, {f"{layer.name}.weight": weight.float(), f"{layer.name}.bias": bias.float()})


def _as_depthwise(graph: Graph, affine: Affine) -> Graph:
    weight, bias = graph.parameter(affine, "weight").float(), graph.parameter(affine, "bias").float()
    depthwise = Convolution(affine.name, affine.inputs, groups=len(weight))
    return _replaced(graph, affine, depthwise, {f"{affine.name}.weight": weight[:, None, None], f"{affine.name}.bias": bias})


def _fold_padding(graph: Graph) -> Graph | None:
    """Fold the first padding of a graph that only convolutions read; return None if it has none."""
    for pad in graph.operations:
        if isinstance(pad, Pad) and pad.name not in graph.outputs:
            readers = graph.readers[pad.name]
            if readers and all(isinstance(reader, Convolution) for reader in readers):
                padded = {reader.name: _padded(reader, pad) for reader in readers if isinstance(reader, Convolution)}
                operations = tuple(padded.get(operation.name, operation) for operation in graph.operations)
                return _replaced(replace(graph, operations=operations), pad, None, {})
    return None


def _padded(convolution: Convolution, pad: Pad) -> Convolution:
    before, after = (own + more for own, more in zip(convolution.padding, pad.padding, strict=True))
    return replace(convolution, padding=(before, after))


def _replaced(graph: Graph, old: Operation, new: Operation | None, parameters: Mapping[str, Tensor]) -> Graph:
    """Replace an operation and some parameters. Without a new operation, what read the old one reads its input."""

    def renamed(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(old.inputs[0] if name == old.name and new is None else name for name in names)

    operations = (new if operation is old else operation for operation in graph.operations)
    kept = tuple(replace(operation, inputs=renamed(operation.inputs)) for operation in operations if operation is not None)
    gone = {f"{old.name}.{part}" for part in old.parameters}
    remaining = {name: tensor for name, tensor in graph.parameters.items() if name not in gone}
    return Graph(graph.inputs, kept, renamed(graph.outputs), remaining | dict(parameters))
