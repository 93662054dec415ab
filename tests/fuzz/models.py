"""Strategies that damage an exported model: its bytes, its description or its graph, sealed again behind that or not."""

import hashlib
import re
from typing import Any, Final

from hypothesis import strategies as st
from onnx import ModelProto, StringStringEntryProto, TensorProto, helper

from hwsearch.export.description import decoded, encoded
from tests.fuzz.edits import Draw
from tests.fuzz.things import Thing
from tests.fuzz.values import json_values

SIZES: Final = (-1, 0, 1, 2, 3, 64, 65, 1 << 20, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 63))
OPERATORS: Final = ("Add", "Mul", "Conv", "Relu", "Expand", "Reshape", "Identity", "ConstantOfShape", "Frobnicate", "", "\x1b[2J")
NAMES: Final = ("", "x", "\x1b[31m\n", "mask", "features", "n" * 10_000)


def models(content: bytes) -> st.SearchStrategy[Thing]:
    """A damaged model."""
    return _graphs(content) | _descriptions(content)


def sealed(content: bytes) -> bytes:
    """A changed file with the digest that an export would have written into it."""
    field = re.escape(b"hwsearch_sha256\x12\x40") + rb"[0-9a-f]{64}"
    unsealed = re.sub(field, b"hwsearch_sha256\x12\x40" + b"0" * 64, content)
    digest = hashlib.sha256(unsealed).hexdigest().encode()
    return re.sub(field, b"hwsearch_sha256\x12\x40" + digest, unsealed)


@st.composite
def _descriptions(draw: Draw, content: bytes) -> Thing:
    """Another description, none, or two of them."""
    model = ModelProto.FromString(content)
    common, own, _ = model.metadata_props
    entry = draw(st.sampled_from((common, own)))
    packed = entry is common
    kind = draw(st.sampled_from(("values", "values", "values", "characters", "key", "none", "two")))
    story: tuple[str, ...] = (kind,)
    if kind == "values":
        edited = draw(json_values((decoded(entry.value) if packed else entry.value).encode()))
        text = edited.content.decode(errors="replace") if isinstance(edited.content, bytes) else ""
        entry.value = encoded(text) if packed else text
        story = edited.story
    elif kind == "characters":
        entry.value = draw(st.sampled_from(("", "?", entry.value[1:], entry.value[:-1], entry.value * 2, encoded("0" * 2**25))))
    elif kind == "key":
        entry.key = draw(st.sampled_from(NAMES))
    elif kind == "none":
        del model.metadata_props[:]
    else:
        model.metadata_props.append(StringStringEntryProto(key=entry.key, value=entry.value))
    return _finished(draw, model, story)


@st.composite
def _graphs(draw: Draw, content: bytes) -> Thing:
    """A graph with other operators, tensors, shapes or versions."""
    model = ModelProto.FromString(content)
    edits = (_edit_node, _edit_tensor, _edit_version, _edit_interface, _add_giant)
    story = tuple(draw(st.sampled_from(edits))(draw, model) for _ in range(draw(st.integers(1, 2))))
    return _finished(draw, model, story)


def _finished(draw: Draw, model: ModelProto, story: tuple[str, ...]) -> Thing:
    content: bytes = model.SerializeToString()
    if draw(st.integers(0, 3)):
        return Thing(sealed(content), (*story, "sealed again"))
    return Thing(content, story)


def _edit_node(draw: Draw, model: ModelProto) -> str:
    nodes = model.graph.node
    if not nodes:
        return "no node"
    index, other = (draw(st.integers(0, len(nodes) - 1)) for _ in range(2))
    node = nodes[index]
    kind = draw(st.sampled_from(("operator", "leave out", "double", "input", "output", "attribute", "name", "domain", "move")))
    if kind == "operator":
        node.op_type = draw(st.sampled_from(OPERATORS))
    elif kind == "leave out":
        del nodes[index]
    elif kind in {"double", "move"}:
        nodes.add().CopyFrom(node)
        if kind == "move":
            del nodes[index]
    elif kind == "input" and node.input:
        node.input[0] = draw(st.sampled_from((*NAMES, nodes[other].output[0] if nodes[other].output else "")))
    elif kind == "output" and node.output:
        node.output[0] = draw(st.sampled_from((*NAMES, nodes[other].output[0] if nodes[other].output else "")))
    elif kind == "attribute" and node.attribute:
        attribute = node.attribute[draw(st.integers(0, len(node.attribute) - 1))]
        attribute.i = draw(st.sampled_from(SIZES))
        attribute.ints[:] = draw(st.lists(st.sampled_from(SIZES), max_size=3))
        kind = f"attribute {attribute.name}: {attribute.i}, {list(attribute.ints)}"
    elif kind == "domain":
        node.domain = draw(st.sampled_from(("", "com.microsoft", "nowhere", "\x1b[0m")))
    else:
        kind, node.name = "name", draw(st.sampled_from(NAMES))
    return f"node {index}: {kind}"


def _edit_tensor(draw: Draw, model: ModelProto) -> str:
    tensors = model.graph.initializer
    if not tensors:
        return "no tensor"
    index = draw(st.integers(0, len(tensors) - 1))
    tensor = tensors[index]
    kind = draw(st.sampled_from(("size", "type", "data", "values", "outside", "name", "leave out")))
    if kind == "size":
        tensor.dims[:] = draw(st.lists(st.sampled_from(SIZES), max_size=3))
    elif kind == "type":
        tensor.data_type = draw(st.integers(-1, 30))
    elif kind == "data":
        tensor.raw_data = tensor.raw_data[: draw(st.integers(0, len(tensor.raw_data)))]
    elif kind == "values":
        tensor.raw_data = draw(st.sampled_from((b"\xff", b"\x00", b"\x7f", b"\x80"))) * len(tensor.raw_data)
    elif kind == "outside":
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.append(StringStringEntryProto(key="location", value=draw(st.sampled_from(("/dev/zero", "x", "")))))
    elif kind == "name":
        tensor.name = draw(st.sampled_from(NAMES))
    else:
        del tensors[index]
    return f"tensor {index}: {kind}"


def _edit_version(draw: Draw, model: ModelProto) -> str:
    if draw(st.booleans()):
        model.ir_version = draw(st.sampled_from(SIZES))
        return f"IR version {model.ir_version}"
    model.opset_import[0].version = draw(st.sampled_from((-1, 0, 1, 5, 13, 99, 1 << 40)))
    return f"operator set {model.opset_import[0].version}"


def _edit_interface(draw: Draw, model: ModelProto) -> str:
    """Shapes, types, names and number of what goes in and out."""
    ends: Any = draw(st.sampled_from((model.graph.input, model.graph.output)))
    kind = draw(st.sampled_from(("size", "rank", "type", "name", "another", "none")))
    if kind == "another":
        ends.add().CopyFrom(helper.make_tensor_value_info(draw(st.sampled_from(NAMES)), TensorProto.FLOAT, [1, 2]))
    elif not ends:
        return "nothing goes in or out"
    elif kind == "none":
        del ends[:]
    elif kind == "name":
        ends[0].name = draw(st.sampled_from(NAMES))
    else:
        tensor = ends[0].type.tensor_type
        if kind == "type":
            tensor.elem_type = draw(st.integers(0, 20))
        elif kind == "rank" or not tensor.shape.dim:
            del tensor.shape.dim[:1]
        else:
            tensor.shape.dim[-1].dim_value = draw(st.sampled_from(SIZES))
    return f"{kind} of what goes in or out"


def _add_giant(draw: Draw, model: ModelProto) -> str:
    """Blow the mask up to a size that no machine has the memory for."""
    name = model.graph.output[0].name if model.graph.output else "mask"
    size = draw(st.sampled_from((1 << 20, 1 << 31, 1 << 40, 1 << 62)))
    for node in model.graph.node:
        node.output[:] = ["small" if output == name else output for output in node.output]
    model.graph.initializer.append(helper.make_tensor("giant", TensorProto.INT64, [4], [size, 1, 1, 1]))
    model.graph.node.append(helper.make_node("Expand", ["small", "giant"], [name]))
    return f"expand to {size}"
