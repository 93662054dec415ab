"""The common sections of a target file.

Key names carry the unit. Numbers that need a source have no default. Each section states its `source`: a publication, a tool and
its version, a measurement, or an assumption.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from hw_models.workload import FLOAT_BITS

Source = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.\-]*$")]
Positive = Annotated[float, Field(gt=0, le=1e15, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**40)]
Bits = Annotated[int, Field(ge=1, le=32)]
Pair = Annotated[tuple[Bits, Bits], Field(strict=False)]
EvidencePair = Annotated[tuple[Bits, Annotated[int, Field(ge=0, le=32)]], Field(strict=False)]
EncodedSize = Annotated[tuple[Bits, Positive], Field(strict=False)]
Holds = Literal["weights", "activations"]
KernelClass = Literal["conv", "depthwise", "add"]
Compared = Literal[
    "conv",
    "depthwise",
    "transposed",
    "add",
    "multiply",
    "function",
    "pool",
    "concatenate",
    "norm",
    "softmax",
    "inference",
]
"""Kinds of layers (`workload.LayerKind`), and `inference` for what an inference takes around its layers."""

_MOST_LISTED = 10


class Section(BaseModel):
    """A table of a target file: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Clock(Section):
    """The clock, which converts cycles to time."""

    clock_hz: Annotated[float, Field(ge=1, le=1e15, allow_inf_nan=False)]
    source: Source


class Memory(Section):
    """One memory level; a file lists the nearest first.

    `bytes` is its capacity. All weights lie in one level that holds weights, and all activations in one that holds activations:
    of the levels with enough space, those in which the network runs fastest. Without `bytes_per_cycle`, traffic is not charged;
    the compute rates, which are measured end to end, include it.
    """

    name: Name
    bytes: Count | None = None
    bytes_per_cycle: Positive | None = None
    pj_per_bit: NotNegative = 0.0
    holds: Annotated[tuple[Holds, ...], Field(strict=False, min_length=1)]
    source: Source


class Storage(Section):
    """How weights are stored.

    Codec `packed` stores the executed width bit by bit. `encoded` charges the measured bytes per weight of the chosen width, or
    of the next wider width in the table; a layer that runs in float32 takes 32 bits. It also charges the zeros that an expanded
    dilation inserts. Every output channel also stores its bias and requantization constants.
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
    """The pairs of (activation, weight) bits that the chip executes; 32 means float32.

    With `unsupported` set to `widen`, a pair that is not listed runs as the next wider one: of the wider pairs, that with the
    fewest weight bits, then the fewest activation bits. It is refused if there is none, or with `unsupported` set to `refuse`.
    `carried_bits` are further widths of tensors, which any layer can write and layers without weights can read. With
    `carried_in_float`, their values are rounded to these widths but held in float32. `output_bits` is the width of results in
    memory traffic, if the chip fixes it. The next layer reads them, and memory keeps them, at their own width.
    """

    pairs: Annotated[tuple[Pair, ...], Field(strict=False, min_length=1)]
    unsupported: Literal["widen", "refuse"]
    activation_signed: bool
    weight_signed: bool
    accumulator_bits: Count
    carried_bits: Annotated[tuple[Bits, ...], Field(strict=False)] = ()
    carried_in_float: bool = False
    output_bits: Bits | None = None
    source: Source

    @property
    def activation_bits(self) -> tuple[int, ...]:
        """Widths in which activations are held, in rising order."""
        return tuple(sorted({activation for activation, _ in self.pairs} | set(self.carried_bits)))

    def held_bits(self, bits: int) -> int:
        """Return the bits that a value of an executed width takes in memory."""
        return FLOAT_BITS if self.carried_in_float and bits in self.carried_bits else bits

    @property
    def in_words(self) -> str:
        """The pairs, such as `a8w8, a8w4`; the first and the last if there are more than ten."""
        few = len(self.pairs) <= _MOST_LISTED
        listed = self.pairs if few else (self.pairs[0], self.pairs[-1])
        return (", " if few else " to ").join(f"a{activation}w{weight}" for activation, weight in listed)


class Dilation(Section):
    """Cost of dilated kernels.

    `native`: none. `expand`: the compiler fills the kernel with zeros if the dilation exceeds that of the hardware. `fold_time`:
    frames are folded to [frames / dilation, dilation] and padded to a whole number of rows.
    """

    mode: Literal["native", "expand", "fold_time"]
    native_factor: Count = 1
    source: Source


class Overheads(Section):
    """Overheads of every layer, and whether its traffic overlaps with its arithmetic.

    `scale` multiplies all cycles of a layer but `layer_cycles`; a calibration determines it. `cycles_per_input` is charged for
    each element of the network's inputs, which a runtime normalises and quantizes before the first layer.
    """

    layer_cycles: NotNegative
    inference_cycles: NotNegative = 0.0
    cycles_per_input: NotNegative = 0.0
    scale: Positive = 1.0
    transfers_overlap: bool = True
    source: Source


class MacEnergy(Section):
    """Energy of one multiply-accumulate at a pair of executed widths."""

    activation_bits: Bits
    weight_bits: Bits
    pj_per_mac: NotNegative


class Energy(Section):
    """Energy: power while the chip runs, plus the energy of multiply-accumulates, memory levels and the compute rule.

    In streaming, `idle_mw` is charged from the end of a frame to the next frame.
    """

    active_mw: NotNegative
    idle_mw: NotNegative = 0.0
    macs: Annotated[tuple[MacEnergy, ...], Field(strict=False)] = ()
    source: Source


class Limits(Section):
    """Limits on shapes that the chip or its compiler runs."""

    max_kernel_size: Count
    source: Source


class Evidence(Section):
    """A comparison of modelled latencies with a reference: what was compared, and how far the model was off.

    `kinds` and `pairs` say which layers it speaks for: those of these kinds that run at one of these pairs of (activation,
    weight) bits, 0 without weights; without `pairs`, at any. With `bound`, it speaks only for layers that wait for one of these.
    `cases` counts networks or layers that the model was not fitted to. Errors are absolute, relative to the reference.
    """

    kinds: Annotated[tuple[Compared, ...], Field(strict=False, min_length=1)]
    pairs: Annotated[tuple[EvidencePair, ...], Field(strict=False)] = ()
    bound: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    compared: Literal["networks", "layers"]
    cases: Count
    mean_error_percent: NotNegative
    max_error_percent: NotNegative
    source: Source

    @model_validator(mode="after")
    def _mean_is_no_more_than_the_largest(self) -> Self:
        if self.mean_error_percent > self.max_error_percent:
            raise ValueError(
                f"mean_error_percent is {self.mean_error_percent:g}; wanted at most max_error_percent, {self.max_error_percent:g}"
            )
        return self

    def covers(self, kind: str, pair: tuple[int, int], bound: str) -> bool:
        """Whether it speaks for layers of a kind that run at a pair of widths and wait for `bound`."""
        return kind in self.kinds and (not self.pairs or pair in self.pairs) and (not self.bound or bound in self.bound)

    def overlaps(self, other: "Evidence") -> bool:
        """Whether both may speak for the same layer."""
        shared = set(self.kinds) & set(other.kinds)
        widths = not self.pairs or not other.pairs or set(self.pairs) & set(other.pairs)
        waits = not self.bound or not other.bound or set(self.bound) & set(other.bound)
        return bool(shared and widths and waits)


class Calibration(Section):
    """Accuracy of the latency: the data that it was fitted to, and its error on held-out data.

    `against` names the reference of the errors: a chip, another simulator, or nothing yet. `evidence` says which layers were
    compared with it. Of layers that no entry covers, nobody knows the error.
    """

    against: Literal["measurements", "simulator", "nothing"]
    fitted_on: Source
    held_out: Source
    median_error_percent: NotNegative | None = None
    max_error_percent: NotNegative | None = None
    source: Source
    evidence: Annotated[tuple[Evidence, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _evidence_is_of_the_reference(self) -> Self:
        if self.evidence and self.against == "nothing":
            raise ValueError("evidence: found some, and against = 'nothing'; wanted what it was compared with")
        for place, one in enumerate(self.evidence):
            if any(one.overlaps(other) for other in self.evidence[:place]):
                raise ValueError(f"evidence: entry {place + 1} covers layers of an earlier one; wanted each layer in one at most")
        return self
