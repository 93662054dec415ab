"""Shapes without a run, against those of a run."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.network.graph import Graph
from hwsearch.network.operations import (
    Add,
    Concatenate,
    Convolution,
    GroupNorm,
    Linear,
    Mean,
    Multiply,
    Pad,
    PReLU,
    Slice,
    TransposedConvolution,
)
from hwsearch.network.run import run
from hwsearch.network.shapes import tensor_shapes

CHANNELS = 4
KERNEL = st.integers(1, 4)


def graph_of(*operations, **shapes):
    parameters = {}
    for operation in operations:
        shape = shapes.get(operation.name, (CHANNELS,))
        for part in operation.parameters:
            parameters[f"{operation.name}.{part}"] = torch.randn(shape if part == "weight" else _outputs(operation, shape))
    return Graph(("x",), operations, (operations[-1].name,), parameters)


def _outputs(operation, shape):
    return (shape[1] * operation.groups,) if isinstance(operation, TransposedConvolution) else shape[:1]


def check(graph, frames):
    found = {}

    def note(name, x):
        found[name] = tuple(x.shape[1:])
        return x

    run(graph, {"x": torch.randn(1, CHANNELS, frames)}, note)
    assert tensor_shapes(graph, {"x": (CHANNELS, frames)}) == found


@settings(deadline=None, max_examples=60)
@given(KERNEL, KERNEL, KERNEL, st.sampled_from([1, 2, 4]), st.tuples(KERNEL, KERNEL), st.integers(20, 40))
def test_convolutions(kernel, stride, dilation, groups, padding, frames):
    convolution = Convolution("a", ("x",), stride, dilation, groups, padding)
    transposed = TransposedConvolution("b", ("a",), stride, dilation, groups, padding[0] // 2, min(stride, dilation) - 1)
    check(graph_of(convolution, transposed, a=(8, CHANNELS // groups, kernel), b=(8, 12 // groups, kernel + 3)), frames)


@settings(deadline=None, max_examples=60)
@given(st.integers(-12, 12), st.none() | st.integers(-12, 12), st.tuples(KERNEL, KERNEL), st.booleans())
def test_parts_sums_and_means(start, stop, padding, keep):
    operations = (
        Slice("part", ("x",), 2, start, stop),
        Pad("padded", ("x",), padding),
        Slice("cropped", ("padded", "x"), 2),
        GroupNorm("norm", ("cropped",)),
        PReLU("activated", ("norm",)),
        Concatenate("joined", ("activated", "x"), 1),
        Concatenate("longer", ("activated", "padded"), 2),
        Mean("mean", ("joined",)),
        Multiply("scaled", ("joined", "mean")),
        Add("sum", ("scaled", "joined")),
        Mean("flat", ("sum",), keep),
        *(() if keep else (Linear("head", ("flat",)),)),
    )
    if not torch.zeros(9)[start:stop].numel():
        with pytest.raises(ValueError, match="'part' does not take tensors of the shapes"):
            tensor_shapes(graph_of(*operations, head=(3, 2 * CHANNELS)), {"x": (CHANNELS, 9)})
    else:
        check(graph_of(*operations, head=(3, 2 * CHANNELS)), 9)


@pytest.mark.parametrize(
    ("operation", "weight"),
    [
        (Convolution("a", ("x",)), (8, 3, 1)),
        (Convolution("a", ("x",), dilation=9), (8, CHANNELS, 3)),
        (TransposedConvolution("a", ("x",)), (3, 8, 1)),
        (Linear("a", ("x",)), (3, 5)),
        (GroupNorm("a", ("x",)), (3,)),
        (Slice("a", ("x",), 2, 10), ()),
    ],
)
def test_what_an_operation_does_not_take_is_refused_by_its_name(operation, weight):
    with pytest.raises(ValueError, match="'a' does not take tensors of the shapes"):
        tensor_shapes(graph_of(operation, a=weight), {"x": (CHANNELS, 9)})
