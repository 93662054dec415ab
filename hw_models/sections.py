"""The common sections of a target file: typed, without defaults for what only a source can say.

Key names carry the unit; each section says in `source` where its numbers are from (a publication, a tool and its version, a
measurement), or that they are an assumption.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Source = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.\-]*$")]
Positive = Annotated[float, Field(gt=0, le=1e15, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**40)]
Bits = Annotated[int, Field(ge=1, le=32)]
Pair = Annotated[tuple[Bits, Bits], Field(strict=False)]
EncodedSize = Annotated[tuple[Bits, Positive], Field(strict=False)]
Holds = Literal["weights", "activations"]
KernelClass = Literal["conv", "depthwise", "add"]

_MOST_LISTED = 10


class Section(BaseModel):
    """A table of a target file: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Clock(Section):
    """The clock that turns cycles into time."""

    clock_hz: Annotated[float, Field(ge=1, le=1e15, allow_inf_nan=False)]
    source: Source


class Memory(Section):
    """One memory level; a file lists the nearest first.

    `bytes` is its capacity, where the file states one. All weights lie in one level that holds weights, all activations in one
    that holds activations: of the levels with room for them, those in which the network runs fastest. Without
    `bytes_per_cycle` its traffic is not charged, because the compute rates, being measured end to end, hold it already.
    """

    name: Name
    bytes: Count | None = None
    bytes_per_cycle: Positive | None = None
    pj_per_bit: NotNegative = 0.0
    holds: Annotated[tuple[Holds, ...], Field(strict=False, min_length=1)]
    source: Source


class Storage(Section):
    """How weights lie in memory.

    Codec `packed` stores the executed width bit by bit; `encoded` charges each chosen width its measured bytes per weight (a
    width between two of the table costs as the next wider; a layer that runs in float32 holds 32 bits), plus the zeros that
    an expanded dilation inserts. Every output channel also carries its bias and requantization constants.
    """

    codec: Literal["packed", "encoded"]
    alignment_bytes: Count
    encoded_bytes_per_weight: Annotated[tuple[EncodedSize, ...], Field(strict=False)] = ()
    inserted_zero_bytes: NotNegative = 0.0
    channel_bytes_integer: NotNegative
    channel_bytes_float: NotNegative = 4.0
    source: Source

    @model_validator(mode="after")
    def _codec_has_its_table(self) -> Self:
        widths = [bits for bits, _ in self.encoded_bytes_per_weight]
        sizes = [size for _, size in self.encoded_bytes_per_weight]
        if (self.codec == "encoded") != bool(widths):
            raise ValueError("encoded_bytes_per_weight: wanted with codec 'encoded' and only with it")
        if widths != sorted(set(widths)) or sizes != sorted(sizes):
            raise ValueError("encoded_bytes_per_weight: wanted rising widths whose bytes do not fall")
        return self


class Precisions(Section):
    """What the chip executes: pairs of (activation, weight) bits, 32 for float32.

    A chosen pair that is not listed runs in the next wider one (least weight bits, then least activation
    bits) when `unsupported` is `widen`, and is refused when it is `refuse` or when nothing wider exists.
    `carried_bits` are further widths of tensors, which layers without weights read, and any layer writes.
    `output_bits` is the width in which results pass memory, where the chip fixes one; it is traffic: the next layer reads them,
    and memory keeps them, at their own width.
    """

    pairs: Annotated[tuple[Pair, ...], Field(strict=False, min_length=1)]
    unsupported: Literal["widen", "refuse"]
    activation_signed: bool
    weight_signed: bool
    accumulator_bits: Count
    carried_bits: Annotated[tuple[Bits, ...], Field(strict=False)] = ()
    output_bits: Bits | None = None
    source: Source

    @property
    def activation_bits(self) -> tuple[int, ...]:
        """Widths that activations are held in, in rising order."""
        return tuple(sorted({activation for activation, _ in self.pairs} | set(self.carried_bits)))

    @property
    def in_words(self) -> str:
        """The pairs, such as `a8w8, a8w4`; of more than ten the first and the last."""
        few = len(self.pairs) <= _MOST_LISTED
        listed = self.pairs if few else (self.pairs[0], self.pairs[-1])
        return (", " if few else " to ").join(f"a{activation}w{weight}" for activation, weight in listed)


class Dilation(Section):
    """What a dilated kernel costs.

    `native`: nothing. `expand`: the compiler fills the kernel with zeros beyond the dilation the hardware
    has. `fold_time`: frames are folded to [frames / dilation, dilation] and padded to a whole number of rows.
    """

    mode: Literal["native", "expand", "fold_time"]
    native_factor: Count = 1
    source: Source


class Overheads(Section):
    """What every layer pays on top of its work, and whether its traffic hides behind its arithmetic.

    `scale` multiplies all cycles of a layer but `layer_cycles`: what a calibration has found the rule to be off by.
    """

    layer_cycles: NotNegative
    inference_cycles: NotNegative = 0.0
    scale: Positive = 1.0
    transfers_overlap: bool = True
    source: Source


class MacEnergy(Section):
    """Energy of one multiply-accumulate at a pair of executed widths."""

    activation_bits: Bits
    weight_bits: Bits
    pj_per_mac: NotNegative


class Energy(Section):
    """Energy: power while the chip runs, plus that of each multiply-accumulate, of memory levels and of the compute rule.

    `idle_mw` is charged from the end of a frame to the next one when frames are streamed.
    """

    active_mw: NotNegative
    idle_mw: NotNegative = 0.0
    macs: Annotated[tuple[MacEnergy, ...], Field(strict=False)] = ()
    source: Source


class Limits(Section):
    """Shapes the chip or its compiler refuses."""

    max_kernel_size: Count
    source: Source


class Calibration(Section):
    """How far to trust the latency: against what it was fitted, and its error on what was held out.

    `against` says what the errors are against: a chip, another simulator, or nothing yet.
    """

    against: Literal["measurements", "simulator", "nothing"]
    fitted_on: Source
    held_out: Source
    median_error_percent: NotNegative | None = None
    max_error_percent: NotNegative | None = None
    source: Source
