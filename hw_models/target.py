"""A target file: one chip with its runtime, every number with its source. A file that does not fit is refused in one line."""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, ValidationError, model_validator

from hw_models.errors import TargetError
from hw_models.rules.bit_flexible import BitFlexibleCompute
from hw_models.rules.dataflow import DataflowCompute
from hw_models.rules.micro_block import MicroBlockCompute
from hw_models.rules.rates import RateCompute
from hw_models.rules.roofline import RooflineCompute
from hw_models.rules.systolic import SystolicCompute
from hw_models.sections import (
    Calibration,
    Clock,
    Dilation,
    Energy,
    Holds,
    Limits,
    Memory,
    Name,
    Overheads,
    Precisions,
    Section,
    Source,
    Storage,
)

BUILT_IN: Final = resources.files("hw_models") / "targets"

Compute = Annotated[
    RateCompute | BitFlexibleCompute | MicroBlockCompute | SystolicCompute | DataflowCompute | RooflineCompute,
    Field(discriminator="rule"),
]
"""Every compute rule; a new one is registered here."""

RESERVED: Final = frozenset({"compute", "buffers", "overhead", "slack"})
"""What bounds a layer beside memory levels: no level can be called so."""

RULES: Final = ("rates", "bit_flexible_array", "micro_block", "systolic_array", "dataflow", "roofline")


class Target(Section):
    """One chip with its runtime."""

    name: Name
    title: Source
    family: Literal["microcontroller", "multicore", "npu", "systolic_array", "bit_flexible_array", "fpga", "cpu", "gpu"]
    runtime: Source
    clock: Clock
    memory: Annotated[tuple[Memory, ...], Field(strict=False, min_length=1)]
    storage: Storage
    precisions: Precisions
    compute: Compute
    dilation: Dilation
    overheads: Overheads
    energy: Energy | None = None
    limits: Limits | None = None
    calibration: Calibration

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        for what in ("weights", "activations"):
            levels = self.levels(what)
            if not levels:
                raise ValueError(f"memory: no level holds {what}; wanted one")
            if endless := [level.name for level in levels[:-1] if level.bytes is None]:
                raise ValueError(f"memory: level '{endless[0]}' holds {what} and has no bytes; wanted its size, others follow it")
        names = [level.name for level in self.memory]
        if len(set(names)) < len(names):
            raise ValueError(f"memory: names {names}; wanted each once")
        if taken := RESERVED.intersection(names):
            raise ValueError(f"memory: name '{min(taken)}'; wanted another, it stands for what bounds a layer")
        self.compute.check(self.precisions)
        if self.storage.codec == "encoded":
            widest = max(weight for _, weight in self.precisions.pairs)
            if self.storage.encoded_bytes_per_weight[-1][0] < widest:
                raise ValueError(f"storage.encoded_bytes_per_weight: wanted a size for {widest}-bit weights")
        if self.energy is not None and self.energy.macs:
            found = sorted((mac.activation_bits, mac.weight_bits) for mac in self.energy.macs)
            if found != sorted(self.precisions.pairs):
                raise ValueError("energy.macs: wanted one entry for each pair of precisions.pairs, and no other")
        return self

    def levels(self, holds: Holds) -> tuple[Memory, ...]:
        """The memory levels that can hold weights or activations, the nearest first."""
        return tuple(level for level in self.memory if holds in level.holds)


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
    field = " ".join(".".join(str(part) for part in problem["loc"]).split())
    for rule in RULES:  # pydantic puts the chosen rule into the path of a field
        field = field.replace(f"compute.{rule}", "compute", 1)
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    found, wanted = repr(problem["input"]), problem["msg"]
    match problem["type"]:
        case "missing":
            found, wanted = "nothing", "a value"
        case "extra_forbidden":
            wanted = "no such field"
        case "union_tag_invalid" | "union_tag_not_found":
            field, wanted = f"{field}.rule", f"one of {', '.join(sorted(RULES))}"
            found = repr(_rule(content))
        case "value_error":
            section = f"{field}." if field else ""
            return f"{where}: {section}{wanted.removeprefix('Value error, ')}{more}"
    return f"{where}: {field}: found {found[:80]}; wanted {wanted[:1].lower()}{wanted[1:]}{more}"


def _rule(content: dict[str, Any]) -> Any:
    compute = content.get("compute")
    return compute.get("rule") if isinstance(compute, dict) else compute
