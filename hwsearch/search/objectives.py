"""What a search optimises: a column of metrics or costs, and its direction."""

from collections.abc import Mapping, Sequence
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from hw_models.figures import significant
from hwsearch.extensions import QUALITY_METRICS

QUALITY = "si_snr_improvement_db"
"""Mean SI-SNR improvement over the mixture, dB."""
QUALITY_CI95 = "si_snr_improvement_ci95_db"
"""Half width of the 95 % confidence interval of `QUALITY` over utterances, dB."""
DROP_CI95 = "drop_ci95_db"
"""Half width of the 95 % confidence interval of the quality lost against full precision, paired by utterance, dB."""
UTTERANCES = "utterances"
"""Number of mixtures that the mean is taken over."""
TRAINING_STEPS = "training_steps"
"""Training steps behind the candidate's weights, including those of the candidates that its training started from."""
SIZE = "size_bytes"
"""Size of the exported ONNX file, bytes."""
PACKED_SIZE = "packed_bytes"
"""Size of the packed weights file, which holds no graph, bytes."""
COUNTS = frozenset({UTTERANCES, TRAINING_STEPS, "blocks_left_out", "fits", "lut", "bram18", "uram", "dsp"})
"""Columns of whole numbers that are not in bytes, without the target in brackets."""


def is_count(column: str) -> bool:
    """Whether a column holds whole numbers."""
    name = column.partition("[")[0]
    return name.endswith("_bytes") or name in COUNTS


def in_figures(column: str, value: float) -> str:
    """Format a value of a column: counts as whole numbers, decibels and bits with three decimals, others with four digits."""
    if is_count(column):
        return f"{value:,.0f}"
    return f"{value:.3f}" if column.endswith(("_db", "_bits")) else significant(value)


class Direction(StrEnum):
    """Whether more or less of an objective is better."""

    MAXIMIZE = "maximize"
    MINIMIZE = "minimize"


class Objective(BaseModel):
    """A column and its direction."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    column: str
    direction: Direction


QUALITY_AND_SIZE = (
    Objective(column=QUALITY, direction=Direction.MAXIMIZE),
    Objective(column=SIZE, direction=Direction.MINIMIZE),
)


def objectives_of(columns: Sequence[str]) -> tuple[Objective, ...]:
    """Return the objectives with their directions. A metric of quality has its own; costs are minimised."""
    return tuple(Objective(column=column, direction=_direction(column)) for column in columns)


def _direction(column: str) -> Direction:
    if column == QUALITY:
        return Direction.MAXIMIZE
    return Direction(QUALITY_METRICS.load(column).direction) if column in QUALITY_METRICS else Direction.MINIMIZE


def objective_values(
    objectives: Sequence[Objective], metrics: Mapping[str, float], costs: Mapping[str, float | None]
) -> list[float]:
    """Return the objectives of a scored candidate, in order.

    Raises:
        KeyError: neither metrics nor costs have a finite value for an objective.
    """
    values = {name: value for name, value in {**costs, **metrics}.items() if value is not None}
    return [values[objective.column] for objective in objectives]


_PLAUSIBLE = {
    QUALITY: (-300.0, 300.0),
    QUALITY_CI95: (0.0, 1e6),
    DROP_CI95: (0.0, 1e6),
    UTTERANCES: (1.0, 1e9),
    TRAINING_STEPS: (0.0, 1e12),
    SIZE: (1.0, 1e15),
    PACKED_SIZE: (1.0, 1e15),
}
"""Least and largest value by column. SI-SNR is clipped to 150 dB, so an improvement lies within 300."""

_PLAUSIBLE_COST = (0.0, 1e18)


def implausible(metrics: Mapping[str, float], costs: Mapping[str, float | None]) -> str | None:
    """Describe the first metric or cost whose value no candidate can have, or return None. A cost of None is ignored."""
    if twice := metrics.keys() & costs.keys():
        return f"'{min(twice)}' among its metrics and among its costs"
    limits = {name: _PLAUSIBLE.get(name, (-1e18, 1e18)) for name in metrics}
    limits |= {name: _PLAUSIBLE.get(name, _PLAUSIBLE_COST) for name in costs}
    for name, value in (*metrics.items(), *costs.items()):
        low, high = limits[name]
        if value is not None and not low <= value <= high:
            return f"'{name}' {value:g}, which is outside {low:g} to {high:g}"
    return None
