"""MACs, bit operations and weight bits of a network by QONNX's `inference_cost`, without its discount for zero weights.

Each case becomes a graph of convolutions and sums with a `Quant` node on every tensor that has a width; 32 bits stay float32.

    python tools/qonnx.py cases.json results.json
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT_BITS = 32


def main() -> None:
    """Write QONNX's answer to every case."""
    # This file has the package's name: its own folder must not be looked through first.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.util.inference_cost import inference_cost

    results = []
    for case in json.loads(Path(sys.argv[1]).read_text("utf-8")):
        cost = inference_cost(ModelWrapper(Graph(case).model()), discount_sparsity=False)["total_cost"]
        if cost["unsupported"] != str(set()):
            raise ValueError(f"{case['name']}: QONNX left out {cost['unsupported']}")
        results.append({"macs": cost["total_macs"], "bops": cost["total_bops"], "weight_bits": cost["total_mem_w_bits"]})
    versions = {name: version(name) for name in ("qonnx", "onnx")}
    Path(sys.argv[2]).write_text(json.dumps({"versions": versions, "results": results}), "utf-8")


class Graph:
    """A case as a QONNX graph; tensors are `[1, channels, frames]`."""

    def __init__(self, case: dict[str, Any]) -> None:
        """Write every layer of the case."""
        self.case = case
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        written = {layer["output_site"] for layer in case["layers"]}
        self.inputs = [site for site in case["site_channels"] if site not in written]
        self.quantized = {site: self.quantize(site, case["bits"][site], signed=1) for site in self.inputs}
        for layer in case["layers"]:
            self.add(layer)

    def add(self, layer: dict[str, Any]) -> None:
        """One layer and the quantizer of its output."""
        inputs = [self.quantized[site] for site in layer["input_sites"]]
        if layer["kind"] == "add":
            self.nodes.append(helper.make_node("Add", inputs, [layer["output_site"]]))
        else:
            groups = layer["in_channels"] if layer["kind"] == "depthwise" else 1
            channels = (layer["out_channels"], layer["in_channels"] // groups, layer["kernel_size"])
            weight = self.constant(layer["weight_site"], np.ones(channels, np.float32))
            inputs.append(self.quantize(weight, self.case["bits"][layer["weight_site"]], signed=1))
            if layer["bias"]:
                inputs.append(self.constant(f"{layer['name']}.bias", np.ones(layer["out_channels"], np.float32)))
            before = (layer["kernel_size"] - 1) * layer["dilation"] // 2
            after = (layer["kernel_size"] - 1) * layer["dilation"] - before
            convolution = helper.make_node(
                "Conv",
                inputs,
                [layer["output_site"]],
                kernel_shape=[layer["kernel_size"]],
                dilations=[layer["dilation"]],
                pads=[before, after],
                group=groups,
            )
            self.nodes.append(convolution)
        site = layer["output_site"]
        self.quantized[site] = self.quantize(site, self.case["bits"][site], signed=0)

    def quantize(self, tensor: str, bits: int, *, signed: int) -> str:
        """The tensor behind a `Quant` node, or itself where it stays float32."""
        if bits == FLOAT_BITS:
            return tensor
        scale = self.constant(f"{tensor}.scale", np.array(0.5, np.float32))
        zero = self.constant(f"{tensor}.zero", np.array(0, np.float32))
        width = self.constant(f"{tensor}.bits", np.array(bits, np.float32))
        name = f"{tensor}.quantized"
        attributes = {"domain": "qonnx.custom_op.general", "signed": signed, "narrow": 0, "rounding_mode": "ROUND"}
        self.nodes.append(helper.make_node("Quant", [tensor, scale, zero, width], [name], **attributes))
        return name

    def constant(self, name: str, value: np.ndarray) -> str:
        """An initializer's name."""
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def model(self) -> onnx.ModelProto:
        """The graph as a model; its outputs are the sites that no layer reads."""
        channels, frames = self.case["site_channels"], self.case["frames"]
        read = {site for layer in self.case["layers"] for site in layer["input_sites"]}
        inputs = [helper.make_tensor_value_info(site, TensorProto.FLOAT, [1, channels[site], frames]) for site in self.inputs]
        outputs = [
            helper.make_tensor_value_info(self.quantized[site], TensorProto.FLOAT, [1, channels[site], frames])
            for site in channels
            if site not in read
        ]
        graph = helper.make_graph(self.nodes, "case", inputs, outputs, initializer=self.constants)
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("qonnx.custom_op.general", 1)]
        return helper.make_model(graph, opset_imports=opsets)


if __name__ == "__main__":
    main()
