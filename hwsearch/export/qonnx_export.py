"""Export to QONNX (arXiv 2206.07527): one `Quant` node per quantized tensor, of any width.

The number of frames is fixed, as QONNX's executor and FPGA tools want it.
"""

import copy
import tempfile
import warnings
from pathlib import Path

import onnx
import torch
from brevitas.export import export_qonnx as brevitas_export_qonnx
from onnx import ModelProto, helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.util.cleanup import cleanup_model

from hwsearch.export.description import ExportDescription, seal
from hwsearch.export.network import INPUT, OUTPUT, ExportedNetwork
from hwsearch.files.writing import atomic_write_bytes

_OPSET = 17


def export_qonnx(network: ExportedNetwork, path: Path, description: ExportDescription, frames: int) -> None:
    """Write the network as one QONNX file for features [1, features, frames], atomically."""
    duplicate = copy.deepcopy(network).eval()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of the exporter that Brevitas uses
        target = Path(folder) / "model.onnx"
        brevitas_export_qonnx(
            duplicate,
            args=torch.zeros(1, network.features, frames),
            export_path=str(target),
            opset_version=_OPSET,
            dynamo=False,
            keep_initializers_as_inputs=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
        )
        exported = onnx.load(target)
    _read_once(exported)
    model: ModelProto = cleanup_model(ModelWrapper(exported)).model
    atomic_write_bytes(path, seal(model, description))


def _read_once(model: ModelProto) -> None:
    """Put an `Identity` before each further input of a node that is the same tensor: qonnx renames only the first of them."""
    for place, node in reversed(list(enumerate(model.graph.node))):
        for number, name in enumerate(node.input):
            if name and name in node.input[:number]:
                node.input[number] = f"{node.output[0]}.input_{number}"
                identity = helper.make_node("Identity", [name], [node.input[number]], name=f"{node.name}.input_{number}")
                model.graph.node.insert(place, identity)
