"""Export to ONNX: integer weights and QuantizeLinear / DequantizeLinear pairs, for integer kernels.

The file is written from the graph of the network, part by part (`hwsearch.export.onnx_parts`). Weights whose products could
saturate in the kernels of some processors are stored as uint8 (`hwsearch.export.saturation`).
"""

import json
import tempfile
from pathlib import Path

import onnx
from onnx import ModelProto

from hwsearch.export.brevitas_graph import drop_unused
from hwsearch.export.description import ExportDescription, read_model, seal
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.onnx_graph import ReadGrid, most_names, write_graph, write_parameters
from hwsearch.export.onnx_parts import Shared, write_float_read, write_quantizer
from hwsearch.export.onnx_size import OnnxSize
from hwsearch.export.onnx_writer import OnnxWriter
from hwsearch.export.runtime import open_session
from hwsearch.export.saturation import could_saturate
from hwsearch.export.sound.end_to_end import STATE, end_to_end
from hwsearch.files.writing import atomic_write_bytes
from hwsearch.network.operations import Operation, Read
from hwsearch.network.shapes import tensor_shapes
from hwsearch.network.sites import WEIGHT

FIRST_KEY = "hwsearch_first"
"""Metadata of a file that streams: a JSON object with the first value of every state that does not begin with zeros."""


def export_onnx(network: ExportedNetwork, path: Path, description: ExportDescription) -> None:
    """Write the network as one self-contained ONNX file, atomically. Its size is that of `OnnxSize`.

    The frames axis is dynamic, the batch is 1. Weights up to 8 bits are int8 or uint8 once the file is loaded, and wider ones
    float32. Activations up to 8 bits are uint8 (int8 in front of another quantizer), with a `Clip` below 8
    bits; wider ones are rounded float32. The file gives the
    same integers on all of `description.processors`.
    """
    model = _model(network, signed=description.processors == "vnni")
    onnx.checker.check_model(model, full_check=True)
    scales = [weight.scale for weight in network.network.quantized_weights().values() if weight is not None]
    per_channel = any(scale.numel() > 1 for scale in scales)
    size = OnnxSize(network.network.graph, network.features, description, per_channel=per_channel)
    drop_unused(model)  # shared constants, of which ONNX Runtime would warn; the file keeps their bytes, as spaces
    atomic_write_bytes(path, seal(model, description, size.of(description.allocation)))


def export_sound(path: Path, output: Path) -> None:
    """Write the file from sound to sound around the network of a file of `export_onnx`, atomically."""
    model, description = read_model(path.read_bytes(), str(path))
    whole, states = end_to_end(model, description)
    firsts = {f"{STATE}{number}": int(state.first) for number, state in enumerate(states) if state.first}
    if firsts:
        whole.metadata_props.add(key=FIRST_KEY, value=json.dumps(firsts))
    onnx.checker.check_model(whole, full_check=True)
    atomic_write_bytes(output, seal(whole, description))


def _model(network: ExportedNetwork, *, signed: bool) -> ModelProto:
    """Write the graph of a network, with all integer weights `signed` or with those unsigned that could saturate."""
    quantized = network.network
    graph, sites, widths = quantized.master_copy(), quantized.graph_sites, quantized.allocation.by_site
    weights, grids = quantized.quantized_weights(), quantized.activation_grids()
    writer = OnnxWriter(most_names(graph, sites))
    shared = Shared.of(writer)
    read: dict[str, ReadGrid] = {}

    def at_tensor(tensor: str, name: str) -> str:
        site = sites.of_tensor.get(tensor)
        grid = None if site is None else grids[site]
        if site is None or grid is None:
            return write_float_read(writer, shared, name) if isinstance(graph.by_name.get(tensor), Read) else name
        # ONNX Runtime would make one quantizer of two in a row, with other numbers, if their integers had the same type.
        signed = [type(reader) for reader in graph.readers[tensor]] == [Read]
        found = write_quantizer(writer, shared, name, grid, signed=signed)
        read[site] = grid, found.scale
        return found.name

    def parameters_of(layer: Operation) -> tuple[str, str]:
        weight, bias = (graph.parameter(layer, part) for part in ("weight", "bias"))
        site, before = layer.name + WEIGHT, sites.read_by(layer)
        unsigned = not signed and could_saturate(layer, weight.shape, widths[site], widths[before])
        return write_parameters(writer, shared, layer, weights[site] or weight, bias, read.get(before), unsigned=unsigned)

    channels, *_ = tensor_shapes(graph, {graph.inputs[0]: (network.features, network.example_frames())})[graph.outputs[0]]
    return write_graph(writer, graph, (network.mean, network.scale), channels, at_tensor, parameters_of)


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


def wide_quantized(model: ModelProto) -> frozenset[str]:
    """Return the tensors that quantizers to more than 8 bits make."""
    writers = {node.output[0]: node for node in model.graph.node}

    def is_made_by(tensor: str, *operators: str) -> bool:
        node = writers.get(tensor)
        return not operators or (
            node is not None and node.op_type == operators[-1] and is_made_by(node.input[0], *operators[:-1])
        )

    return frozenset(tensor for tensor in writers if is_made_by(tensor, "Div", "Round", "Clip", "Mul"))
