"""Inference of the shapes of an exported file's tensors, before a runtime loads the file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Known:
    """A tensor whose shape is known, and whose value is known if it is a constant or computed from shapes."""

    shape: Shape
    value: NDArray[np.int64] | None = None


ELEMENTWISE = frozenset(
    {
        *(
            "Add",
            "Cast",
            "Clip",
            "DequantizeLinear",
            "Div",
            "Exp",
            "Identity",
            "LeakyRelu",
            "Mul",
            "PRelu",
            "QuantizeLinear",
            "Relu",
        ),
        *("Round", "Sigmoid", "Sub", "Tanh", "InstanceNormalization", "LayerNormalization", "LogSoftmax"),
    }
)
"""Operators whose result has the shape of their first input, or the broadcast shape of all inputs."""

_BROADCAST = {"Add", "Div", "Mod", "Mul", "Sub"}

_ATTRIBUTES = {"allowzero", "alpha", "axes", "axis", "epsilon", "keepdims", "mode", "perm", "stash_type", "to"}


def attributes_of(node: NodeProto) -> dict[str, int | list[int]]:
    """The attributes of a node that are integers.

    Raises:
        ValueError: an attribute that no exported node has.
    """
    found: dict[str, int | list[int]] = {}
    for attribute in node.attribute:
        known = attribute.type in (AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT, AttributeProto.STRING)
        if attribute.name not in _ATTRIBUTES or not known:
            raise ValueError(f"attribute '{attribute.name}'")
        if attribute.type in (AttributeProto.INT, AttributeProto.INTS):
            found[attribute.name] = list(attribute.ints) if attribute.type == AttributeProto.INTS else attribute.i
    return found


def infer(node: NodeProto, read: Sequence[Known]) -> Known:
    """The result of a node.

    Raises:
        KeyError: an operator that no export holds.
        ValueError: tensors that the operator does not take, or attributes that it does not have.
    """
    attributes = attributes_of(node)
    if node.op_type in _BROADCAST:
        return Known(np.broadcast_shapes(*(each.shape for each in read)))
    if node.op_type in ELEMENTWISE:
        return read[0]
    try:
        return _INFERRED[node.op_type](attributes, read)
    except (IndexError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(str(error)) from None


_Attributes = Mapping[str, int | list[int]]


def _value(known: Known) -> NDArray[np.int64]:
    if known.value is None:
        raise ValueError("depends on a tensor that is not computed from shapes")
    return known.value


def _of_value(value: NDArray[np.int64]) -> Known:
    return Known(tuple(value.shape), value)


def _shape(_: _Attributes, read: Sequence[Known]) -> Known:
    return _of_value(np.array(read[0].shape, np.int64))


def _axis(attributes: _Attributes) -> int:
    return int(np.asarray(attributes.get("axis", 0)).item())


def _gather(attributes: _Attributes, read: Sequence[Known]) -> Known:
    return _of_value(np.asarray(np.take(_value(read[0]), _value(read[1]), axis=_axis(attributes))))


def _concat(attributes: _Attributes, read: Sequence[Known]) -> Known:
    axis = _axis(attributes)
    if all(each.value is not None for each in read):
        return _of_value(np.concatenate([_value(each) for each in read], axis=axis))
    shapes = [list(each.shape) for each in read]
    total = sum(shape[axis] for shape in shapes)
    for shape in shapes:
        shape[axis] = total
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError("shapes that do not fit")
    return Known(tuple(shapes[0]))


def _slice(_: _Attributes, read: Sequence[Known]) -> Known:
    shape = list(read[0].shape)
    starts, ends, axes = (_value(each).ravel().tolist() for each in read[1:4])
    steps = _value(read[4]).ravel().tolist() if len(read) > 4 else [1] * len(axes)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step != 1:
            raise ValueError("a step")
        shape[axis] = len(range(*slice(start, end).indices(shape[axis])))
    return Known(tuple(shape))


def _reshape(_: _Attributes, read: Sequence[Known]) -> Known:
    size = int(np.prod(read[0].shape, dtype=object))
    shape = [read[0].shape[place] if each == 0 else each for place, each in enumerate(_value(read[1]).tolist())]
    known = int(np.prod([each for each in shape if each != -1], dtype=object))
    if shape.count(-1) > 1 or min(shape, default=1) < -1 or known < 1 or (size % known if -1 in shape else size != known):
        raise ValueError("another number of values")
    return Known(tuple(size // known if each == -1 else each for each in shape))


def _transpose(attributes: _Attributes, read: Sequence[Known]) -> Known:
    order = attributes["perm"]
    if not isinstance(order, list) or sorted(order) != list(range(len(read[0].shape))):
        raise ValueError("another order of axes")
    return Known(tuple(read[0].shape[place] for place in order))


def _reduce_mean(attributes: _Attributes, read: Sequence[Known]) -> Known:
    axes = attributes["axes"]
    if axes not in ([2], [-1]):
        raise ValueError("a mean over something else than frames")
    first, second, _ = read[0].shape
    return Known((first, second, 1) if attributes.get("keepdims", 1) else (first, second))


def _pad(_: _Attributes, read: Sequence[Known]) -> Known:
    shape, pads = read[0].shape, _value(read[1]).tolist()
    if len(pads) != 2 * len(shape) or min(pads) < 0:
        raise ValueError("padding that does not fit")
    return Known(tuple(size + pads[place] + pads[place + len(shape)] for place, size in enumerate(shape)))


_INFERRED: Mapping[str, Callable[[_Attributes, Sequence[Known]], Known]] = {
    "Concat": _concat,
    "Gather": _gather,
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Transpose": _transpose,
}
