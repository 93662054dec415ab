"""Candidates as a table for people, as exact JSON or CSV, and as a picture."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from hwsearch.errors import UserError
from hwsearch.front.candidates import CandidateTable
from hwsearch.front.query import (
    MAIN_COLUMNS,
    MARGINS,
    TEXTS,
    Condition,
    Order,
    column_names,
    column_values,
    query,
    rows,
    to_csv,
    to_json,
)
from hwsearch.printable import printable
from hwsearch.search.objectives import in_figures, is_count
from hwsearch.view.front_plot import plot_front
from hwsearch.view.terminal import tell, wide
from hwsearch.workflow.choose import chosen_candidate
from hwsearch.workflow.runs import Run


def print_front(
    run: Run, where: Sequence[Condition], order: Order | None, output_format: str, *, everything: bool, plot: Path | None
) -> None:
    """The candidates of a run that meet every condition, or the front of these; with `plot` both as a picture, too.

    Raises:
        UserError: an unknown column, or nothing to draw.
    """
    answer = query(run.table, where, order, only_front=not everything)
    if plot is not None:
        plot_run(run, where, plot)
    print_candidates(answer, output_format, where)
    if plot is not None:
        tell(f"plot: {plot}")


def plot_run(run: Run, where: Sequence[Condition], path: Path) -> None:
    """Draw the candidates that meet every condition, their front, and the candidate that is chosen for export.

    Raises:
        UserError: an unknown column, nothing to draw, or no place to write.
    """
    shown = query(run.table, where, only_front=False)
    if len(shown) == 0:
        raise UserError(f"{_none_met(run.table, where)}; wanted at least one to draw")
    title = run.workspace.experiment.name + (f", {_in_words(where)}" if where else "")
    plot_front(shown, path, title, chosen_candidate(run))


def print_candidates(table: CandidateTable, output_format: str, where: Sequence[Condition]) -> None:
    """Candidates that meet every condition, as a table for people, or as exact JSON or CSV."""
    if output_format == "json":
        sys.stdout.write(to_json(table) + "\n")
    elif output_format == "csv":
        sys.stdout.write(printable(to_csv(table), keep="\n"))
    elif len(table):
        wide().print(to_table(table, [condition.column for condition in where]))
    else:
        tell(_none_met(table, where))


def _none_met(table: CandidateTable, where: Sequence[Condition]) -> str:
    scored = f"candidate scored at '{table.fidelity.value}'"
    return f"no {scored} meets {_in_words(where)}" if where else f"there is no {scored} yet"


def _in_words(where: Sequence[Condition]) -> str:
    return " and ".join(map(str, where))


def to_table(table: CandidateTable, also: Sequence[str] = ()) -> Table:
    """A table for the terminal: the main columns, every target's latency, and the columns named in `also`.

    The title says at which fidelity the candidates were scored.

    Raises:
        UserError: a column in `also` that the table lacks.
    """
    every = column_names(table)
    for name in also:
        column_values(table, name)
    margins = {value: margin for value, margin in MARGINS.items() if {value, margin} <= table.columns.keys()}
    shown = [
        name
        for name in every
        if name not in margins.values()
        and name != "fidelity"
        and (name in MAIN_COLUMNS or name in also or name.startswith("latency_ms["))
    ]
    answer = Table(title=f"scored at '{table.fidelity.value}'", title_justify="left")
    for name in shown:
        heading = name.replace("_db", "\n_db").replace("[", "\n[") + (" ± 95 %" if name in margins else "")
        answer.add_column(escape(heading), justify="left" if name in TEXTS else "right")
    cells = {name: [_cell(name, value) for (value,) in rows(table, [name])] for name in {*shown, *margins.values()}}
    for row in range(len(table)):
        answer.add_row(*(cells[name][row] + (f" ± {cells[margins[name]][row]}" if name in margins else "") for name in shown))
    return answer


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    return in_figures(name, value) if isinstance(value, float) or is_count(name) else escape(str(value))
