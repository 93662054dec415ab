"""Export to QONNX (arXiv 2206.07527): one `Quant` node per quantized tensor, of any width.

The number of frames is fixed, because QONNX's executor and FPGA tools require it. Quantized tensors are named after their sites.
The grids of activations begin at zero (`hwsearch.export.zero_points`).
"""

from pathlib import Path

from brevitas.export import export_qonnx as brevitas_export_qonnx
from onnx import ModelProto, helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.util.cleanup import cleanup_model

from hwsearch.export.brevitas_graph import LAYER_NODES, brevitas_model, drop_unused, fold_pads, layer_nodes
from hwsearch.export.description import ExportDescription, seal
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.site_nodes import quantizers
from hwsearch.export.zero_points import drop_zero_points
from hwsearch.files.writing import atomic_write_bytes
from hwsearch.network.shapes import tensor_shapes
from hwsearch.network.sites import LAYERS, WEIGHT


def export_qonnx(network: ExportedNetwork, path: Path, description: ExportDescription, frames: int) -> None:
    """Write the network as one QONNX file for features [1, features, frames], atomically."""
    exported = brevitas_model(brevitas_export_qonnx, network, frames)
    layers = layer_nodes(exported, network.network)
    fold_pads(exported, layers)
    graph = network.network.graph
    shapes = tensor_shapes(graph, {graph.inputs[0]: (network.features, frames)})
    drop_zero_points(exported, network.network, layers, shapes)
    drop_unused(exported)
    _read_once(exported)
    model: ModelProto = cleanup_model(ModelWrapper(exported)).model
    _name_tensors(model, network)
    atomic_write_bytes(path, seal(model, description))


def _name_tensors(model: ModelProto, network: ExportedNetwork) -> None:
    """Name what quantizers make after their sites; the graph's input and output keep their names."""
    graph = model.graph
    writers = {node.output[0]: node for node in graph.node}
    names = {node.output[0]: site for site, node in quantizers(model, network, lambda node: node.op_type == "Quant").items()}
    layers = [operation.name for operation in network.network.graph.operations if isinstance(operation, LAYERS)]
    nodes = [node for node in graph.node if node.op_type in LAYER_NODES]
    for layer, node in zip(layers, nodes, strict=True):
        parts = zip((WEIGHT, ".bias"), node.input[1:], strict=True)
        names |= {name: layer + part for part, name in parts if name in writers}
    for end in graph.output:
        names.pop(end.name, None)
    for node in graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(name, name) for name in tensors]
    for each in graph.value_info:
        each.name = names.get(each.name, each.name)
    for annotation in graph.quantization_annotation:
        annotation.tensor_name = names.get(annotation.tensor_name, annotation.tensor_name)


def _read_once(model: ModelProto) -> None:
    """Put an `Identity` before each repeated input of a node, since qonnx renames only the first occurrence."""
    for place, node in reversed(list(enumerate(model.graph.node))):
        for number, name in enumerate(node.input):
            if name and name in node.input[:number]:
                node.input[number] = f"{node.output[0]}.input_{number}"
                identity = helper.make_node("Identity", [name], [node.input[number]], name=f"{node.name}.input_{number}")
                model.graph.node.insert(place, identity)
