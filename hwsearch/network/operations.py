"""The operations of a network graph.

An operation makes one tensor from one or more others. The tensor goes by the operation's name. Tensors are
[batch, channels, frames], or [batch, channels] once a mean has taken the frames.

Trained numbers are not here. `parameters` says which ones an operation has; the graph holds them as `NAME.weight`,
`NAME.bias` and so on.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


@dataclass(frozen=True)
class Operation:
    """What all operations have.

    Attributes:
        name: of the operation and of the tensor that it makes.
        inputs: the tensors that it reads, in order.
    """

    parameters: ClassVar[tuple[str, ...]] = ()
    """Trained tensors of the operation, by the last part of their names."""

    name: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Convolution(Operation):
    """A 1-D convolution over frames: weight [out, in / groups, kernel], bias [out].

    Attributes:
        stride: input frames from one output frame to the next.
        dilation: input frames between two taps.
        groups: 1, or groups of channels that do not see each other.
        padding: frames of zeros before and after the input.
    """

    parameters: ClassVar = ("weight", "bias")

    stride: int = 1
    dilation: int = 1
    groups: int = 1
    padding: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class TransposedConvolution(Operation):
    """A transposed 1-D convolution: weight [in, out / groups, kernel], bias [out].

    Attributes:
        stride: output frames from one input frame to the next.
        dilation: output frames between two taps.
        groups: 1, or groups of channels that do not see each other.
        padding: frames that are cut off both ends of the output.
        output_padding: frames that the output is longer at its end.
    """

    parameters: ClassVar = ("weight", "bias")

    stride: int = 1
    dilation: int = 1
    groups: int = 1
    padding: int = 0
    output_padding: int = 0


@dataclass(frozen=True)
class Linear(Operation):
    """A matrix product over the last axis: weight [out, in], bias [out]."""

    parameters: ClassVar = ("weight", "bias")


class Function(StrEnum):
    """An elementwise function without trained numbers."""

    RELU = "relu"
    SIGMOID = "sigmoid"
    TANH = "tanh"


@dataclass(frozen=True)
class Elementwise(Operation):
    """A function of every value."""

    function: Function = Function.RELU


@dataclass(frozen=True)
class LeakyReLU(Operation):
    """x where it is positive, `slope * x` elsewhere."""

    slope: float = 0.01


@dataclass(frozen=True)
class PReLU(Operation):
    """A leaky ReLU with a trained slope: [1], or one per channel [channels]."""

    parameters: ClassVar = ("slope",)


@dataclass(frozen=True)
class Softmax(Operation):
    """exp(x) over its sum along an axis.

    Attributes:
        axis: 1 for channels, 2 for frames.
    """

    axis: int = 1


@dataclass(frozen=True)
class Add(Operation):
    """The sum of two tensors of one shape, or of shapes that broadcast."""


@dataclass(frozen=True)
class Multiply(Operation):
    """The product of two tensors of one shape, or of shapes that broadcast."""


@dataclass(frozen=True)
class Read(Operation):
    """A tensor as one layer reads it: the same values, with a bit-width of their own."""


@dataclass(frozen=True)
class Concatenate(Operation):
    """Tensors one behind the other along an axis."""

    axis: int = 1


@dataclass(frozen=True)
class Slice(Operation):
    """Part of a tensor along an axis: a split, or a crop.

    Attributes:
        axis: 1 for channels, 2 for frames.
        start: the first index; negative ones count from the end.
        stop: the index behind the last; negative ones count from the end; none is the end. A second input in place of `stop`
            is a tensor whose length along the axis it is.
    """

    axis: int = 1
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class Pad(Operation):
    """Frames of zeros before and after."""

    padding: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Mean(Operation):
    """The mean over frames: [batch, channels, 1], or [batch, channels] without `keep`."""

    keep: bool = True


@dataclass(frozen=True)
class GroupNorm(Operation):
    """Zero mean and unit variance over frames and the channels of each group, then a gain and an offset per channel.

    One group is the global layer norm (arXiv 1809.07454, section II-E). weight [channels], bias [channels].
    """

    parameters: ClassVar = ("weight", "bias")

    groups: int = 1
    epsilon: float = 1e-5


@dataclass(frozen=True)
class LayerNorm(Operation):
    """Zero mean and unit variance over the channels of each frame, then a gain and an offset: weight, bias [channels]."""

    parameters: ClassVar = ("weight", "bias")

    epsilon: float = 1e-5


@dataclass(frozen=True)
class Affine(Operation):
    """A gain and an offset per channel, float64: weight, bias [channels]. A batch norm is one; folding leaves none."""

    parameters: ClassVar = ("weight", "bias")
