"""Whether a graph is one that `export_onnx` writes, told before a runtime loads it.

Any other could want any amount of memory or time, whatever its description says. In these graphs every tensor has the channels of
a layer and the frames of the input: only convolutions of the layers' shapes, and operations element by element, make one.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, TensorProto

from hw_models.workload import LayerKind
from hwsearch.errors import UserError
from hwsearch.export.description import ExportDescription
from hwsearch.export.network import INPUT, OUTPUT
from hwsearch.export.saturation import holds_unsigned_weights
from hwsearch.separator.features import feature_count
from hwsearch.separator.folding import input_site
from hwsearch.separator.tcn import padding
from hwsearch.separator.untrained import network_of

_ELEMENTWISE = {"Add", "Clip", "DequantizeLinear", "Identity", "Mul", "PRelu", "QuantizeLinear", "Relu", "Sub"}

_NODES_PER_SITE = 8
"""Nodes for each weight or activation, at most; an export has half as many."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Layer:
    """A convolution as a description has it.

    Attributes:
        name: of the layer.
        channels: that it reads.
        weight: shape of its weights.
        attributes: of its node.
        unsigned: whether integer weights have to be uint8.
    """

    name: str
    channels: int
    weight: Shape
    attributes: dict[str, int | list[int]]
    unsigned: bool


class _ForeignError(Exception):
    """What a graph holds that an export does not."""


def check_structure(model: ModelProto, description: ExportDescription, source: str) -> None:
    """Refuse a graph other than an export of the network that its description names.

    Raises:
        UserError: names `source`.
    """
    if any("qonnx" in opset.domain for opset in model.opset_import):
        raise UserError(f"{source}: a QONNX file, for FPGA tools; wanted one of 'hwsearch export --format onnx'")
    layers, features = list(_layers(description)), _features(description)
    try:
        _check_constants(model, layers, _NODES_PER_SITE * len(description.allocation))
        _Walk(model, layers, features).walk()
    except _ForeignError as found:
        raise UserError(f"{source}: its graph does not fit its description ({found}); export it again") from None


def _features(description: ExportDescription) -> int:
    config = description.separator
    return feature_count(description.microphones, config.n_fft // 2 + 1, config.ipd, beam=config.beam)


def _layers(description: ExportDescription) -> Iterator[_Layer]:
    """The convolutions in the order of execution."""
    config, widths = description.separator, description.allocation
    workload = network_of(config, _features(description)).workload(1, 1.0, per_channel=True)
    for layer in workload.layers:
        if layer.kind is LayerKind.ADD:
            continue
        groups = layer.in_channels if layer.kind is LayerKind.DEPTHWISE else 1
        attributes: dict[str, int | list[int]] = {
            "dilations": [layer.dilation],
            "group": groups,
            "kernel_shape": [layer.kernel_size],
            "pads": list(padding(layer.kernel_size, layer.dilation, causal=config.causal)),
            "strides": [1],
        }
        unsigned = holds_unsigned_weights(groups, widths[f"{layer.name}.weight"], widths[input_site(config, layer.name)])
        weight = layer.out_channels, layer.in_channels // groups, layer.kernel_size
        yield _Layer(layer.name, layer.in_channels, weight, attributes, unsigned)


def _check_constants(model: ModelProto, layers: list[_Layer], most_nodes: int) -> None:
    graph = model.graph
    if len(graph.node) > most_nodes:
        raise _ForeignError(f"{len(graph.node)} nodes; wanted at most {most_nodes}")
    if model.functions or graph.sparse_initializer:
        raise _ForeignError("functions or sparse constants")
    largest = max(math.prod(layer.weight) for layer in layers)
    for tensor in graph.initializer:
        if math.prod(tensor.dims) > largest:
            raise _ForeignError(f"a constant of shape {list(tensor.dims)}")


class _Walk:
    """One pass over a graph in the order of execution, which tells what is computed from the input from what is constant."""

    def __init__(self, model: ModelProto, layers: list[_Layer], features: int) -> None:
        self._nodes = model.graph.node
        self._constants: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
        self._types: dict[str, int] = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        self._channels = {INPUT: features}  # of what is computed
        self._layers = layers

    def walk(self) -> None:
        """Raise `_ForeignError` at the first node that an export does not have."""
        left = list(reversed(self._layers))
        for node in self._nodes:
            if node.domain or not node.input or len(node.output) != 1:
                raise _ForeignError(f"a node '{node.op_type}'")
            if node.op_type == "Conv" and left:
                self._convolution(node, left.pop())
            elif node.op_type in _ELEMENTWISE:
                self._elementwise(node)
            else:
                raise _ForeignError(f"a node '{node.op_type}'")
        if left:
            raise _ForeignError(f"no layer '{left[-1].name}'")
        if self._channels.get(OUTPUT) != self._layers[-1].weight[0]:
            raise _ForeignError(f"no output '{OUTPUT}' of the last layer")

    def _convolution(self, node: NodeProto, layer: _Layer) -> None:
        attributes = {attribute.name: list(attribute.ints) or attribute.i for attribute in node.attribute}
        shapes = [self._constants.get(name) for name in node.input[1:]]
        found = self._channels.get(node.input[0]), attributes, shapes
        if found != (layer.channels, layer.attributes, [layer.weight, layer.weight[:1]]):
            raise _ForeignError(f"layer '{layer.name}'")
        if self._types[node.input[1]] == TensorProto.INT8 and layer.unsigned:
            raise _ForeignError(f"layer '{layer.name}' is exact on some processors only")
        self._channels[node.output[0]] = layer.weight[0]

    def _elementwise(self, node: NodeProto) -> None:
        first, *others = node.input
        channels, constant = self._channels.get(first), self._constants.get(first)
        if any(attribute.name != "axis" for attribute in node.attribute):
            raise _ForeignError(f"attributes of a node '{node.op_type}'")
        operand: Shape | None = None  # beside single numbers
        if constant is not None:  # weights, a bias or a slope
            self._constants[node.output[0]], self._types[node.output[0]] = constant, self._types[first]
            operand = constant[:1] if node.op_type == "DequantizeLinear" else None
        elif channels is not None:
            self._channels[node.output[0]] = channels
            operand = (channels, 1) if node.op_type in ("Sub", "Mul") else None
        else:
            raise _ForeignError(f"a node '{node.op_type}' that reads '{first}'")
        for name in others:
            shape = self._constants.get(name)
            summed = node.op_type == "Add" and channels is not None and self._channels.get(name) == channels
            if not summed and (shape is None or (math.prod(shape) != 1 and shape != operand)):
                raise _ForeignError(f"a node '{node.op_type}' that reads '{name}'")
