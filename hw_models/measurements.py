"""Files of latencies and energies that a user has measured on a chip, and the networks that were run."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Final, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from hw_models.errors import TargetError
from hw_models.reading import Unreadable, read_text
from hw_models.sections import Bits, Section, Source
from hw_models.wording import first_mistake
from hw_models.workload import WEIGHTED, WIDTHS, IntArray, Layer, LayerKind, Workload

FILE_BYTES: Final = 16 * 2**20
"""Size limit of a file of measurements; a measured network takes a few hundred bytes."""


class MeasuredLayer(Section):
    """One measured layer, with stride 1."""

    kind: Literal[LayerKind.CONV, LayerKind.DEPTHWISE, LayerKind.ADD, LayerKind.FUNCTION]
    in_channels: Annotated[int, Field(ge=1, le=65536)]
    out_channels: Annotated[int, Field(ge=1, le=65536)]
    kernel_size: Annotated[int, Field(ge=1, le=1024)] = 1
    dilation: Annotated[int, Field(ge=1, le=65536)] = 1


class Measurement(Section):
    """One timed run of a layer, a chain of layers or a whole network, all in the same widths (32 for float32).

    `layers` run one after another, `repeats` times. A layer reads the newest tensor with its number of input channels, an `add`
    the two newest. Tensors that do not exist yet are inputs of the network.
    """

    name: Source
    latency_ms: Annotated[float, Field(ge=1e-9, le=1e12, allow_inf_nan=False)]
    energy_uj: Annotated[float, Field(ge=1e-9, le=1e15, allow_inf_nan=False)] | None = None
    frames: Annotated[int, Field(ge=1, le=1_000_000)]
    activation_bits: Bits
    weight_bits: Bits
    layers: Annotated[tuple[MeasuredLayer, ...], Field(min_length=1)]
    repeats: Annotated[int, Field(ge=1, le=1000)] = 1
    held_out: bool = False

    @model_validator(mode="after")
    def _can_run(self) -> Self:
        if wrong := {self.activation_bits, self.weight_bits} - set(WIDTHS):
            raise ValueError(f"found {min(wrong)} bits; wanted 1 to 16, or 32 for float32")
        for number, layer in enumerate(self.layers):
            if layer.kind is not LayerKind.CONV and layer.in_channels != layer.out_channels:
                found = f"{layer.in_channels} channels in and {layer.out_channels} out"
                raise ValueError(f"layers.{number}: found {found}; wanted one number of channels for kind '{layer.kind}'")
        return self

    @property
    def workload(self) -> Workload:
        """The network that was run; its `frame_seconds` has no meaning."""
        layers: list[Layer] = []
        channels: dict[str, int] = {}
        for number, measured in enumerate(self.layers * self.repeats):
            is_add, weighted = measured.kind is LayerKind.ADD, measured.kind in WEIGHTED
            fitting = [site for site, found in channels.items() if found == measured.in_channels]
            missing = max(0, (2 if is_add else 1) - len(fitting))
            inputs = [f"input{number}{operand}" for operand in ("", "-second")[:missing]]
            channels |= dict.fromkeys(inputs, measured.in_channels)
            fitting = inputs + fitting
            channels[f"output{number}"] = measured.out_channels
            layers.append(
                Layer(
                    name=f"layer{number}",
                    kind=measured.kind,
                    in_channels=measured.in_channels,
                    out_channels=measured.out_channels,
                    kernel_size=measured.kernel_size,
                    dilation=measured.dilation,
                    weight_site=f"weight{number}" if weighted else None,
                    input_sites=(fitting[-2:][0], fitting[-1]) if is_add else (fitting[-1],),
                    output_site=f"output{number}",
                    bias=weighted,
                )
            )
        return Workload(self.name, tuple(layers), self.frames, 1.0, per_channel_scales=True, site_channels=channels)

    @property
    def bits(self) -> IntArray:
        """The allocation `[sites]`, in the order of `workload.sites`."""
        workload = self.workload
        widths = [self.weight_bits] * len(workload.weight_sites) + [self.activation_bits] * len(workload.activation_sites)
        return np.array(widths, np.int64)


class Measurements(Section):
    """A file of measurements; `source` states chip, clock, runtime and its version, author and date."""

    source: Source
    measurements: Annotated[tuple[Measurement, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        counts = Counter(measurement.name for measurement in self.measurements)
        if duplicates := [name for name, count in counts.items() if count > 1]:
            raise ValueError(f"measurements: name '{duplicates[0]}' occurs {counts[duplicates[0]]} times; wanted once")
        return self


def load_measurements(path: str | Path) -> Measurements:
    """Read a file of measurements (JSON).

    Raises:
        TargetError: the file cannot be read, is not JSON, or has a wrong field.
    """
    try:
        text = read_text(Path(path), FILE_BYTES)
    except Unreadable as error:
        raise TargetError(f"{path}: {error}; wanted a JSON file of measurements") from None
    try:
        return Measurements.model_validate_json(text)
    except ValidationError as error:
        raise TargetError(_one_line(str(path), error)) from error


def _one_line(where: str, error: ValidationError) -> str:
    mistake = first_mistake(error)
    match mistake.kind:
        case "json_invalid":
            return f"{where}: not valid {mistake.wanted}; wanted a JSON file of measurements"
        case "value_error":
            return f"{where}: {mistake.key}{': ' if mistake.key else ''}{mistake.wanted}{mistake.others}"
    return f"{where}: {mistake.key or 'the file'}: found {mistake.found}; wanted {mistake.wanted}{mistake.others}"
