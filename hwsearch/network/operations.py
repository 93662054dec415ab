"""The operations of a network graph.

An operation makes one tensor from one or more others; both share a name. Tensors are [batch, channels, frames], or
[batch, channels] behind a mean that drops the frames. The graph holds the trained tensors of an operation as `NAME.weight`,
`NAME.bias` and so on.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field, NonNegativeInt, PositiveInt


@dataclass(frozen=True)
class Operation:
    """An operation, named after the tensor that it makes; `inputs` are the tensors that it reads, in order."""

    parameters: ClassVar[tuple[str, ...]] = ()
    """The last part of the name of each trained tensor."""

    name: str
    inputs: Annotated[tuple[str, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Weighted(Operation):
    """An operation with weights and a bias."""

    parameters: ClassVar = ("weight", "bias")


@dataclass(frozen=True)
class Convolution(Weighted):
    """A 1-D convolution over frames: weight [out, in / groups, kernel], bias [out].

    Attributes:
        stride: input frames from one output frame to the next.
        dilation: input frames between two taps.
        padding: frames of zeros before and after the input.
    """

    stride: PositiveInt = 1
    dilation: PositiveInt = 1
    groups: PositiveInt = 1
    padding: tuple[NonNegativeInt, NonNegativeInt] = (0, 0)


@dataclass(frozen=True)
class TransposedConvolution(Weighted):
    """A transposed 1-D convolution: weight [in, out / groups, kernel], bias [out].

    Attributes:
        stride: output frames from one input frame to the next.
        dilation: output frames between two taps.
        padding: frames that are cut off both ends of the output.
        output_padding: frames that are added at the end of the output.
    """

    stride: PositiveInt = 1
    dilation: PositiveInt = 1
    groups: PositiveInt = 1
    padding: NonNegativeInt = 0
    output_padding: NonNegativeInt = 0


@dataclass(frozen=True)
class Linear(Weighted):
    """A matrix product over the last axis: weight [out, in], bias [out]."""


class Function(StrEnum):
    """An elementwise function without parameters."""

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
    """A leaky ReLU with a trained slope: [1], or [channels]."""

    parameters: ClassVar = ("slope",)


@dataclass(frozen=True)
class Softmax(Operation):
    """exp(x) over its sum along an axis: 1 for channels, 2 for frames."""

    axis: PositiveInt = 1


@dataclass(frozen=True)
class Add(Operation):
    """The sum of two tensors, which may broadcast."""


@dataclass(frozen=True)
class Multiply(Operation):
    """The product of two tensors, which may broadcast."""


@dataclass(frozen=True)
class Read(Operation):
    """A tensor as one layer reads it: the same values, with a bit-width of their own."""


@dataclass(frozen=True)
class Concatenate(Operation):
    """Tensors joined along an axis."""

    axis: PositiveInt = 1


@dataclass(frozen=True)
class Slice(Operation):
    """A part of a tensor along an axis: `start:stop` as in Python.

    With a second input, the part ends at the length of that tensor along the axis instead of at `stop`.
    """

    axis: PositiveInt = 1
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class Pad(Operation):
    """Frames of zeros before and after."""

    padding: tuple[NonNegativeInt, NonNegativeInt] = (0, 0)


@dataclass(frozen=True)
class Mean(Operation):
    """The mean over frames: [batch, channels, 1], or [batch, channels] without `keep`."""

    keep: bool = True


@dataclass(frozen=True)
class GroupNorm(Weighted):
    """Zero mean and unit variance over frames and the channels of each group, then a gain and an offset per channel.

    One group is the global layer norm (arXiv 1809.07454, section II-E). weight [channels], bias [channels].
    """

    groups: PositiveInt = 1
    epsilon: float = 1e-5


@dataclass(frozen=True)
class LayerNorm(Weighted):
    """Zero mean and unit variance over the channels of each frame, then a gain and an offset: weight, bias [channels]."""

    epsilon: float = 1e-5


@dataclass(frozen=True)
class Affine(Weighted):
    """A gain and an offset per channel, float64: weight, bias [channels]. A batch norm is one; folding leaves none."""
