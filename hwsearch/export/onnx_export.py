"""Export to ONNX: integer weights and QuantizeLinear / DequantizeLinear pairs, for integer kernels.

Brevitas writes the graph; what follows mends what would keep runtimes from the integer kernels or make them
compute something else:

- A `Clip` on constant weights is dropped: they are within its bounds.
- The `Pad` of a causal layer moves into the convolution's own padding, which integer kernels fuse.
- The bias of a floating-point convolution between quantized tensors goes through a `DequantizeLinear` that
  gives it back exactly. With a plain bias ONNX Runtime would quantize that layer's weights to 8 bits by
  itself.
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
    StdQCDQCastONNXWeightQuantProxyHandler,
)
from brevitas.export.onnx.standard.qcdq.manager import StdQCDQONNXManager
from brevitas.proxy import BiasQuantProxyFromInjector, WeightQuantProxyFromInjector
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from hwsearch.export.description import ExportDescription, seal
from hwsearch.export.network import INPUT, OUTPUT, ExportedNetwork
from hwsearch.export.saturation import UNSIGNED_ZERO_POINT, holds_unsigned_weights
from hwsearch.files import atomic_write_bytes
from hwsearch.separator.folding import input_site
from hwsearch.separator.quantized import QuantizedMaskNetwork
from hwsearch.separator.quantizers import bias_integers

_OPSET = 17
_TRACED_FRAMES = 16
"""Frames of the dummy input; the axis is dynamic."""


def export_onnx(network: ExportedNetwork, path: Path, description: ExportDescription) -> None:
    """Write the network as one self-contained ONNX file, atomically.

    The frames axis is dynamic, the batch is 1. Weights up to 8 bits are stored as int8 or uint8 and wider ones as
    float32; activations are uint8, below 8 bits with a `Clip`. The file gives the same integers on every processor.
    """
    model = _brevitas_model(network)
    _drop_weight_clips(model)
    _fold_pads(model, network.network)
    _unfold_wide_weights(model)
    _store_weights(model, network.network)
    _protect_float_weights(model)
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
        "integer_convolutions": ("QLinearConv", "ConvInteger"),
        "float_convolutions": ("Conv", "FusedConv"),
        "integer_adds": ("QLinearAdd",),
        "float_adds": ("Add",),
    }
    return {kind: sum(operator in names for operator in operators) for kind, names in kinds.items()}


class _WeightHandler(StdQCDQCastONNXWeightQuantProxyHandler):  # type: ignore[misc]  # Brevitas is untyped
    """Brevitas's writer of integer weights, also for 16 bits, which it would refuse."""

    def validate(self, module: WeightQuantProxyFromInjector) -> None:
        if int(module.bit_width()) <= 8:
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


_OWN_HANDLERS = {
    StdQCDQCastONNXWeightQuantProxyHandler: _WeightHandler,
    StdCDQCastONNXBiasQuantProxyHandler: _BiasHandler,
}


class _Manager(StdQCDQONNXManager):  # type: ignore[misc]  # Brevitas is untyped
    handlers: ClassVar = [_OWN_HANDLERS.get(handler, handler) for handler in StdQCDQONNXManager.handlers]


def _brevitas_model(network: ExportedNetwork) -> ModelProto:
    """What Brevitas's exporter makes of a copy of the network: it leaves its handlers in the modules."""
    duplicate = copy.deepcopy(network).eval()
    example = torch.zeros(1, network.features, _TRACED_FRAMES)
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


def _unfold_wide_weights(model: ModelProto) -> None:
    """Write 16-bit weights as the floats they stand for; ONNX Runtime would fuse them into invalid nodes."""
    constants = _initializers(model)
    weights = {node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    for node in [node for node in model.graph.node if node.op_type == "DequantizeLinear"]:
        integers = constants.get(node.input[0])
        if node.output[0] in weights and integers is not None and integers.dtype == np.int32:
            scale = constants[node.input[1]].reshape(-1, 1, 1)
            value = integers.astype(np.float32) * scale
            model.graph.initializer.append(numpy_helper.from_array(value, f"{node.output[0]}.float"))
            _rename_input(model, node.output[0], f"{node.output[0]}.float")


def _fold_pads(model: ModelProto, network: QuantizedMaskNetwork) -> None:
    """Move the padding of causal layers into their convolutions; the network knows its amounts."""
    amounts = [pads for pads in network.pads.values() if pads[0] != pads[1]]
    nodes = [node for node in model.graph.node if node.op_type == "Pad"]
    for node, (before, after) in zip(nodes, amounts, strict=True):
        (reader,) = (reader for reader in model.graph.node if node.output[0] in reader.input)
        attribute = next(attribute for attribute in reader.attribute if attribute.name == "pads")
        attribute.ints[:] = [before, after]
        _rename_input(model, node.output[0], node.input[0])


def _store_weights(model: ModelProto, network: QuantizedMaskNetwork) -> None:
    """Store weights as uint8 where int8 could saturate, with a zero point for each layer; int8 needs none.

    Brevitas lets layers share a zero point. A session that makes weights unsigned by itself fails on that.
    """
    constants = _initializers(model)
    writers = {node.output[0]: node for node in model.graph.node}
    widths = network.allocation.by_site
    layers = [node for node in model.graph.node if node.op_type == "Conv"]
    for name, node in zip(network.pads, layers, strict=True):
        weight = writers.get(node.input[1])
        if weight is None:
            continue
        integers = constants[weight.input[0]].astype(np.int16)
        zero_point = weight.input.pop()
        groups = network.convolution(name).groups
        if not holds_unsigned_weights(groups, widths[f"{name}.weight"], widths[input_site(network.config, name)]):
            continue
        zeros = np.full(constants[zero_point].shape, UNSIGNED_ZERO_POINT, np.uint8)
        values = {
            f"{node.name}.weight.integers": (integers + UNSIGNED_ZERO_POINT).astype(np.uint8),
            f"{node.name}.weight.zero_point": zeros,
        }
        weight.input[0], zero_name = values
        weight.input.append(zero_name)
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())


def _protect_float_weights(model: ModelProto) -> None:
    constants = _initializers(model)
    dequantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    for index, node in reversed(list(enumerate(model.graph.node))):
        plain = node.op_type == "Conv" and {node.input[1], node.input[2]} <= constants.keys()
        if plain and node.input[0] in dequantized:
            _write_bias_as_integers(model, index, node, constants[node.input[2]].astype(np.float32))


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
