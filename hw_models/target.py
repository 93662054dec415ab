"""Target files: each describes one chip with its runtime, and the sources of all numbers."""

import os
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, ValidationError, model_validator

from hw_models.errors import TargetError
from hw_models.reading import Unreadable, parse_toml, read_toml
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
from hw_models.wording import first_mistake, shown

BUILT_IN: Final = resources.files("hw_models") / "targets"

Compute = Annotated[
    RateCompute | BitFlexibleCompute | MicroBlockCompute | SystolicCompute | DataflowCompute | RooflineCompute,
    Field(discriminator="rule"),
]
"""All compute rules; register new ones here."""

RESERVED: Final = frozenset({"compute", "buffers", "overhead", "slack"})
"""Bounds of a layer other than memory levels; no level can have these names."""

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
        """Memory levels that can hold weights, or activations, from the nearest on."""
        return tuple(level for level in self.memory if holds in level.holds)


def built_in_targets() -> tuple[str, ...]:
    """Names of the built-in targets."""
    names = (entry.name for entry in BUILT_IN.iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


def load_target(name_or_path: str | Path) -> Target:
    """Load a built-in target by name, or a target from a TOML file.

    Raises:
        TargetError: there is no such target or file, it is not TOML, or a field is wrong.
    """
    if isinstance(name_or_path, str) and name_or_path in built_in_targets():
        where = f"{name_or_path}.toml"
        content = parse_toml((BUILT_IN / where).read_text("utf-8"))
    else:
        path = Path(name_or_path)
        where = str(path)
        try:
            content = read_toml(path)
        except Unreadable as error:
            if not os.path.lexists(path):
                known = ", ".join(built_in_targets())
                raise TargetError(f"target '{name_or_path}': neither a file nor built in; built in are {known}") from None
            raise TargetError(f"{where}: {error}; wanted a target file in TOML") from None
    try:
        return Target.model_validate(content)
    except ValidationError as error:
        raise TargetError(_one_line(where, content, error)) from error


def _one_line(where: str, content: dict[str, Any], error: ValidationError) -> str:
    mistake = first_mistake(error)
    field, found, wanted = mistake.key, mistake.found, mistake.wanted
    for rule in RULES:  # pydantic puts the chosen rule into the path of a field
        field = field.replace(f"compute.{rule}", "compute", 1)
    match mistake.kind:
        case "union_tag_invalid" | "union_tag_not_found":
            field, found, wanted = f"{field}.rule", shown(_rule(content)), f"one of {', '.join(sorted(RULES))}"
        case "value_error":
            section = f"{field}." if field else ""
            return f"{where}: {section}{wanted}{mistake.others}"
    return f"{where}: {field}: found {found}; wanted {wanted}{mistake.others}"


def _rule(content: dict[str, Any]) -> Any:
    compute = content.get("compute")
    return compute.get("rule") if isinstance(compute, dict) else compute
