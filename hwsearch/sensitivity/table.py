"""The result of every method: the estimated loss of each site at each width, when that site alone is quantized."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwsearch.errors import UserError
from hwsearch.extensions import SENSITIVITIES

_FORMAT = 1
_KEYS = frozenset({"format", "method", "unit", "mixtures", "sites", "widths", "value", "standard_error"})


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
        value: [sites, widths], the mean over mixtures; NaN where a site cannot take a width. Negative where quantizing helped, or
            the estimate is that noisy.
        standard_error: [sites, widths], of `value`; NaN where it is not known (a single mixture).
        mixtures: number of mixtures that the mean is taken over.
    """

    method: str
    sites: tuple[str, ...]
    widths: tuple[int, ...]
    value: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    mixtures: int

    def __post_init__(self) -> None:
        """Check the parts against each other, and close the arrays to writing.

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
        """What a value is counted in."""
        return unit_of(self.method)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; numbers keep every bit, and NaN becomes null."""
        return {
            "format": _FORMAT,
            "method": self.method,
            "unit": self.unit,
            "mixtures": self.mixtures,
            "sites": list(self.sites),
            "widths": list(self.widths),
            "value": _rows_to_json(self.value),
            "standard_error": _rows_to_json(self.standard_error),
        }

    @classmethod
    def from_json(cls, value: Any, source: str) -> Self:
        """Validate what `to_json` gave.

        Raises:
            UserError: another format, an unknown method, or parts that are missing or do not fit; names `source`.
        """
        if not isinstance(value, dict) or value.get("format") != _FORMAT or value.keys() != _KEYS:
            raise UserError(f"{source}: not a sensitivity table of format {_FORMAT}; delete it and it is made again")
        try:
            method = value["method"]
            _check(isinstance(method, str) and method in SENSITIVITIES, f"{method!r} is no known method")
            unit = unit_of(method)
            _check(value["unit"] == unit, f"unit is {value['unit']!r}; wanted '{unit}' for method '{method}'")
            return cls(
                method,
                tuple(_typed(value["sites"], str, "sites")),
                tuple(_typed(value["widths"], int, "widths")),
                _rows_from_json(value["value"], "value"),
                _rows_from_json(value["standard_error"], "standard_error"),
                _typed([value["mixtures"]], int, "mixtures")[0],
            )
        except ValueError as error:
            raise UserError(f"{source}: broken sensitivity table ({error}); delete it and it is made again") from None


def over_mixtures(method: str, sites: Sequence[str], widths: Sequence[int], values: ArrayLike) -> SensitivityTable:
    """Make a table from the values of each mixture.

    Args:
        method: how `values` were made.
        sites: names.
        widths: candidate widths.
        values: [mixtures, sites, widths]; NaN where a site cannot take a width.

    Returns:
        The mean over mixtures; its standard error is that of a mean of independent mixtures, NaN for a single one.
    """
    stacked = np.asarray(values, dtype=np.float64)
    count = len(stacked)
    error = stacked.std(axis=0, ddof=1) / math.sqrt(count) if count > 1 else np.full(stacked.shape[1:], np.nan)
    return SensitivityTable(method, tuple(sites), tuple(widths), stacked.mean(axis=0), error, count)


def _check(holds: bool, problem: str) -> None:  # noqa: FBT001 (reads as an assertion)
    if not holds:
        raise ValueError(problem)


def _rows_to_json(array: NDArray[np.float64]) -> list[list[float | None]]:
    return [[None if math.isnan(number) else number for number in row] for row in array.tolist()]


def _rows_from_json(rows: Any, name: str) -> NDArray[np.float64]:
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == len(rows[0]) for row in rows):
        raise ValueError(f"{name} is no list of rows of one length")
    if not all(number is None or (type(number) in (int, float) and math.isfinite(number)) for row in rows for number in row):
        raise ValueError(f"{name} holds something that is neither a finite number nor null")
    return np.array([[math.nan if number is None else number for number in row] for row in rows], dtype=np.float64)


def _typed(items: Any, kind: type, name: str) -> list[Any]:
    if not isinstance(items, list) or not all(type(item) is kind for item in items):
        raise ValueError(f"{name} is {items!r}; wanted {kind.__name__}")
    return items
