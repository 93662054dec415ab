"""Queries on a table of candidates: conditions, the front and an order, with answers as JSON or CSV."""

import csv
import io
import json
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hwsearch.errors import UserError
from hwsearch.extensions import QUALITY_METRICS
from hwsearch.results.candidates import BLOCKS_LEFT_OUT, CHANNELS_KEPT, DROP, CandidateTable
from hwsearch.search.objectives import (
    DROP_CI95,
    QUALITY,
    QUALITY_CI95,
    SIZE,
    TRAINING_STEPS,
    UTTERANCES,
    Direction,
    is_count,
)
from hwsearch.search.pareto import non_dominated

_CONDITION = re.compile(r"\s*(?P<column>[^<>=!\s]+)\s*(?P<operator><=|>=|==|!=|=|<|>)\s*(?P<value>[^<>=!\s]+)\s*")
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "==": operator.eq,
    "!=": operator.ne,
}

AVERAGE_BITS = "average_bits"
TEXTS = ("strategy", "fidelity")
"""Columns that hold names."""
LABELS = ("candidate", "strategy", "uniform", "fidelity")
"""Columns that name a candidate."""
MAIN_COLUMNS = (*LABELS, QUALITY, QUALITY_CI95, DROP, DROP_CI95, SIZE, AVERAGE_BITS)
"""Columns that come first, if the table has them."""

_UNDIRECTED = frozenset({*TEXTS, *LABELS, UTTERANCES, TRAINING_STEPS, BLOCKS_LEFT_OUT, CHANNELS_KEPT, "fits"})
"""Columns, without the target in brackets, of which neither more nor less is better."""

MARGINS = {QUALITY: QUALITY_CI95, DROP: DROP_CI95}
"""Columns that the terminal shows with the half width of their confidence interval."""


@dataclass(frozen=True)
class Condition:
    """A bound on a column."""

    column: str
    operator: str
    value: float | str
    """A name if the column is in `TEXTS`, otherwise a number. `uniform` is 0 or 1."""

    def __str__(self) -> str:
        """Write the condition as the command line takes it."""
        value = self.value if isinstance(self.value, str) else f"{self.value:.10g}"
        return f"{self.column}{self.operator}{value}"


@dataclass(frozen=True)
class Order:
    """A column to sort by."""

    column: str
    descending: bool


def parse_condition(text: str) -> Condition:
    """Read a condition such as `size_bytes<=120000`, `latency_ms[ethos-u55-128]<8` or `strategy!=uniform`; `=` means `==`.

    Raises:
        UserError: the text does not have the form column, operator, value; or the value does not suit the column.
    """
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise UserError(f"condition '{text}' is malformed; wanted COLUMN<=NUMBER, with one of <=, >=, <, >, ==, !=")
    column, sign, value = match["column"], match["operator"], match["value"]
    sign = "==" if sign == "=" else sign
    if column in TEXTS:
        if sign not in ("==", "!="):
            raise UserError(f"condition '{text}' uses {sign} on a name; wanted {column}==NAME or {column}!=NAME")
        return Condition(column, sign, value)
    if column == "uniform" and value in ("true", "false"):
        return Condition(column, sign, float(value == "true"))
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise UserError(f"condition '{text}' compares with '{value}'; wanted a number")
    return Condition(column, sign, number)


def parse_order(text: str) -> Order:
    """Read `COLUMN` or `COLUMN:desc`.

    Raises:
        UserError: something other than `desc` follows the colon.
    """
    column, colon, direction = text.partition(":")
    if not column or (colon and direction not in ("asc", "desc")):
        raise UserError(f"order '{text}' is malformed; wanted COLUMN, COLUMN:asc or COLUMN:desc")
    return Order(column, direction == "desc")


def named_columns(table: CandidateTable) -> tuple[str, ...]:
    """List the columns of a table except the widths of the sites: labels, then quality and size, then the others by name."""
    main = [name for name in MAIN_COLUMNS if name in LABELS or name in table.columns]
    return (*main, *sorted(table.columns.keys() - set(main)))


def direction_of(column: str) -> Direction | None:
    """Say which values of a column are better: a metric's own, or the smaller ones of costs; None for counts and intervals."""
    plain = column.partition("[")[0]
    if column in QUALITY_METRICS:
        return Direction(QUALITY_METRICS.load(column).direction)
    undirected = plain in _UNDIRECTED or plain.endswith(("_ci95", "_ci95_db"))
    return None if undirected else Direction.MINIMIZE


def cost_columns(table: CandidateTable) -> tuple[str, ...]:
    """List the columns of a table that are costs: less is better, and they measure no quality."""
    qualities = {*QUALITY_METRICS, DROP}
    return tuple(name for name in named_columns(table) if name not in qualities and direction_of(name) is Direction.MINIMIZE)


def column_names(table: CandidateTable) -> tuple[str, ...]:
    """List all columns of a table, what is kept of every option and the width of every site last."""
    kept = (kept_column(name) for name, _ in table.options)
    return (*named_columns(table), *kept, *map(bits_column, table.sites))


def bits_column(site: str) -> str:
    """Return the name of the column that holds the width of a site."""
    return f"bits[{site}]"


def kept_column(option: str) -> str:
    """Return the name of the column that holds what is kept of an option."""
    return f"kept[{option}]"


def column_values(table: CandidateTable, name: str) -> npt.NDArray[Any]:
    """Return the values [N] of a column.

    Raises:
        UserError: no such column; the message lists the existing ones.
    """
    columns: dict[str, npt.NDArray[Any]] = {
        **{bits_column(site): widths for site, widths in zip(table.sites, table.widths.T, strict=True)},
        **{kept_column(name): kept for (name, _), kept in zip(table.options, table.kept.T, strict=True)},
        **table.columns,
        "candidate": table.candidate,
        "strategy": table.strategy,
        "uniform": table.uniform,
        "fidelity": np.full(len(table), table.fidelity.value),
    }
    if name not in columns:
        others = bits_column("SITE") + (f" or {kept_column('OPTION')}" if table.options else "")
        raise UserError(f"unknown column '{name}'; wanted one of {', '.join(named_columns(table))}, or {others}")
    return columns[name]


def query(
    table: CandidateTable,
    where: Sequence[Condition] = (),
    order: Order | None = None,
    *,
    only_front: bool = True,
) -> CandidateTable:
    """Select the candidates that meet every condition, keep the non-dominated ones among them, and sort.

    A candidate with no value in a column meets no condition on it and comes last. Sorting is stable, by default by size.

    Raises:
        UserError: a column that the table lacks.
    """
    if len(table) == 0:
        return table
    met = np.ones(len(table), dtype=np.bool_)
    for condition in where:
        values = column_values(table, condition.column)
        met &= _OPERATORS[condition.operator](values, condition.value) & ~_missing(values)
    answer = table.take(met)
    if only_front:
        objectives = [column_values(answer, objective.column) for objective in table.objectives]
        directions = [objective.direction for objective in table.objectives]
        answer = answer.take(non_dominated(np.stack(objectives, axis=1), directions))
    order = order or Order(SIZE, descending=False)
    values = column_values(answer, order.column)
    ranks = np.unique(values, return_inverse=True)[1]
    return answer.take(np.lexsort((-ranks if order.descending else ranks, _missing(values))))


def to_json(table: CandidateTable) -> str:
    """Write a JSON list with one object per candidate. A missing value is null. Numbers are exact."""
    names = column_names(table)
    return json.dumps([dict(zip(names, row, strict=True)) for row in rows(table, names)], indent=2)


def to_csv(table: CandidateTable) -> str:
    """Write CSV with a header. A missing value is empty. Numbers are exact."""
    names = column_names(table)
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([names, *rows(table, names)])
    return stream.getvalue()


def _missing(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Mark [N] the rows in which a column has no value."""
    missing: npt.NDArray[np.bool_] = np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), dtype=np.bool_)
    return missing


def rows(table: CandidateTable, names: Sequence[str]) -> list[tuple[Any, ...]]:
    """Convert a table to rows of plain Python values, with None for NaN and integers for whole numbers."""
    return list(zip(*(_plain(name, column_values(table, name).tolist()) for name in names), strict=True))


def _plain(name: str, values: list[Any]) -> list[Any]:
    plain = [None if isinstance(value, float) and math.isnan(value) else value for value in values]
    return (
        [int(value) if isinstance(value, float) and value.is_integer() else value for value in plain] if is_count(name) else plain
    )
