"""What a search optimises: a column of metrics or costs, and its direction."""

from collections.abc import Mapping, Sequence
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

QUALITY = "si_snr_improvement_db"
"""Mean SI-SNR improvement over the mixture, dB."""
QUALITY_CI95 = "si_snr_improvement_ci95_db"
"""Half width of the 95 % confidence interval of `QUALITY`, dB: how much utterances differ."""
DROP_CI95 = "drop_ci95_db"
"""Half width of the 95 % confidence interval of the quality lost against full precision, utterance by utterance, dB."""
UTTERANCES = "utterances"
"""How many mixtures the mean is over."""
TRAINING_STEPS = "training_steps"
"""Steps that the candidate's weights were trained, those of the candidates its training started from included."""
SIZE = "size_bytes"
"""Bytes of the file that ships."""


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
    """Objectives by column: quality is to be high, costs are to be low."""
    return tuple(
        Objective(column=column, direction=Direction.MAXIMIZE if column == QUALITY else Direction.MINIMIZE) for column in columns
    )


def objective_values(
    objectives: Sequence[Objective], metrics: Mapping[str, float], costs: Mapping[str, float | None]
) -> list[float]:
    """The objectives of a scored candidate, in order.

    Raises:
        KeyError: neither metrics nor costs have a finite value for an objective.
    """
    values = {name: value for name, value in {**costs, **metrics}.items() if value is not None}
    return [values[objective.column] for objective in objectives]
