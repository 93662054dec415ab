"""The ONNX graph of a network graph, whatever its widths: the same walk writes files and measures their sizes."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper
from torch import Tensor

from hwsearch.export.description import INPUT, OUTPUT
from hwsearch.export.onnx_parts import Shared, write_bias, write_float_bias, write_layer, write_operation, write_weights
from hwsearch.export.onnx_writer import OnnxWriter
from hwsearch.export.saturation import UNSIGNED_ZERO_POINT, could_saturate
from hwsearch.network.graph import Graph
from hwsearch.network.operations import Operation, TransposedConvolution
from hwsearch.network.sites import LAYERS, Sites
from hwsearch.separator.quantizers import MAX_BITS, ActivationGrid, QuantizedWeight, bias_integers, rounds_bias
from hwsearch.separator.rounded_weights import output_scale

_OPSET, _IR_VERSION = 17, 8

AtTensor = Callable[[str, str], str]
"""Called with a tensor of the network and its name in the file; returns the name under which operations read it."""

ParametersOf = Callable[[Operation], tuple[str, str]]
"""Called with a layer; returns the names of its weights and its bias."""

ReadGrid = tuple[ActivationGrid, str]
"""The grid of the tensor that a layer reads, and the name of its scale."""


_NAMES = {"layer": 20, "operation": 12, "quantizer": 7, "graph": 48}
"""Most names that each of them takes."""


def most_names(graph: Graph, sites: Sites) -> int:
    """Bound the number of names in the file of a network."""
    layers = len(sites.weights)
    others = len(graph.operations) - layers
    counts = {"layer": layers, "operation": others, "quantizer": len(sites.activations), "graph": 1}
    return sum(_NAMES[part] * number for part, number in counts.items())


def write_graph(
    writer: OnnxWriter,
    graph: Graph,
    normalisation: tuple[Tensor, Tensor],
    channels: int,
    at_tensor: AtTensor,
    parameters_of: ParametersOf,
) -> ModelProto:
    """Write a network behind the normalisation of its features.

    Args:
        writer: holds the shared constants.
        graph: the network, with one input and one output.
        normalisation: mean and scale of the features, [features, 1].
        channels: channels of the output.
        at_tensor: writes quantizers.
        parameters_of: writes weights and biases.
    """
    mean, scale = (writer.constant(as_array(each)) for each in normalisation)
    normalised = writer.node("Mul", [writer.node("Sub", [INPUT, mean]), scale])
    (network_input,), (output,) = graph.inputs, graph.outputs
    tensors = {network_input: at_tensor(network_input, normalised)}
    for operation in graph.operations:
        read = [tensors[name] for name in operation.inputs]
        if isinstance(operation, LAYERS):
            weight, bias = parameters_of(operation)
            kernel = graph.parameter(operation, "weight").shape[-1]
            made = write_layer(writer, operation, (read[0], weight, bias), kernel)
        else:
            parameters = [as_array(graph.parameter(operation, part)) for part in operation.parameters]
            made = write_operation(writer, operation, read, parameters)
        tensors[operation.name] = at_tensor(operation.name, made)
    features, mask = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, count, "frames"])
        for name, count in ((INPUT, len(normalisation[0])), (OUTPUT, channels))
    )
    finished = writer.finished(features, mask, tensors[output])
    return helper.make_model(finished, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)


def write_parameters(
    writer: OnnxWriter,
    shared: Shared,
    layer: Operation,
    weight: QuantizedWeight | Tensor,
    bias: Tensor,
    read: ReadGrid | None,
    *,
    unsigned: bool,
) -> tuple[str, str]:
    """Write weights and bias of a layer; return their names.

    Args:
        writer: the graph.
        shared: its shared constants.
        layer: the layer.
        weight: its weights, on a grid or in floating point.
        bias: its bias, in floating point.
        read: the grid of its input; None if that is in floating point.
        unsigned: whether integers of 8 bits are stored as uint8.
    """
    scale = ""
    if isinstance(weight, Tensor) or weight.bits > MAX_BITS:
        # Weights of 16 bits, too: ONNX Runtime would fuse their integers into invalid nodes.
        name = writer.constant(as_array(weight if isinstance(weight, Tensor) else weight.value))
    else:
        scales = as_array(weight.scale.flatten() if weight.scale.numel() > 1 else weight.scale.reshape(()))
        axis = 1 if isinstance(layer, TransposedConvolution) else 0
        integers = weight.integers.numpy()
        # Layers whose weights may have to be unsigned always have a zero point, so that its bytes do not depend on the input.
        zero_point = UNSIGNED_ZERO_POINT if unsigned else 0
        own = zero_point if could_saturate(layer, weight.integers.shape, weight.bits, MAX_BITS) else None
        name, scale = write_weights(writer, shared, integers, weight.bits, scales, axis, zero_point=own)
    if read is None or not rounds_bias(read[0].bits):
        return name, writer.constant(as_array(bias))
    if isinstance(weight, Tensor):
        return name, write_float_bias(writer, as_array(bias))
    grid, read_scale = read
    product = output_scale(layer, weight.scale) * grid.scale
    # The groups of a transposed convolution share their scales.
    is_written = bool(scale) and product.numel() in (1, weight.scale.numel())
    integer_bias = bias_integers(bias, product).numpy()
    return name, write_bias(writer, integer_bias, (scale, read_scale) if is_written else as_array(product))


def as_array(tensor: Tensor) -> NDArray[np.float32]:
    """Return the values of a tensor as float32."""
    return np.ascontiguousarray(tensor.detach().float().numpy())
