"""Writes the nodes and constants of an ONNX graph, under short names."""

from collections.abc import Sequence
from itertools import count

import numpy as np
from google.protobuf.message import Message  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import GraphProto, TensorProto, ValueInfoProto, helper, numpy_helper

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


class OnnxWriter:
    """A graph in the making. Each method adds one part and returns the name of the tensor that it makes.

    Names are of equal length. So a part takes the same bytes, whatever else a graph holds.

    Attributes:
        graph: the graph.

    Args:
        most: an upper bound of the number of names.
        prefix: what all names begin with.
    """

    def __init__(self, most: int, prefix: str = "") -> None:
        self.graph = GraphProto(name="separator")
        length = next(length for length in count(1) if len(_DIGITS) ** length >= most)
        self._names = (prefix + _name(number, length) for number in range(most))

    @property
    def bytes(self) -> int:
        """The bytes of all nodes and constants so far."""
        return sum(_entry_bytes(part) for part in (*self.graph.node, *self.graph.initializer))

    def name(self) -> str:
        """Return a new name."""
        return next(self._names)

    def constant(self, values: NDArray[np.generic]) -> str:
        """Store a tensor."""
        return self._stored(numpy_helper.from_array(values))

    def bfloat16(self, values: NDArray[np.float32]) -> str:
        """Store a tensor whose values are bfloat16 values, in two bytes each."""
        halves = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
        return self._stored(helper.make_tensor("", TensorProto.BFLOAT16, values.shape, halves, raw=True))

    def node(self, operator: str, read: Sequence[str], **attributes: object) -> str:
        """Add a node with one output."""
        made = self.name()
        self.graph.node.append(helper.make_node(operator, read, [made], **attributes))
        return made

    def named(self, made: str, name: str) -> None:
        """Give a tensor a further name."""
        # A node of its own, since the tensor may be an input, or be read inside the graph.
        self.graph.node.append(helper.make_node("Identity", [made], [name]))

    def finished(self, inputs: ValueInfoProto, output: ValueInfoProto, made: str) -> GraphProto:
        """Complete and return the graph.

        Args:
            inputs: the declared input, whose name parts have read.
            output: the declared output.
            made: the tensor that becomes the output; it gets the declared name.
        """
        graph = self.graph
        self.named(made, output.name)
        graph.input.append(inputs)
        graph.output.append(output)
        return graph

    def _stored(self, tensor: TensorProto) -> str:
        tensor.name = self.name()
        self.graph.initializer.append(tensor)
        name: str = tensor.name
        return name


def _name(number: int, length: int) -> str:
    name = ""
    for _ in range(length):
        number, digit = divmod(number, len(_DIGITS))
        name = _DIGITS[digit] + name
    return name


def _entry_bytes(message: Message) -> int:
    """The bytes of a message as one entry of a list: a tag, the length and the content."""
    length: int = message.ByteSize()
    return 1 + max(1, -(-length.bit_length() // 7)) + length
