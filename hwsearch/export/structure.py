"""A check that a graph is one of `export_onnx`, before a runtime loads it.

Another graph could take any amount of memory or time, whatever its description says. So the shapes of all tensors are inferred
for one number of frames. They must be plausible for a separator, and the layers must be those of the description.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from hwsearch.errors import UserError
from hwsearch.export.description import INPUT, OUTPUT, ExportDescription
from hwsearch.export.saturation import could_saturate
from hwsearch.export.shapes import Known, Shape, infer
from hwsearch.network.graph import Graph
from hwsearch.network.operations import Convolution, Operation, TransposedConvolution
from hwsearch.network.shapes import tensor_shapes
from hwsearch.network.sites import LAYERS, WEIGHT, find_sites

_FRAMES = 1024
"""Number of frames for which shapes are inferred."""

_MOST_VALUES = 2**16 * _FRAMES
"""Most values of a tensor: for each frame, more than any separator has channels."""

_NODES_PER_OPERATION = 6
"""Most nodes for each operation and each site. An export has about three."""

_SHAPE_VALUES = 64
"""Most values of a constant that may define a shape."""

RESERVED_PREFIXES = ("sound.", "state.", "next.")
RESERVED_NAMES = ("mixture", "direction", "level", "target")
"""Names of the graph from sound to sound."""

_LAYER_NODES = {Convolution: "Conv", TransposedConvolution: "ConvTranspose"}


@dataclass(frozen=True)
class _Layer:
    """A layer as its description implies it.

    Attributes:
        name: name of the layer.
        operator: operator of its node.
        read: shapes of its input, weights and bias.
        made: shape of its output.
        attributes: attributes of its node.
        unsigned: whether integer weights must be uint8.
    """

    name: str
    operator: str
    read: list[Shape]
    made: Shape
    attributes: dict[str, int | float | list[int]]
    unsigned: bool


class ForeignGraphError(Exception):
    """A part of a graph that no export has."""


def check_structure(model: ModelProto, description: ExportDescription, source: str) -> None:
    """Refuse a graph that is no export of the network in its description.

    Raises:
        UserError: names `source`.
    """
    if any("qonnx" in opset.domain for opset in model.opset_import):
        raise UserError(f"{source}: a QONNX file, for FPGA tools; wanted one of 'hwsearch export --format onnx'")
    form = description.form
    features = form.inputs
    try:
        _check_names(model)
        _check_ends(model, {INPUT: features, OUTPUT: form.outputs})
        graph = description.network.graph
        shapes = _described_shapes(graph, features)
        layers = _layers(graph, shapes, description)
        _check_constants(model, graph, features, len(description.allocation) + len(graph.operations))
        largest = max(
            *(math.prod(shape) for shape in shapes.values()), *(2 * math.prod(each.shape) for each in graph.parameters.values())
        )
        _Walk(model, layers, features, largest).walk(shapes[graph.outputs[0]])
    except ForeignGraphError as found:
        raise UserError(f"{source}: its graph does not fit its description ({found}); export it again") from None


def _check_names(model: ModelProto) -> None:
    """Refuse constants outside the file, names that are given twice, and names that the graph from sound to sound gives."""
    graph = model.graph
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in graph.initializer):
        raise ForeignGraphError("constants outside the file")
    given = [tensor.name for tensor in (*graph.input, *graph.initializer)]
    given += [name for node in graph.node for name in node.output]
    if len(given) != len(set(given)):
        raise ForeignGraphError("a tensor that is made twice")
    for name in given:
        if name.startswith(RESERVED_PREFIXES) or name in RESERVED_NAMES:
            raise ForeignGraphError(f"a tensor '{name}'")


def _check_ends(model: ModelProto, channels: Mapping[str, int]) -> None:
    """Refuse another input or output than those of a file of `export_onnx`, whose number of frames is a name."""
    found = [*model.graph.input, *model.graph.output]
    wanted = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, count, "frames"]) for name, count in channels.items()]
    if found != wanted:
        raise ForeignGraphError("its inputs and outputs")


def _described_shapes(graph: Graph, features: int) -> dict[str, Shape]:
    """The shape of every tensor of the network."""
    try:
        found = tensor_shapes(graph, {graph.inputs[0]: (features, _FRAMES)})
    except (ArithmeticError, IndexError, TypeError, ValueError) as error:
        raise ForeignGraphError(str(error)) from None
    for name, shape in found.items():
        if math.prod(shape) > _MOST_VALUES:
            raise ForeignGraphError(f"'{name}' has the shape {list(shape)}")
    return {name: (1, *shape) for name, shape in found.items()}


def _layers(graph: Graph, shapes: dict[str, Shape], description: ExportDescription) -> list[_Layer]:
    """The layers in the order of execution."""
    sites, widths = find_sites(graph), description.allocation
    found = []
    for layer in graph.operations:
        if isinstance(layer, LAYERS):
            bits, shape = widths[layer.name + WEIGHT], graph.parameter(layer, "weight").shape
            unsigned = description.processors == "any" and could_saturate(layer, shape, bits, widths[sites.read_by(layer)])
            found.append(_layer(layer, graph, shapes, unsigned=unsigned))
    return found


def _layer(operation: Operation, graph: Graph, shapes: dict[str, Shape], *, unsigned: bool) -> _Layer:
    weight, bias = (tuple(graph.parameter(operation, part).shape) for part in ("weight", "bias"))
    attributes: dict[str, int | float | list[int]] = {"alpha": 1.0, "beta": 1.0, "transB": 1}
    if isinstance(operation, Convolution | TransposedConvolution):
        attributes = {
            "dilations": [operation.dilation],
            "group": operation.groups,
            "kernel_shape": [weight[2]],
            "pads": [operation.padding, operation.padding] if isinstance(operation.padding, int) else list(operation.padding),
            "strides": [operation.stride],
        }
    if isinstance(operation, TransposedConvolution) and operation.output_padding:
        attributes["output_padding"] = [operation.output_padding]
    return _Layer(
        operation.name,
        _LAYER_NODES.get(type(operation), "Gemm"),
        [shapes[operation.inputs[0]], weight, bias],
        shapes[operation.name],
        attributes,
        unsigned,
    )


def _check_constants(model: ModelProto, graph: Graph, features: int, parts: int) -> None:
    nodes = model.graph
    if len(nodes.node) > _NODES_PER_OPERATION * parts:
        raise ForeignGraphError(f"{len(nodes.node)} nodes; wanted at most {_NODES_PER_OPERATION * parts}")
    if model.functions or nodes.sparse_initializer:
        raise ForeignGraphError("functions or sparse constants")
    largest = max([features, *(math.prod(tensor.shape) for tensor in graph.parameters.values())])
    for tensor in nodes.initializer:
        if math.prod(tensor.dims) > largest:
            raise ForeignGraphError(f"a constant of shape {list(tensor.dims)}")


class _Walk:
    """One pass over a graph in the order of execution, which infers the shape of each tensor."""

    def __init__(self, model: ModelProto, layers: Sequence[_Layer], features: int, largest: int) -> None:
        self._nodes = model.graph.node
        self._known = {tensor.name: _constant(tensor) for tensor in model.graph.initializer}
        self._types: dict[str, int] = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        self._known[INPUT] = Known((1, features, _FRAMES))
        self._layers = layers
        self._largest = largest

    def walk(self, output: Shape) -> None:
        """Raise `ForeignGraphError` at the first node that no export has; `output` is the shape of the network's output."""
        left = list(reversed(self._layers))
        operators = {layer.operator for layer in self._layers}
        for node in self._nodes:
            if node.domain or not node.input or len(node.output) != 1:
                raise ForeignGraphError(f"a node '{node.op_type}'")
            for name in node.input:
                if name not in self._known:
                    raise ForeignGraphError(f"a node '{node.op_type}' that reads '{name}'")
            read = [self._known[name] for name in node.input]
            made = self._layer(node, read, left.pop()) if node.op_type in operators and left else self._other(node, read)
            if math.prod(made.shape) > self._largest:
                raise ForeignGraphError(f"a node '{node.op_type}' that makes {list(made.shape)}")
            self._known[node.output[0]] = made
        if left:
            raise ForeignGraphError(f"no layer '{left[-1].name}'")
        if OUTPUT not in self._known or self._known[OUTPUT].shape != output:
            raise ForeignGraphError(f"no output '{OUTPUT}' of the shape {list(output)}")

    def _layer(self, node: NodeProto, read: list[Known], layer: _Layer) -> Known:
        attributes = {attribute.name: list(attribute.ints) or attribute.i or attribute.f for attribute in node.attribute}
        shapes = [each.shape for each in read]
        if (node.op_type, attributes, shapes) != (layer.operator, layer.attributes, layer.read):
            raise ForeignGraphError(f"layer '{layer.name}'")
        if self._types.get(node.input[1]) == TensorProto.INT8 and layer.unsigned:
            raise ForeignGraphError(f"layer '{layer.name}' is exact on some processors only")
        return Known(layer.made)

    def _other(self, node: NodeProto, read: list[Known]) -> Known:
        try:
            made = infer(node, read)
        except KeyError:
            raise ForeignGraphError(f"a node '{node.op_type}'") from None
        except ValueError as error:
            raise ForeignGraphError(f"a node '{node.op_type}' that reads '{node.input[-1]}': {error}") from None
        if node.input[0] in self._types:  # weights, a bias, a slope, or what they are computed from
            self._types[node.output[0]] = self._types[node.input[0]]
        if node.op_type == "Cast":
            (self._types[node.output[0]],) = (attribute.i for attribute in node.attribute)
        return made


def _constant(tensor: TensorProto) -> Known:
    shape = tuple(tensor.dims)
    if tensor.data_type != TensorProto.INT64 or not 0 <= math.prod(shape) <= _SHAPE_VALUES:
        return Known(shape)
    try:
        return Known(shape, np.asarray(numpy_helper.to_array(tensor), np.int64).reshape(shape))
    except (ValueError, TypeError):
        raise ForeignGraphError(f"a constant '{tensor.name}'") from None
