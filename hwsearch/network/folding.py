"""Affine maps and zero padding folded into the convolutions beside them.

At inference a batch norm is the affine map y -> (y - mean) * gamma / sqrt(variance + eps) + beta per channel (arXiv 1502.03167,
algorithm 2). Behind a convolution that nothing else reads, the convolution's weights and bias absorb it. Elsewhere it becomes a
depthwise convolution of one tap. Zero padding before a convolution becomes the convolution's own.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from hwsearch.network.graph import Graph
from hwsearch.network.operations import Affine, Convolution, Linear, Operation, Pad, TransposedConvolution

_Parameters = Mapping[str, Tensor]


def fold(graph: Graph) -> Graph:
    """The same function without `Affine`, and without a `Pad` that only convolutions read."""
    for step in (_fold_affine, _fold_padding):
        while (folded := step(graph)) is not None:
            graph = folded
    return graph


def _fold_affine(graph: Graph) -> Graph | None:
    """Fold the first affine map of a graph; none where there is no more."""
    for affine in graph.operations:
        if isinstance(affine, Affine):
            before = graph.by_name.get(affine.inputs[0])
            if before is not None and graph.readers[before.name] == (affine,) and before.name not in graph.outputs:
                match before:
                    case Convolution() | Linear():
                        return _absorbed(graph, before, affine, _scale_rows)
                    case TransposedConvolution(groups=groups):
                        return _absorbed(graph, before, affine, lambda weight, gain: _scale_columns(weight, gain, groups))
            return _as_depthwise(graph, affine)
    return None


def _absorbed(graph: Graph, layer: Operation, affine: Affine, scale: Callable[[Tensor, Tensor], Tensor]) -> Graph:
    """Let a layer do the affine map behind it. In double precision, so that the only rounding is the one at the end."""
    gain, offset = graph.parameter(affine, "weight").double(), graph.parameter(affine, "bias").double()
    weight = scale(graph.parameter(layer, "weight").double(), gain).float()
    bias = (graph.parameter(layer, "bias").double() * gain + offset).float()
    return _replaced(graph, affine, None, {f"{layer.name}.weight": weight, f"{layer.name}.bias": bias})


def _scale_rows(weight: Tensor, gain: Tensor) -> Tensor:
    """Weights [out, ...] with their outputs scaled."""
    return weight * gain.reshape(-1, *[1] * (weight.ndim - 1))


def _scale_columns(weight: Tensor, gain: Tensor, groups: int) -> Tensor:
    """Weights [in, out / groups, kernel] of a transposed convolution with their outputs scaled."""
    per_group = weight.reshape(groups, -1, *weight.shape[1:])
    return (per_group * gain.reshape(groups, 1, -1, 1)).reshape(weight.shape)


def _as_depthwise(graph: Graph, affine: Affine) -> Graph:
    weight, bias = graph.parameter(affine, "weight").float(), graph.parameter(affine, "bias").float()
    depthwise = Convolution(affine.name, affine.inputs, groups=len(weight))
    return _replaced(graph, affine, depthwise, {f"{affine.name}.weight": weight[:, None, None], f"{affine.name}.bias": bias})


def _fold_padding(graph: Graph) -> Graph | None:
    """Fold the first padding of a graph that can be folded; none where there is no more."""
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


def _replaced(graph: Graph, old: Operation, new: Operation | None, parameters: _Parameters) -> Graph:
    """A graph with another operation, or with none, in place of one, and with some parameters changed.

    Where none takes its place, its readers read its input.
    """

    def renamed(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(old.inputs[0] if name == old.name and new is None else name for name in names)

    operations = (new if operation is old else operation for operation in graph.operations)
    kept = tuple(replace(operation, inputs=renamed(operation.inputs)) for operation in operations if operation is not None)
    gone = {f"{old.name}.{part}" for part in old.parameters}
    remaining = {name: tensor for name, tensor in graph.parameters.items() if name not in gone}
    return Graph(graph.inputs, kept, renamed(graph.outputs), remaining | dict(parameters))
