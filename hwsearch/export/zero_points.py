"""QONNX graphs without zero points, as FPGA tools want them.

A grid with a zero point of z becomes one that begins at zero: z steps are added before the quantizer, and taken away behind it.
Where a layer reads the grid, its bias takes them away: z times the sum of its weights, an integer of the bias's own grid. So the
layer reads plain unsigned integers. QONNX's cost analysis, for one, counts an operand with a zero point as float32.

At padding, a layer then reads the integer 0, but zero is the integer z there. What is missing is a constant for each channel and
frame, which is added behind the layer. Behind a ReLU, layers read grids that begin at
zero anyway.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from hwsearch.export.brevitas_graph import LayerNodes, constants_of
from hwsearch.network.operations import Convolution, Operation, TransposedConvolution
from hwsearch.network.shapes import Shape
from hwsearch.network.sites import WEIGHT
from hwsearch.separator.quantized import QuantizedNetwork
from hwsearch.separator.quantizers import bias_integers


def drop_zero_points(model: ModelProto, network: QuantizedNetwork, layers: LayerNodes, shapes: Mapping[str, Shape]) -> None:
    """Give activations grids that begin at zero.

    Args:
        model: a QONNX graph, as Brevitas writes it; it is changed.
        network: its network.
        layers: the layers and their nodes.
        shapes: of the network's tensors.
    """
    constants = constants_of(model)
    for node in [node for node in model.graph.node if node.op_type == "Quant" and node.input[0] not in constants]:
        zero_point = float(constants[node.input[2]])
        readers = [(layer, each) for layer, each in layers if each.input[0] == node.output[0]]
        if zero_point:
            _Shift(model, network, node, zero_point).apply(readers, shapes)


class _Shift:
    """The shift of one grid."""

    def __init__(self, model: ModelProto, network: QuantizedNetwork, quantizer: NodeProto, zero_point: float) -> None:
        self._graph = model.graph
        self._network = network
        self._constants = constants_of(model)
        self._writers = {node.output[0]: node for node in model.graph.node}
        self._quantizer = quantizer
        self._zero_point = zero_point
        self._scale = self._constants[quantizer.input[1]]

    def apply(self, readers: LayerNodes, shapes: Mapping[str, Shape]) -> None:
        """Shift the grid before the quantizer. Layers shift it back in their biases, and all others read a node that does."""
        quantizer, made = self._quantizer, self._quantizer.output[0]
        steps = self._constant("steps", np.float32(self._zero_point) * self._scale)
        place = next(place for place, node in enumerate(self._graph.node) if node is quantizer or node.name == quantizer.name)
        quantizer.output[0] = f"{made}.shifted"
        back = helper.make_node("Sub", [quantizer.output[0], steps], [made], name=f"{quantizer.name}.back")
        self._graph.node.insert(place + 1, back)
        shift = helper.make_node("Add", [quantizer.input[0], steps], [f"{made}.shift"], name=f"{quantizer.name}.shift")
        self._graph.node.insert(place, shift)
        quantizer.input[0] = shift.output[0]
        quantizer.input[2] = self._constant("zero", np.zeros_like(self._constants[quantizer.input[2]]))
        for layer, node in readers:
            if (bias := self._shifted_bias(layer, node)) is not None:
                self._replace_bias(node, bias)
                node.input[0] = quantizer.output[0]
                if isinstance(layer, Convolution) and any(layer.padding):
                    self._add_padding(layer, node, shapes)

    def _shifted_bias(self, layer: Operation, node: NodeProto) -> NDArray[np.float32] | None:
        """The bias of a layer that reads the shifted grid; none if it depends on the frame, or if float32 does not hold it."""
        if isinstance(layer, TransposedConvolution):
            return None
        quantized = self._network.quantized_weights()[layer.name + WEIGHT]
        writer = self._writers.get(node.input[2])
        if quantized is None:
            return None
        sums = quantized.integers.flatten(1).sum(dim=1).numpy().astype(np.float64)
        if writer is None:
            scale = self._scale.astype(np.float64) * quantized.scale.flatten().double().numpy()
            plain: NDArray[np.float32] = (self._constants[node.input[2]] - self._zero_point * sums * scale).astype(np.float32)
            return plain
        bias, scale = (self._constants[name] for name in writer.input[:2])
        integers = bias_integers(torch.tensor(bias), torch.tensor(scale)).double().numpy() - self._zero_point * sums
        shifted: NDArray[np.float32] = (integers * scale.astype(np.float64)).astype(np.float32)
        return shifted if np.array_equal(np.rint(shifted / scale), integers) else None

    def _add_padding(self, layer: Convolution, node: NodeProto, shapes: Mapping[str, Shape]) -> None:
        """Add what a layer misses where it reads padding: z steps times the weights of the taps there."""
        quantized = self._network.quantized_weights()[layer.name + WEIGHT]
        if quantized is None:
            raise AssertionError(f"'{layer.name}' has no integer weights")
        by_tap = quantized.integers.sum(dim=1).numpy().astype(np.float64)  # [out, taps]
        read, made = shapes[layer.inputs[0]][1], shapes[layer.name][1]
        frames = np.arange(made)[:, None] * layer.stride + np.arange(by_tap.shape[1]) * layer.dilation - layer.padding[0]
        outside = (frames < 0) | (frames >= read)  # [frames, taps]
        scale = self._scale.astype(np.float64) * np.broadcast_to(quantized.scale.flatten().double().numpy(), len(by_tap))
        missing = self._zero_point * (by_tap @ outside.T) * scale[:, None]
        made_before, place = node.output[0], next(i for i, each in enumerate(self._graph.node) if each.name == node.name)
        node.output[0] = f"{made_before}.unpadded"
        constant = self._constant(f"padding.{node.name}", missing[None].astype(np.float32))
        add = helper.make_node("Add", [node.output[0], constant], [made_before], name=f"{node.name}.padding")
        self._graph.node.insert(place + 1, add)

    def _replace_bias(self, node: NodeProto, bias: NDArray[np.float32]) -> None:
        name = self._constant(f"bias.{node.name}", bias)
        writer = self._writers.get(node.input[2])
        (node.input if writer is None else writer.input)[2 if writer is None else 0] = name

    def _constant(self, name: str, value: NDArray[np.float32]) -> str:
        tensor = numpy_helper.from_array(np.asarray(value, np.float32), f"{self._quantizer.name}.{name}")
        self._graph.initializer.append(tensor)
        return str(tensor.name)
