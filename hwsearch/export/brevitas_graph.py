"""The graph that Brevitas writes for QONNX, and what is changed in it."""

import copy
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from hwsearch.export.description import INPUT, OUTPUT
from hwsearch.export.network import ExportedNetwork
from hwsearch.network.operations import Convolution, Operation
from hwsearch.network.sites import LAYERS
from hwsearch.separator.quantized import QuantizedNetwork

LAYER_NODES = ("Conv", "ConvTranspose", "Gemm")
"""Operators that layers are written as."""

LayerNodes = list[tuple[Operation, NodeProto]]
"""Layers of a graph with their nodes."""


def brevitas_model(export: Callable[..., object], network: ExportedNetwork, frames: int, **options: Any) -> ModelProto:
    """The graph that an exporter of Brevitas writes for a network.

    Args:
        export: the exporter.
        network: the network. A copy is exported, since Brevitas leaves its handlers in the modules.
        frames: number of frames to trace the network with.
        options: further arguments of the exporter.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates the exporter that Brevitas uses
        target = Path(folder) / "model.onnx"
        export(
            copy.deepcopy(network).eval(),
            args=torch.zeros(1, network.features, frames),
            export_path=str(target),
            opset_version=17,
            dynamo=False,
            keep_initializers_as_inputs=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            **options,
        )
        return onnx.load(target)


def layer_nodes(model: ModelProto, network: QuantizedNetwork) -> LayerNodes:
    """The node of each layer. Brevitas writes them in the order of execution."""
    layers = [operation for operation in network.graph.operations if isinstance(operation, LAYERS)]
    nodes = [node for node in model.graph.node if node.op_type in LAYER_NODES]
    for layer, node in zip(layers, nodes, strict=True):
        if not node.name.startswith(f"/network/{network.key(layer.name)}/"):
            raise ValueError(f"the node '{node.name}' is not of layer '{layer.name}'")
    return list(zip(layers, nodes, strict=True))


def constants_of(model: ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def fold_pads(model: ModelProto, layers: LayerNodes) -> None:
    """Move unequal padding, which Brevitas writes as a node of its own, into its convolution."""
    writers = {node.output[0]: node for node in model.graph.node}
    for layer, node in layers:
        if isinstance(layer, Convolution) and layer.padding[0] != layer.padding[1]:
            attribute = next(attribute for attribute in node.attribute if attribute.name == "pads")
            attribute.ints[:] = layer.padding
            node.input[0] = writers[node.input[0]].input[0]


def drop_unused(model: ModelProto) -> None:
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
