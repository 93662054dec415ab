"""The result of every method: the estimated loss of each site at each width, when that site alone is quantized."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from hw_models.wording import first_mistake
from hwsearch.errors import UserError
from hwsearch.extensions import SENSITIVITIES
from hwsearch.files.reading import canonical_json

_FORMAT = 1
_Rows = tuple[tuple[FiniteFloat | None, ...], ...]


class _Content(BaseModel):
    """The fields of a table's file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[1]
    method: Annotated[str, SENSITIVITIES]
    unit: str
    mixtures: int
    sites: tuple[str, ...]
    widths: tuple[int, ...]
    value: _Rows
    standard_error: _Rows


def unit_of(method: str) -> str:
    """Return the unit of a method's values."""
    unit: str = SENSITIVITIES.load(method).unit
    return unit


@dataclass(frozen=True, eq=False)
class SensitivityTable:
    """Estimated loss by site and width.

    Attributes:
        method: name of the method, which also determines the unit.
        sites: names, without repeats.
        widths: candidate widths, rising.
        value: the mean over mixtures, [sites, widths]; NaN where a site cannot take a width. Negative where quantizing helped, or
            the estimate is that noisy.
        standard_error: standard error of `value`, [sites, widths]; NaN if it is unknown, as for a single mixture.
        mixtures: number of mixtures.
    """

    method: str
    sites: tuple[str, ...]
    widths: tuple[int, ...]
    value: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    mixtures: int

    def __post_init__(self) -> None:
        """Check the parts against each other, and copy the arrays into read-only ones.

        Raises:
            ValueError: repeated sites, widths that do not rise, another shape, an infinity, a negative error.
        """
        for name in ("value", "standard_error"):
            array = np.array(getattr(self, name), dtype=np.float64)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        shape = len(self.sites), len(self.widths)
        _check(shape[0] > 0 and len(set(self.sites)) == shape[0], "wanted at least one site, and none twice")
        _check(
            shape[1] > 0 and list(self.widths) == sorted(set(self.widths)) and self.widths[0] > 0,
            f"widths are {list(self.widths)}; wanted positive ones that rise without repeats",
        )
        _check(self.mixtures > 0, f"mixtures is {self.mixtures}; wanted at least 1")
        for name, array in (("value", self.value), ("standard_error", self.standard_error)):
            _check(array.shape == shape, f"{name} is {list(array.shape)}; wanted [sites, widths], {list(shape)}")
            _check(not np.isinf(array).any(), f"{name} holds an infinity")
        _check(not (self.standard_error < 0).any(), "standard_error holds a negative number")
        unknown = np.isnan(self.value)
        _check(bool(np.isnan(self.standard_error[unknown]).all()), "standard_error holds a number where value has none")

    @property
    def unit(self) -> str:
        """The unit of the values."""
        return unit_of(self.method)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object. Numbers keep every bit, and NaN becomes null."""
        return {
            "format": _FORMAT,
            "method": self.method,
            "unit": self.unit,
            "mixtures": self.mixtures,
            "sites": list(self.sites),
            "widths": list(self.widths),
            "value": _to_rows(self.value),
            "standard_error": _to_rows(self.standard_error),
        }

    @classmethod
    def from_json(cls, content: Any, source: str) -> Self:
        """Read the result of `to_json`.

        Raises:
            UserError: another format, an unknown method, or parts that are missing or do not fit. The message names `source`.
        """
        try:
            found = _Content.model_validate_json(canonical_json(content))
            unit = unit_of(found.method)
            _check(found.unit == unit, f"unit is {found.unit!r}; wanted '{unit}' for method '{found.method}'")
            value, error = (np.array(rows, dtype=np.float64) for rows in (found.value, found.standard_error))
            return cls(found.method, found.sites, found.widths, value, error, found.mixtures)
        except ValueError as problem:
            said = first_mistake(problem).said if isinstance(problem, ValidationError) else str(problem)
            raise UserError(f"{source}: broken sensitivity table ({said}); delete it and it is made again") from None


def over_mixtures(method: str, sites: Sequence[str], widths: Sequence[int], values: ArrayLike) -> SensitivityTable:
    """Average the values of mixtures, [mixtures, sites, widths], with NaN where a site cannot take a width.

    The standard error is that of a mean of independent mixtures, NaN for a single one.
    """
    stacked = np.asarray(values, dtype=np.float64)
    count = len(stacked)
    error = stacked.std(axis=0, ddof=1) / math.sqrt(count) if count > 1 else np.full(stacked.shape[1:], np.nan)
    return SensitivityTable(method, tuple(sites), tuple(widths), stacked.mean(axis=0), error, count)


def _check(holds: bool, problem: str) -> None:  # noqa: FBT001 (reads as an assertion)
    if not holds:
        raise ValueError(problem)


def _to_rows(array: NDArray[np.float64]) -> list[list[float | None]]:
    return [[None if math.isnan(number) else number for number in row] for row in array.tolist()]
