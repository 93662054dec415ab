"""Candidates as the data of a page."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from hwsearch.experiment import Fidelity
from hwsearch.extensions import QUALITY_METRICS
from hwsearch.results.candidates import BLOCKS_LEFT_OUT, CHANNELS_KEPT, DROP, CandidateTable
from hwsearch.results.query import AVERAGE_BITS, LABELS, direction_of, named_columns, rows
from hwsearch.search.objectives import QUALITY, SIZE, is_count
from hwsearch.separator.allocation import is_weight
from hwsearch.view.sensitivity_plot import short_names

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
"""A bit-width is one digit of this base."""


def candidate_data(tables: Sequence[CandidateTable], series: Sequence[Mapping[str, Any]], *, configured: bool) -> dict[str, Any]:
    """Convert tables of candidates to the data that every page has.

    Args:
        tables: one for each series.
        series: name and number of the style of each.
        configured: whether to give the widths of the sites, which must be the same sites in all tables.
    """
    names = list(dict.fromkeys(name for table in reversed(tables) for name in named_columns(table) if name not in LABELS))
    strategies = sorted({name for table in tables for name in table.strategy.tolist()})
    lengths = [len(table) for table in tables]
    fidelities = list(dict.fromkeys(table.fidelity.value for table in tables))
    found: dict[str, Any] = {
        "series": list(series),
        "rows": {
            "series": np.repeat(np.arange(len(tables)), lengths).tolist(),
            "candidate": np.concatenate([table.candidate for table in tables]).tolist(),
            "strategy": [strategies.index(name) for table in tables for name in table.strategy.tolist()],
            "fidelity": np.repeat([fidelities.index(table.fidelity.value) for table in tables], lengths).tolist(),
            "uniform": [int(uniform) for table in tables for uniform in table.uniform],
        },
        "strategies": strategies,
        "fidelities": fidelities,
        "columns": [{"name": name, "direction": direction_of(name), "count": is_count(name)} for name in names],
        "values": {name: list(chain.from_iterable(_values(table, name) for table in tables)) for name in names},
        "objectives": [{"column": each.column, "direction": each.direction.value} for each in tables[-1].objectives],
        "references": [{name: value for name, value in table.reference.items() if np.isfinite(value)} for table in tables],
        "axes": {"x": cost_column(tables[-1]), "y": QUALITY},
        "sites": [],
        "options": [],
        "configurations": [],
    }
    if configured:
        found |= _configurations(tables)
    return found


def cost_column(table: CandidateTable) -> str:
    """Return the cost that a front is drawn against: the size, or the first objective that is a cost if size is none."""
    costs = [objective.column for objective in table.objectives if objective.column not in QUALITY_METRICS]
    return SIZE if SIZE in costs or not costs else costs[0]


def shown_columns(table: CandidateTable, *, several: bool) -> list[str]:
    """List the columns that the table of a page shows at first; with several fidelities also these."""
    objectives = [objective.column for objective in table.objectives]
    names = ["candidate", *(["fidelity"] if several else []), *objectives, DROP, SIZE, AVERAGE_BITS]
    return list(dict.fromkeys([*names, BLOCKS_LEFT_OUT, CHANNELS_KEPT, "uniform", "strategy"]))


def fidelity_series(table: CandidateTable) -> dict[str, Any]:
    """Name a series after the fidelity of its candidates. A fidelity always has the same style."""
    return {"name": table.fidelity.value, "style": list(Fidelity).index(table.fidelity)}


def _configurations(tables: Sequence[CandidateTable]) -> dict[str, Any]:
    """Give sites and options, and the configuration of each candidate once."""
    first = tables[0]
    numbers: dict[int, int] = {}
    found: list[dict[str, Any]] = []
    places = []
    for table in tables:
        for row, number in enumerate(table.candidate.tolist()):
            if number not in numbers:
                numbers[number] = len(found)
                bits = "".join(_DIGITS[width] for width in table.widths[row].tolist())
                found.append({"bits": bits, "kept": table.kept[row].tolist()})
            places.append(numbers[number])
    short = short_names(first.sites)
    return {
        "configurations": found,
        "configuration": places,
        "sites": [
            {"name": site, "short": name, "weight": is_weight(site), "fixed": site in first.fixed}
            for site, name in zip(first.sites, short, strict=True)
        ],
        "options": [{"name": name, "whole": whole} for name, whole in first.options],
    }


def _values(table: CandidateTable, name: str) -> list[Any]:
    return [value for (value,) in rows(table, [name])] if name in table.columns else [None] * len(table)
