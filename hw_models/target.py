"""The schema of a target file: one chip with its runtime, every number with its source.

A file that does not fit is refused in one line. Key names carry the unit; each section says in `source` where
its numbers are from (a publication, a tool and its version, a measurement), or that they are an assumption.
"""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from hw_models.errors import TargetError

Source = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.\-]*$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Bits = Annotated[int, Field(ge=1, le=32)]
Pair = Annotated[tuple[Bits, Bits], Field(strict=False)]
EncodedSize = Annotated[tuple[Bits, Positive], Field(strict=False)]
Holds = Literal["weights", "activations"]
KernelClass = Literal["conv", "depthwise", "add"]

BUILT_IN: Final = resources.files("hw_models") / "targets"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Clock(_Section):
    """The clock that turns cycles into time."""

    clock_hz: Positive
    source: Source


class Memory(_Section):
    """One memory level.

    `bytes` is its capacity, where the file states one. Without `bytes_per_cycle` its traffic is not charged,
    because the compute rates, being measured end to end, hold it already.
    """

    name: Name
    bytes: Count | None = None
    bytes_per_cycle: Positive | None = None
    holds: Annotated[tuple[Holds, ...], Field(strict=False, min_length=1)]
    source: Source


class Storage(_Section):
    """How weights lie in memory.

    Codec `packed` stores the executed width bit by bit; `encoded` charges each chosen width its measured
    bytes per weight (a width between two of the table costs as the next wider), plus the zeros that an
    expanded dilation inserts. Every output channel also carries its bias and requantization constants.
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


class Precisions(_Section):
    """What the chip executes: pairs of (activation, weight) bits, 32 for float32.

    A chosen pair that is not listed runs in the next wider one (least weight bits, then least activation
    bits) when `unsupported` is `widen`, and is refused when it is `refuse` or when nothing wider exists.
    `output_bits` is the width in which results are written to memory, where the chip fixes one.
    """

    pairs: Annotated[tuple[Pair, ...], Field(strict=False, min_length=1)]
    unsupported: Literal["widen", "refuse"]
    activation_signed: bool
    weight_signed: bool
    accumulator_bits: Count
    output_bits: Bits | None = None
    source: Source

    @property
    def activation_bits(self) -> tuple[int, ...]:
        """Activation widths in rising order."""
        return tuple(sorted({activation for activation, _ in self.pairs}))


class Rate(_Section):
    """Cycles of one kernel class at one (activation, weight) pair; `weight_bits` is 0 for `add`."""

    kernel: KernelClass
    activation_bits: Bits
    weight_bits: Annotated[int, Field(ge=0, le=32)]
    cycles_per_mac: NotNegative = 0.0
    cycles_per_output: NotNegative = 0.0
    cycles_per_channel: NotNegative = 0.0
    layer_cycles: NotNegative = 0.0
    source: Source


class RateCompute(_Section):
    """Compute time from a table of measured rates."""

    rule: Literal["rates"]
    rates: Annotated[tuple[Rate, ...], Field(strict=False, min_length=1)]
    source: Source


class BitFlexibleCompute(_Section):
    """Compute time of a BitFusion-like array of `rows` inputs by `columns` outputs (see `bit_flexible`)."""

    rule: Literal["bit_flexible_array"]
    rows: Count
    columns: Count
    native_bits: Bits
    least_bits: Bits
    weight_buffer_bytes: Count
    input_buffer_bytes: Count
    output_buffer_bytes: Count
    memory_bits_per_cycle: Count
    add_elements_per_cycle: Positive
    source: Source


class MicroBlockCompute(_Section):
    """Compute time of an NPU that works in micro-blocks of frames by channels (see `micro_block`)."""

    rule: Literal["micro_block"]
    block_frames: Count
    block_channels: Count
    block_cycles: Count
    block_input_channels: Count
    part_kernel_input_channels: Count
    kernel_step: Count
    kernel_piece: Count
    output_cycles_per_element: Positive
    add_cycles_per_element: Positive
    source: Source


class Dilation(_Section):
    """What a dilated kernel costs.

    `native`: nothing. `expand`: the compiler fills the kernel with zeros beyond the dilation the hardware
    has. `fold_time`: frames are folded to [frames / dilation, dilation] and padded to a whole number of rows.
    """

    mode: Literal["native", "expand", "fold_time"]
    native_factor: Count = 1
    source: Source


class Overheads(_Section):
    """What every layer pays on top of its work."""

    layer_cycles: NotNegative
    source: Source


class Limits(_Section):
    """Shapes the chip or its compiler refuses."""

    max_kernel_size: Count
    source: Source


class Calibration(_Section):
    """How far to trust the latency: against what it was fitted, and its error on what was held out."""

    fitted_on: Source
    held_out: Source
    median_error_percent: NotNegative | None = None
    max_error_percent: NotNegative | None = None
    source: Source


class Target(_Section):
    """One chip with its runtime."""

    name: Name
    title: Source
    family: Literal["microcontroller", "npu", "bit_flexible_array", "cpu"]
    runtime: Source
    clock: Clock
    memory: Annotated[tuple[Memory, ...], Field(strict=False, min_length=1)]
    storage: Storage
    precisions: Precisions
    compute: Annotated[RateCompute | BitFlexibleCompute | MicroBlockCompute, Field(discriminator="rule")]
    dilation: Dilation
    overheads: Overheads
    limits: Limits | None = None
    calibration: Calibration

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        for what in ("weights", "activations"):
            levels = [level.name for level in self.memory if what in level.holds]
            if len(levels) != 1:
                raise ValueError(f"memory: {len(levels)} levels hold {what}; wanted one")
        if isinstance(self.compute, RateCompute):
            pairs = self.precisions.pairs
            wanted: list[tuple[str, int, int]] = [(kernel, a, w) for kernel in ("conv", "depthwise") for a, w in pairs]
            wanted += [("add", a, 0) for a in self.precisions.activation_bits]
            found: list[tuple[str, int, int]] = [
                (rate.kernel, rate.activation_bits, rate.weight_bits) for rate in self.compute.rates
            ]
            for key in wanted:
                if (count := found.count(key)) != 1:
                    what = f"kernel '{key[0]}', activation_bits {key[1]}, weight_bits {key[2]}"
                    raise ValueError(f"compute.rates: found {count} rates for {what}; wanted one")
            if extra := [key for key in found if key not in wanted]:
                raise ValueError(f"compute.rates: rate {extra[0]} belongs to no pair of precisions.pairs")
        if self.storage.codec == "encoded":
            widest = max(weight for _, weight in self.precisions.pairs)
            if self.storage.encoded_bytes_per_weight[-1][0] < widest:
                raise ValueError(f"storage.encoded_bytes_per_weight: wanted a size for {widest}-bit weights")
        return self

    def level(self, holds: Holds) -> Memory:
        """The memory level that holds weights or activations."""
        return next(level for level in self.memory if holds in level.holds)

    def capacity_bytes(self, holds: Holds) -> int | None:
        """Bytes the chip has for weights or activations; None where the file states no limit."""
        return self.level(holds).bytes


def built_in_targets() -> tuple[str, ...]:
    """Names of the targets that come with the package."""
    names = (entry.name for entry in BUILT_IN.iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


def load_target(name_or_path: str | Path) -> Target:
    """A built-in target by name, or one from a user's own TOML file.

    Raises:
        TargetError: no such target or file, not TOML, or a field that is wrong; one line that names file and
            field.
    """
    if isinstance(name_or_path, str) and name_or_path in built_in_targets():
        where, text = f"{name_or_path}.toml", (BUILT_IN / f"{name_or_path}.toml").read_text("utf-8")
    else:
        path = Path(name_or_path)
        if not path.is_file():
            known = ", ".join(built_in_targets())
            raise TargetError(f"target '{name_or_path}': neither a file nor built in; built in are {known}")
        where = str(path)
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TargetError(f"{where}: cannot be read as UTF-8 text ({error})") from error
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number or a nesting too long is not TOMLDecodeError
        raise TargetError(f"{where}: not a TOML file ({error})") from error
    try:
        return Target.model_validate(content)
    except ValidationError as error:
        raise TargetError(_one_line(where, content, error)) from error


def _one_line(where: str, content: dict[str, Any], error: ValidationError) -> str:
    problem = error.errors()[0]
    rules = {"rates", "bit_flexible_array", "micro_block"}
    field = " ".join(".".join(str(part) for part in problem["loc"]).split())
    for rule in rules:  # pydantic puts the chosen rule into the path of a field
        field = field.replace(f"compute.{rule}", "compute", 1)
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    found, wanted = repr(problem["input"]), problem["msg"]
    match problem["type"]:
        case "missing":
            found, wanted = "nothing", "a value"
        case "extra_forbidden":
            wanted = "no such field"
        case "union_tag_invalid" | "union_tag_not_found":
            field, wanted = f"{field}.rule", f"one of {', '.join(sorted(rules))}"
            found = repr(_rule(content))
        case "value_error":
            section = f"{field}." if field else ""
            return f"{where}: {section}{wanted.removeprefix('Value error, ')}{more}"
    return f"{where}: {field}: found {found[:80]}; wanted {wanted[:1].lower()}{wanted[1:]}{more}"


def _rule(content: dict[str, Any]) -> Any:
    compute = content.get("compute")
    return compute.get("rule") if isinstance(compute, dict) else compute
