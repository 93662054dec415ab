"""Export to ONNX: integer weights and QuantizeLinear / DequantizeLinear pairs, for integer kernels.

Brevitas writes the graph; what follows mends what would keep runtimes from the integer kernels or make them
compute something else:

- A `Clip` on constant weights is dropped: they are within its bounds.
- The `Pad` of a causal layer moves into the convolution's own padding, which integer kernels fuse.
- The bias of a floating-point convolution between quantized tensors goes through a `DequantizeLinear` that
  gives it back exactly. With a plain bias ONNX Runtime would quantize that layer's weights to 8 bits by
  itself.
- A softmax becomes the exponential of its logarithm. ONNX Runtime's softmax between integers is off by up to a quarter of a step.
- Weights whose products could saturate in the kernels of some processors are stored as uint8: see
  `hwsearch.export.saturation`.
"""

import copy
import tempfile
import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
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

from hwsearch.export.description import ExportDescription, seal
from hwsearch.export.network import INPUT, OUTPUT, ExportedNetwork
from hwsearch.export.saturation import UNSIGNED_ZERO_POINT, could_saturate
from hwsearch.files.writing import atomic_write_bytes
from hwsearch.network.operations import Convolution, Operation, Pad
from hwsearch.network.shapes import tensor_shapes
from hwsearch.network.sites import LAYERS, WEIGHT
from hwsearch.separator.quantized import QuantizedNetwork
from hwsearch.separator.quantizers import bias_integers

_OPSET = 17
LAYER_NODES = ("Conv", "ConvTranspose", "Gemm")
"""Operators that layers are written as."""

_INTEGER_BITS = 8
"""Widest integers of a file but for biases."""


def export_onnx(network: ExportedNetwork, path: Path, description: ExportDescription) -> None:
    """Write the network as one self-contained ONNX file, atomically.

    The frames axis is dynamic, the batch is 1. Weights up to 8 bits are stored as int8 or uint8 and wider ones as
    float32; activations are uint8, below 8 bits with a `Clip`, and wider ones rounded float32. The file gives the same integers
    on every processor.
    """
    model = _brevitas_model(network)
    _declare_output(model, network)
    layers = _layer_nodes(model, network.network)
    _drop_weight_clips(model)
    _fold_pads(model, layers)
    _write_pads(model, network.network)
    _unfold_wide_weights(model, layers)
    _store_weights(model, network.network, layers)
    _protect_float_weights(model, network.network, layers)
    _split_softmax(model)
    _drop_unused(model)
    onnx.checker.check_model(model, full_check=True)
    atomic_write_bytes(path, seal(model, description))


def integer_kernels(path: Path) -> dict[str, int]:
    """How many layers ONNX Runtime runs on integer kernels on this machine, read from its optimized graph.

    Returns:
        `integer_convolutions`, `float_convolutions`, `integer_adds`, `float_adds`.
    """
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(optimized)
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        operators = [node.op_type for node in onnx.load(optimized).graph.node]
    kinds = {
        # A linear layer is a convolution over one frame.
        "integer_convolutions": ("QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger"),
        "float_convolutions": ("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul"),
        "integer_adds": ("QLinearAdd",),
        "float_adds": ("Add",),
    }
    return {kind: sum(operator in names for operator in operators) for kind, names in kinds.items()}


class _WeightHandler(StdQCDQCastONNXWeightQuantProxyHandler):  # type: ignore[misc]  # Brevitas is untyped
    """Brevitas's writer of integer weights, also for 16 bits, which it would refuse."""

    def validate(self, module: WeightQuantProxyFromInjector) -> None:
        if int(module.bit_width()) <= _INTEGER_BITS:
            super().validate(module)


class _BiasHandler(StdCDQCastONNXBiasQuantProxyHandler):  # type: ignore[misc]  # Brevitas is untyped
    """Brevitas's writer of integer biases, without its way through float32, which fails on large ones."""

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
    """Brevitas's writer of quantizers, also for more than 8 bits, which `QuantizeLinear` does not take: as plain arithmetic."""

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


def is_wide_quantizer(node: NodeProto) -> bool:
    """Whether a node of a file puts out values that are rounded to more than 8 bits."""
    return node.op_type == "Mul" and "/quantizer/act_quant/" in node.name


_OWN_HANDLERS = {
    StdQCDQCastONNXActQuantProxyHandler: _ActivationHandler,
    StdQCDQCastONNXWeightQuantProxyHandler: _WeightHandler,
    StdCDQCastONNXBiasQuantProxyHandler: _BiasHandler,
}


class _Manager(StdQCDQONNXManager):  # type: ignore[misc]  # Brevitas is untyped
    handlers: ClassVar = [_OWN_HANDLERS.get(handler, handler) for handler in StdQCDQONNXManager.handlers]


def _brevitas_model(network: ExportedNetwork) -> ModelProto:
    """What Brevitas's exporter makes of a copy of the network: it leaves its handlers in the modules."""
    duplicate = copy.deepcopy(network).eval()
    example = torch.zeros(1, network.features, network.example_frames())
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of the exporter that Brevitas uses
        target = Path(folder) / "model.onnx"
        _Manager.export(
            duplicate,
            args=example,
            export_path=str(target),
            opset_version=_OPSET,
            dynamo=False,
            keep_initializers_as_inputs=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {2: "frames"}, OUTPUT: {2: "frames"}},
        )
        return onnx.load(target)


def _declare_output(model: ModelProto, network: ExportedNetwork) -> None:
    """Write batch and channels of the output, which the exporter does not know behind parts of tensors."""
    graph = network.network.graph
    shapes = tensor_shapes(graph, {graph.inputs[0]: (network.features, network.example_frames())})
    batch, channels, *_ = model.graph.output[0].type.tensor_type.shape.dim
    batch.dim_value, channels.dim_value = 1, shapes[graph.outputs[0]][0]


def _initializers(model: ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _rename_input(model: ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def _drop_weight_clips(model: ModelProto) -> None:
    constants = _initializers(model)
    for node in [node for node in model.graph.node if node.op_type == "Clip" and node.input[0] in constants]:
        weights, low, high = (constants[name] for name in node.input)
        if weights.min() < low or weights.max() > high:
            raise ValueError(f"{node.name}: weights outside {low} to {high}")
        _rename_input(model, node.output[0], node.input[0])


_Layers = list[tuple[Operation, NodeProto]]
"""Layers of a graph with their nodes."""


def _layer_nodes(model: ModelProto, network: QuantizedNetwork) -> _Layers:
    """The node of each layer, in the order of execution, in which Brevitas's exporter writes them."""
    layers = [operation for operation in network.graph.operations if isinstance(operation, LAYERS)]
    nodes = [node for node in model.graph.node if node.op_type in LAYER_NODES]
    for layer, node in zip(layers, nodes, strict=True):
        if not node.name.startswith(f"/network/{network.key(layer.name)}/"):
            raise ValueError(f"the node '{node.name}' is not of layer '{layer.name}'")
    return list(zip(layers, nodes, strict=True))


def _unfold_wide_weights(model: ModelProto, layers: _Layers) -> None:
    """Write 16-bit weights as the floats they stand for; ONNX Runtime would fuse them into invalid nodes."""
    constants = _initializers(model)
    weights = {node.input[1] for _, node in layers}
    for node in [node for node in model.graph.node if node.op_type == "DequantizeLinear"]:
        integers = constants.get(node.input[0])
        if node.output[0] in weights and integers is not None and integers.dtype == np.int32:
            (axis,) = (attribute.i for attribute in node.attribute if attribute.name == "axis") if node.attribute else (0,)
            shape = [-1 if place == axis else 1 for place in range(integers.ndim)]
            value = integers.astype(np.float32) * constants[node.input[1]].reshape(shape)
            model.graph.initializer.append(numpy_helper.from_array(value, f"{node.output[0]}.float"))
            _rename_input(model, node.output[0], f"{node.output[0]}.float")


def _fold_pads(model: ModelProto, layers: _Layers) -> None:
    """Move padding into its convolution where both ends differ, which Brevitas's layers do not have."""
    writers = {node.output[0]: node for node in model.graph.node}
    for layer, node in layers:
        if isinstance(layer, Convolution) and layer.padding[0] != layer.padding[1]:
            attribute = next(attribute for attribute in node.attribute if attribute.name == "pads")
            attribute.ints[:] = layer.padding
            node.input[0] = writers[node.input[0]].input[0]


def _write_pads(model: ModelProto, network: QuantizedNetwork) -> None:
    """Write the amounts of the padding that is left as constants; the exporter has them computed."""
    read = {name for node in model.graph.node for name in node.input} | {output.name for output in model.graph.output}
    nodes = [node for node in model.graph.node if node.op_type == "Pad" and node.output[0] in read]
    operations = [operation for operation in network.graph.operations if isinstance(operation, Pad)]
    for operation, node in zip(operations, nodes, strict=True):
        before, after = operation.padding
        amounts = np.array([0, 0, before, 0, 0, after], np.int64)
        del node.input[1:]
        node.input.append(f"{node.name}.amounts")
        model.graph.initializer.append(numpy_helper.from_array(amounts, node.input[1]))


def _store_weights(model: ModelProto, network: QuantizedNetwork, layers: _Layers) -> None:
    """Store weights as uint8 where int8 could saturate, with a zero point for each layer; int8 needs none.

    Brevitas lets layers share a zero point. A session that makes weights unsigned by itself fails on that.
    """
    constants = _initializers(model)
    writers = {node.output[0]: node for node in model.graph.node}
    widths = network.allocation.by_site
    for layer, node in layers:
        weight = writers.get(node.input[1])
        if weight is None:
            continue
        integers = constants[weight.input[0]].astype(np.int16)
        zero_point = weight.input.pop()
        read = widths[network.graph_sites.read_by(layer)]
        if not could_saturate(layer, integers.shape, widths[layer.name + WEIGHT], read):
            continue
        zeros = np.full(constants[zero_point].shape, UNSIGNED_ZERO_POINT, np.uint8)
        values = {
            f"{node.name}.weight.integers": (integers + UNSIGNED_ZERO_POINT).astype(np.uint8),
            f"{node.name}.weight.zero_point": zeros,
        }
        weight.input[0], zero_name = values
        weight.input.append(zero_name)
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())


def _protect_float_weights(model: ModelProto, network: QuantizedNetwork, layers: _Layers) -> None:
    constants = _initializers(model)
    widths = network.allocation.by_site
    for layer, node in reversed(layers):
        plain = {node.input[1], node.input[2]} <= constants.keys()
        if plain and widths[network.graph_sites.read_by(layer)] <= _INTEGER_BITS:
            place = next(place for place, each in enumerate(model.graph.node) if each is node or each.name == node.name)
            _write_bias_as_integers(model, place, node, constants[node.input[2]].astype(np.float32))


def _write_bias_as_integers(model: ModelProto, index: int, node: NodeProto, bias: NDArray[np.float32]) -> None:
    """Give `node` its bias through a DequantizeLinear with powers of two for scales: no bit is lost."""
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


def _drop_unused(model: ModelProto) -> None:
    """Drop nodes and constants that no output depends on."""
    used = {output.name for output in model.graph.output}
    kept: list[NodeProto] = []
    for node in reversed(model.graph.node):
        if used.intersection(node.output):
            used.update(node.input)
            kept.append(node)
    constants = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)
