"""Export to QONNX (arXiv 2206.07527): one `Quant` node per quantized tensor, of any width.

The number of frames is fixed, because QONNX's executor and FPGA tools require it.
"""

from pathlib import Path

from brevitas.export import export_qonnx as brevitas_export_qonnx
from onnx import ModelProto, helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.util.cleanup import cleanup_model

from hwsearch.export.description import ExportDescription, seal
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.onnx_export import brevitas_model
from hwsearch.files.writing import atomic_write_bytes


def export_qonnx(network: ExportedNetwork, path: Path, description: ExportDescription, frames: int) -> None:
    """Write the network as one QONNX file for features [1, features, frames], atomically."""
    exported = brevitas_model(brevitas_export_qonnx, network, frames)
    _read_once(exported)
    model: ModelProto = cleanup_model(ModelWrapper(exported)).model
    atomic_write_bytes(path, seal(model, description))


def _read_once(model: ModelProto) -> None:
    """Put an `Identity` before each repeated input of a node, since qonnx renames only the first occurrence."""
    for place, node in reversed(list(enumerate(model.graph.node))):
        for number, name in enumerate(node.input):
            if name and name in node.input[:number]:
                node.input[number] = f"{node.output[0]}.input_{number}"
                identity = helper.make_node("Identity", [name], [node.input[number]], name=f"{node.name}.input_{number}")
                model.graph.node.insert(place, identity)
