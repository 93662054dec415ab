"""Export to ONNX: integer weights and QuantizeLinear / DequantizeLinear pairs, for integer kernels.

Brevitas writes the graph. This module then changes what keeps a runtime from its integer kernels or makes it compute something
else:

- A `Clip` of constant weights is dropped. They lie within its bounds.
- The `Pad` of a causal layer becomes the padding of its convolution, so that integer kernels can fuse the two.
- The bias of a floating-point convolution between quantized tensors goes through an exact `DequantizeLinear`. With a plain bias,
  ONNX Runtime would quantize the weights of that layer to 8 bits.
- A softmax becomes the exponential of a log-softmax. ONNX Runtime's softmax between integers is off by up to a quarter of a step.
- Weights whose products could saturate in the kernels of some processors are stored as uint8 (`hwsearch.export.saturation`).
- What a runtime can compute when it loads the file is not stored (`hwsearch.export.compact`).
"""

import tempfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import torch
from brevitas.export.onnx.standard.qcdq.handler import (
    StdCDQCastONNXBiasQuantProxyHandler,
    StdQCDQCastONNXActQuantProxyHandler,
    StdQCDQCastONNXWeightQuantProxyHandler,
)
from brevitas.export.onnx.standard.qcdq.manager import StdQCDQONNXManager
from brevitas.proxy import ActQuantProxyFromInjector, BiasQuantProxyFromInjector, WeightQuantProxyFromInjector
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch import Tensor

from hwsearch.export.brevitas_graph import (
    LayerNodes,
    brevitas_model,
    constants_of,
    drop_unused,
    fold_pads,
    layer_nodes,
    rename_input,
)
from hwsearch.export.compact import shorten_constants, shorten_names
from hwsearch.export.description import ExportDescription, seal
from hwsearch.export.network import INPUT, OUTPUT, ExportedNetwork
from hwsearch.export.runtime import open_session
from hwsearch.export.saturation import UNSIGNED_ZERO_POINT, could_saturate
from hwsearch.files.writing import atomic_write_bytes
from hwsearch.network.operations import Pad
from hwsearch.network.shapes import tensor_shapes
from hwsearch.network.sites import WEIGHT
from hwsearch.separator.quantized import QuantizedNetwork
from hwsearch.separator.quantizers import bias_integers

_INTEGER_BITS = 8
"""Widest integers of a file but for biases."""


def export_onnx(network: ExportedNetwork, path: Path, description: ExportDescription) -> None:
    """Write the network as one self-contained ONNX file, atomically.

    The frames axis is dynamic, the batch is 1. Weights up to 8 bits are int8 or uint8 once the file is loaded, and wider ones
    float32. Activations up to 8 bits are uint8, with a `Clip` below 8 bits; wider ones are rounded float32. The file gives the
    same integers on all of `description.processors`.
    """
    axes = {INPUT: {2: "frames"}, OUTPUT: {2: "frames"}}
    model = brevitas_model(_Manager.export, network, network.example_frames(), dynamic_axes=axes)
    _declare_output(model, network)
    layers = layer_nodes(model, network.network)
    _drop_weight_clips(model)
    fold_pads(model, layers)
    _write_pads(model, network.network)
    _unfold_wide_weights(model, layers)
    _store_weights(model, network.network, layers, signed=description.processors == "vnni")
    _protect_float_weights(model, network.network, layers)
    _split_softmax(model)
    widths = network.network.allocation.by_site
    shorten_constants(model, [(node, widths[layer.name + WEIGHT]) for layer, node in layers])
    drop_unused(model)
    shorten_names(model, (INPUT, OUTPUT))
    onnx.checker.check_model(model, full_check=True)
    atomic_write_bytes(path, seal(model, description))


def integer_kernels(path: Path) -> dict[str, int]:
    """Count the integer and floating-point kernels in the graph that ONNX Runtime optimizes for this machine.

    Returns:
        `integer_convolutions`, `float_convolutions`, `integer_adds`, `float_adds`. A linear layer counts as a convolution.
    """
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        open_session(path.read_bytes(), optimized=optimized)
        operators = [node.op_type for node in onnx.load(optimized).graph.node]
    kinds = {
        "integer_convolutions": ("QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger"),
        "float_convolutions": ("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul"),
        "integer_adds": ("QLinearAdd",),
        "float_adds": ("Add",),
    }
    return {kind: sum(operator in names for operator in operators) for kind, names in kinds.items()}


class _WeightHandler(StdQCDQCastONNXWeightQuantProxyHandler):  # type: ignore[misc]  # Brevitas is untyped
    """Writes integer weights; unlike Brevitas, also those of 16 bits."""

    def validate(self, module: WeightQuantProxyFromInjector) -> None:
        if int(module.bit_width()) <= _INTEGER_BITS:
            super().validate(module)


class _BiasHandler(StdCDQCastONNXBiasQuantProxyHandler):  # type: ignore[misc]  # Brevitas is untyped
    """Writes integer biases. Brevitas would round large ones to float32 first."""

    def prepare_for_export(self, module: BiasQuantProxyFromInjector) -> None:
        if not module.is_quant_enabled:
            return
        scale = module.scale()
        self.symbolic_kwargs = {
            "int_biases": {
                layer.bias.data_ptr(): bias_integers(layer.bias, scale).to(torch.int32) for layer in module.tracked_module_list
            },
            "scale": scale,
            "zero_point": module.zero_point(),
            "bit_width": module.bit_width(),
        }


class _ActivationHandler(StdQCDQCastONNXActQuantProxyHandler):  # type: ignore[misc]  # Brevitas is untyped
    """Writes quantizers. Those of more than 8 bits, which `QuantizeLinear` does not take, become plain arithmetic."""

    def prepare_for_export(self, module: ActQuantProxyFromInjector) -> None:
        self.wide = module.is_quant_enabled and int(module.bit_width()) > _INTEGER_BITS
        if not self.wide:
            super().prepare_for_export(module)
            return
        quantizer = module.fused_activation_quant_proxy.tensor_quant
        self.parts = module.scale(), module.zero_point(), module.bit_width()
        self.ends = quantizer.low, quantizer.high

    def symbolic_execution(self, x: Tensor) -> tuple[Tensor, ...]:
        if not self.wide:
            executed: tuple[Tensor, ...] = super().symbolic_execution(x)
            return executed
        scale = self.parts[0]
        return (x / scale).round().clamp(*self.ends) * scale, *self.parts


def wide_quantized(model: ModelProto) -> frozenset[str]:
    """Return the tensors that quantizers to more than 8 bits make."""
    writers = {node.output[0]: node for node in model.graph.node}

    def is_made_by(tensor: str, *operators: str) -> bool:
        node = writers.get(tensor)
        return not operators or (
            node is not None and node.op_type == operators[-1] and is_made_by(node.input[0], *operators[:-1])
        )

    return frozenset(tensor for tensor in writers if is_made_by(tensor, "Div", "Round", "Clip", "Mul"))


_OWN_HANDLERS = {
    StdQCDQCastONNXActQuantProxyHandler: _ActivationHandler,
    StdQCDQCastONNXWeightQuantProxyHandler: _WeightHandler,
    StdCDQCastONNXBiasQuantProxyHandler: _BiasHandler,
}


class _Manager(StdQCDQONNXManager):  # type: ignore[misc]  # Brevitas is untyped
    handlers: ClassVar = [_OWN_HANDLERS.get(handler, handler) for handler in StdQCDQONNXManager.handlers]


def _declare_output(model: ModelProto, network: ExportedNetwork) -> None:
    """Declare the batch and the channels of the output, which the exporter leaves open behind slices."""
    graph = network.network.graph
    shapes = tensor_shapes(graph, {graph.inputs[0]: (network.features, network.example_frames())})
    batch, channels, *_ = model.graph.output[0].type.tensor_type.shape.dim
    batch.dim_value, channels.dim_value = 1, shapes[graph.outputs[0]][0]


def _drop_weight_clips(model: ModelProto) -> None:
    constants = constants_of(model)
    for node in [node for node in model.graph.node if node.op_type == "Clip" and node.input[0] in constants]:
        weights, low, high = (constants[name] for name in node.input)
        if weights.min() < low or weights.max() > high:
            raise ValueError(f"{node.name}: weights outside {low} to {high}")
        rename_input(model, node.output[0], node.input[0])


def _unfold_wide_weights(model: ModelProto, layers: LayerNodes) -> None:
    """Write the values of 16-bit weights as float32. ONNX Runtime would fuse the integers into invalid nodes."""
    constants = constants_of(model)
    weights = {node.input[1] for _, node in layers}
    for node in [node for node in model.graph.node if node.op_type == "DequantizeLinear"]:
        integers = constants.get(node.input[0])
        if node.output[0] in weights and integers is not None and integers.dtype == np.int32:
            (axis,) = (attribute.i for attribute in node.attribute if attribute.name == "axis") if node.attribute else (0,)
            shape = [-1 if place == axis else 1 for place in range(integers.ndim)]
            value = integers.astype(np.float32) * constants[node.input[1]].reshape(shape)
            model.graph.initializer.append(numpy_helper.from_array(value, f"{node.output[0]}.float"))
            rename_input(model, node.output[0], f"{node.output[0]}.float")


def _write_pads(model: ModelProto, network: QuantizedNetwork) -> None:
    """Write the amounts of the remaining padding as constants; the exporter has the graph compute them."""
    read = {name for node in model.graph.node for name in node.input} | {output.name for output in model.graph.output}
    nodes = [node for node in model.graph.node if node.op_type == "Pad" and node.output[0] in read]
    operations = [operation for operation in network.graph.operations if isinstance(operation, Pad)]
    for operation, node in zip(operations, nodes, strict=True):
        before, after = operation.padding
        amounts = np.array([0, 0, before, 0, 0, after], np.int64)
        del node.input[1:]
        node.input.append(f"{node.name}.amounts")
        model.graph.initializer.append(numpy_helper.from_array(amounts, node.input[1]))


def _store_weights(model: ModelProto, network: QuantizedNetwork, layers: LayerNodes, *, signed: bool) -> None:
    """Store weights as uint8 where int8 could saturate, unless all are to be `signed`.

    Each layer of uint8 gets a zero point of its own, and int8 none. Brevitas lets layers share one, on which a session fails that
    itself makes weights unsigned.
    """
    constants = constants_of(model)
    writers = {node.output[0]: node for node in model.graph.node}
    widths = network.allocation.by_site
    for layer, node in layers:
        weight = writers.get(node.input[1])
        if weight is None:
            continue
        integers = constants[weight.input[0]].astype(np.int16)
        zero_point = weight.input.pop()
        read = widths[network.graph_sites.read_by(layer)]
        if signed or not could_saturate(layer, integers.shape, widths[layer.name + WEIGHT], read):
            continue
        zeros = np.full(constants[zero_point].shape, UNSIGNED_ZERO_POINT, np.uint8)
        values = {
            f"{node.name}.weight.integers": (integers + UNSIGNED_ZERO_POINT).astype(np.uint8),
            f"{node.name}.weight.zero_point": zeros,
        }
        weight.input[0], zero_name = values
        weight.input.append(zero_name)
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())


def _protect_float_weights(model: ModelProto, network: QuantizedNetwork, layers: LayerNodes) -> None:
    constants = constants_of(model)
    widths = network.allocation.by_site
    for layer, node in reversed(layers):
        plain = {node.input[1], node.input[2]} <= constants.keys()
        if plain and widths[network.graph_sites.read_by(layer)] <= _INTEGER_BITS:
            place = next(place for place, each in enumerate(model.graph.node) if each is node or each.name == node.name)
            _write_bias_as_integers(model, place, node, constants[node.input[2]].astype(np.float32))


def _write_bias_as_integers(model: ModelProto, index: int, node: NodeProto, bias: NDArray[np.float32]) -> None:
    """Give `node` its bias through a DequantizeLinear whose scales are powers of two, so that no bit is lost."""
    _, exponent = np.frexp(bias.astype(np.float64))
    # float32 has 24 bits of mantissa; below 2^-126 the scale itself would leave the normal numbers.
    exponent = np.maximum(exponent, -100)
    scale = np.exp2(exponent - 24.0)
    integers = np.rint(bias / scale).astype(np.int32)
    if not np.array_equal((integers * scale).astype(np.float32), np.where(np.abs(bias) < 2.0**-124, integers * scale, bias)):
        raise ValueError(f"{node.name}: a bias that no integer holds")
    names = [f"{node.name}.bias.{part}" for part in ("integers", "scale", "zero_point", "value")]
    values = (integers, scale.astype(np.float32), np.zeros(len(bias), np.int32))
    for name, value in zip(names, values, strict=False):
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    node.input[2] = names[-1]
    dequantize = helper.make_node("DequantizeLinear", names[:-1], names[-1:], name=f"{node.name}.bias", axis=0)
    model.graph.node.insert(index, dequantize)


def _split_softmax(model: ModelProto) -> None:
    for place, node in reversed(list(enumerate(model.graph.node))):
        if node.op_type == "Softmax":
            node.op_type = "LogSoftmax"
            (made,) = node.output
            node.output[0] = f"{made}.logarithm"
            model.graph.node.insert(place + 1, helper.make_node("Exp", [node.output[0]], [made], name=f"{node.name}.exponential"))
