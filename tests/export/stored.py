"""The constants of an exported file, as another runtime computes them: ONNX's own reference implementation."""

from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator


def stored(model: ModelProto) -> dict[str, NDArray[Any]]:
    """Every tensor of a graph that does not depend on its input and is not dequantized, by name."""
    graph = model.graph
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes, known = [], set(found)
    for node in graph.node:
        if known.issuperset(node.input) and node.op_type != "DequantizeLinear":
            nodes.append(node)
            known.update(node.output)
    outputs = [helper.make_empty_tensor_value_info(name) for node in nodes for name in node.output]
    part = helper.make_model(
        helper.make_graph(nodes, "constants", [], outputs, list(graph.initializer)), opset_imports=list(model.opset_import)
    )
    made = ReferenceEvaluator(part).run(None, {})
    return found | dict(zip((output.name for output in outputs), made, strict=True))
