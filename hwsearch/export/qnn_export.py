"""Export for Qualcomm's QNN: the QNN profile of ONNX, of standard nodes that stand for integers of fixed widths.

Every weight is an INT8 constant, or on request INT4, behind a `DequantizeLinear`, and every bias an INT32 one. Every activation
goes through a `QuantizeLinear` and a `DequantizeLinear` of UINT8 or UINT16. That needs opset 21. The number of frames is fixed,
because QNN takes no dynamic shapes.
"""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor

from hwsearch.errors import UserError
from hwsearch.export.description import ExportDescription, seal
from hwsearch.export.integer_only import NIBBLE_BITS, check_integer_only, integer_bias
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.onnx_graph import as_array, most_names, write_graph
from hwsearch.export.onnx_writer import OnnxWriter
from hwsearch.files.writing import atomic_write_bytes
from hwsearch.network.operations import Mean, Operation, TransposedConvolution
from hwsearch.network.shapes import tensor_shapes
from hwsearch.network.sites import WEIGHT
from hwsearch.separator.quantizers import MAX_BITS, ActivationGrid, QuantizedWeight
from hwsearch.separator.rounded_weights import output_scale

_OPSET, _IR_VERSION = 21, 10


def export_qnn(network: ExportedNetwork, path: Path, description: ExportDescription, frames: int, *, int4: bool) -> None:
    """Write the network as one ONNX file for features [1, features, frames], atomically.

    Args:
        network: the network.
        path: where to write.
        description: of the network.
        frames: number of frames.
        int4: whether weights of at most 4 bits are INT4; else all weights are INT8.

    Raises:
        UserError: the format does not take a width or an operation of the network.
    """
    quantized = network.network
    check_integer_only(quantized.allocation, "qnn-int4" if int4 else "qnn")
    graph, sites = quantized.master_copy(), quantized.graph_sites
    if means := [operation.name for operation in graph.operations if isinstance(operation, Mean)]:
        raise UserError(f"'{means[0]}' is a mean over frames, which --format qnn does not take; wanted --format onnx")
    weights = {site: weight for site, weight in quantized.quantized_weights().items() if weight is not None}
    grids = {site: grid for site, grid in quantized.activation_grids().items() if grid is not None}
    writer = OnnxWriter(most_names(graph, sites))

    def at_tensor(tensor: str, name: str) -> str:
        site = sites.of_tensor.get(tensor)
        return name if site is None else _write_quantizer(writer, name, grids[site])

    def parameters_of(layer: Operation) -> tuple[str, str]:
        bias, read = graph.parameter(layer, "bias"), grids[sites.read_by(layer)]
        weight = weights[layer.name + WEIGHT]
        kind = np.dtype(ml_dtypes.int4 if int4 and weight.bits <= NIBBLE_BITS else np.int8)
        return _write_parameters(writer, layer, weight, kind, bias, read)

    channels, _ = tensor_shapes(graph, {graph.inputs[0]: (network.features, frames)})[graph.outputs[0]]
    model = write_graph(writer, graph, (network.mean, network.scale), channels, at_tensor, parameters_of)
    _fix(model, frames)
    onnx.checker.check_model(model, full_check=True)
    atomic_write_bytes(path, seal(model, description))


def _write_quantizer(writer: OnnxWriter, x: str, grid: ActivationGrid) -> str:
    """Round a tensor to its grid. Grids of fewer levels than their type are clipped before that, which changes no integer."""
    kind = np.uint8 if grid.bits <= MAX_BITS else np.uint16
    if grid.levels < np.iinfo(kind).max:
        x = writer.node("Clip", [x, *(writer.constant(np.array(end, np.float32)) for end in (grid.low, grid.high))])
    scale, zero_point = writer.constant(np.array(grid.scale, np.float32)), writer.constant(np.array(grid.zero_point, kind))
    return writer.node("DequantizeLinear", [writer.node("QuantizeLinear", [x, scale, zero_point]), scale, zero_point])


def _write_parameters(
    writer: OnnxWriter, layer: Operation, weight: QuantizedWeight, kind: np.dtype[Any], bias: Tensor, read: ActivationGrid
) -> tuple[str, str]:
    """Write the weights of a layer, in a type, and its bias; return the names of what they stand for."""
    integers = weight.integers.numpy().astype(kind)
    axis = 1 if isinstance(layer, TransposedConvolution) else 0
    product = output_scale(layer, weight.scale) * read.scale
    biases = integer_bias(bias, product, read.bits).astype(np.int32)
    return (
        _write_integers(writer, integers, as_array(weight.scale.flatten()), axis),
        _write_integers(writer, biases, as_array(product), 0),
    )


def _write_integers(writer: OnnxWriter, integers: NDArray[np.generic], scale: NDArray[np.float32], axis: int) -> str:
    """Write integers with scales [channels], or with one scale [1]."""
    own = {"axis": axis} if len(scale) > 1 else {}
    stored = writer.constant(scale if len(scale) > 1 else scale[0])
    return writer.node("DequantizeLinear", [writer.constant(integers), stored], **own)


def _fix(model: ModelProto, frames: int) -> None:
    """Set the number of frames, and the versions that know INT4."""
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[2].dim_value = frames
    model.opset_import[0].version = _OPSET
    model.ir_version = _IR_VERSION
