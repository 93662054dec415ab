"""Small ONNX files: what a runtime can compute when it loads a file is not stored.

- Weights below 8 bits are stored as words of 64 bits. A word holds as many weights as fit: they are the digits of a number whose
  base is the number of values that a weight can take. So 39 weights of 2 bits make a word, 22 of 3, 16 of 4, 12 of 5, 10 of 6,
  or 9 of 7. A few nodes take the words apart. ONNX Runtime runs them once, when it loads the file.
- Scales of weights are stored as bfloat16 values, which they are (`separator.quantizers.stored_scale`).
- The scale of a bias is the product of two scales that the file holds already.
- Names of tensors are short, and nodes have none.
"""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from hwsearch.separator.quantizers import weight_limit

_WORDS = 2**63
"""Number of values of a word. ONNX's integers are signed, and negative ones are not used."""

_UNPACKING_BYTES = 300
"""About what the nodes take that take the words of a tensor apart."""

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def weights_per_word(bits: int) -> int:
    """Return how many weights of a width a word holds."""
    return next(number for number in count() if _base(bits) ** (number + 1) > _WORDS)


def is_packed(weights: int, bits: int) -> bool:
    """Whether a number of weights takes fewer bytes in words than in bytes."""
    return 8 * -(-weights // weights_per_word(bits)) + _UNPACKING_BYTES < weights


def to_words(integers: NDArray[np.integer[Any]], bits: int) -> NDArray[np.int64]:
    """Pack weights within +-weight_limit(bits) into words, [words, 1]. The last word is filled up with zero weights."""
    flat = integers.ravel().astype(np.int64)
    digits = np.pad(flat, (0, -len(flat) % weights_per_word(bits))) + weight_limit(bits)
    words: NDArray[np.int64] = digits.reshape(-1, weights_per_word(bits)) @ _powers(bits)
    return words[:, None]


def shorten_constants(model: ModelProto, layers: Sequence[tuple[NodeProto, int]]) -> None:
    """Store the weights of layers as words, and their scales as bfloat16 values; compute the scales of their biases.

    Args:
        model: the graph, which is changed.
        layers: nodes of layers, with the widths of their weights.
    """
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    writers = {node.output[0]: node for node in graph.node}
    new = _New(model)
    for node, bits in layers:
        read, weight, bias = (writers.get(name) for name in node.input)
        if weight is None or weight.op_type != "DequantizeLinear":
            continue
        integers, scale = constants[weight.input[0]], constants[weight.input[1]]
        if integers.dtype == np.int8 and is_packed(integers.size, bits):
            weight.input[0] = new.unpacked(integers, bits)
        if not np.any(scale.view(np.uint32) & 0xFFFF):
            weight.input[1] = new.widened(scale)
        if read is None or bias is None or {read.op_type, bias.op_type} != {"DequantizeLinear"}:
            continue
        if np.array_equal(scale * constants[read.input[1]], constants[bias.input[1]]):
            bias.input[1] = new.made("Mul", [weight.input[1], read.input[1]])
    new.insert()


class _New:
    """Nodes and constants to insert at the beginning of a graph."""

    def __init__(self, model: ModelProto) -> None:
        self._graph = model.graph
        self._nodes: list[NodeProto] = []
        self._shared: dict[bytes, str] = {}

    def unpacked(self, integers: NDArray[np.int8], bits: int) -> str:
        """Return the name of a tensor of weights, which are taken from words."""
        words = to_words(integers, bits)
        quotients = self.made("Div", [self._constant(words), self._constant(_powers(bits))])
        digits = self.made("Mod", [quotients, self._constant(np.array(_base(bits), np.int64))])
        values = self.made("Sub", [digits, self._constant(np.array(weight_limit(bits), np.int64))])
        found = self.made("Cast", [values], to=TensorProto.INT8)
        if integers.size % weights_per_word(bits):
            found = self.made("Reshape", [found, self._constant(np.array([-1]))])
            ends = (self._constant(np.array([end])) for end in (0, integers.size, 0))
            found = self.made("Slice", [found, *ends])
        return self.made("Reshape", [found, self._constant(np.array(integers.shape))])

    def widened(self, values: NDArray[np.float32]) -> str:
        """Return the name of a float32 tensor whose bfloat16 values are stored."""
        halves = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
        stored = helper.make_tensor("", TensorProto.BFLOAT16, values.shape, halves, raw=True)
        return self.made("Cast", [self._stored(stored)], to=TensorProto.FLOAT)

    def made(self, operator: str, read: Sequence[str], **attributes: int) -> str:
        """Return the name of the tensor that a new node makes."""
        name = f"new.{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, read, [name], **attributes))
        return name

    def insert(self) -> None:
        """Insert the nodes."""
        nodes = [*self._nodes, *self._graph.node]
        del self._graph.node[:]
        self._graph.node.extend(nodes)

    def _constant(self, values: NDArray[np.int64]) -> str:
        return self._stored(numpy_helper.from_array(values))

    def _stored(self, tensor: TensorProto) -> str:
        """Return the name of a constant. Equal ones are stored once."""
        content = tensor.SerializeToString()
        if content not in self._shared:
            self._shared[content] = tensor.name = f"new.constant.{len(self._shared)}"
            self._graph.initializer.append(tensor)
        return self._shared[content]


def shorten_names(model: ModelProto, kept: Sequence[str]) -> None:
    """Give tensors short names, except those whose names are `kept`, and take the names of nodes away."""
    graph = model.graph
    names = (name for name in _short_names() if name not in kept)
    short = {name: name for name in ("", *kept)}
    for node in graph.node:
        node.ClearField("name")
        node.ClearField("doc_string")
        for tensors in (node.input, node.output):
            for place, name in enumerate(tensors):
                tensors[place] = short[name] if name in short else short.setdefault(name, next(names))
    for tensor in graph.initializer:
        tensor.name = short[tensor.name]


def _short_names() -> Iterator[str]:
    for number in count():
        name, left = "", number
        while left or not name:
            left, digit = divmod(left, len(_DIGITS))
            name = _DIGITS[digit] + name
        yield name


def _base(bits: int) -> int:
    return 2 * weight_limit(bits) + 1


def _powers(bits: int) -> NDArray[np.int64]:
    return np.array([_base(bits) ** place for place in range(weights_per_word(bits))], np.int64)
