"""Candidates as a table for people, as exact JSON or CSV, and as a picture."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hwsearch.errors import UserError
from hwsearch.printable import printable
from hwsearch.results.candidates import BLOCKS_LEFT_OUT, CHANNELS_KEPT, DROP, CandidateTable, read_without_training
from hwsearch.results.query import (
    AVERAGE_BITS,
    MARGINS,
    TEXTS,
    Condition,
    Order,
    column_values,
    named_columns,
    query,
    rows,
    to_csv,
    to_json,
)
from hwsearch.search.objectives import SIZE, in_figures, is_count
from hwsearch.view.front_plot import plot_front
from hwsearch.view.tables import Column, asked_for, fitting, print_table
from hwsearch.view.terminal import tell
from hwsearch.workflow.choose import chosen_candidate
from hwsearch.workflow.runs import Run


def print_front(
    run: Run,
    where: Sequence[Condition],
    order: Order | None,
    output_format: str,
    columns: str | None,
    *,
    everything: bool,
    plot: Path | None,
) -> None:
    """Print the candidates of a run that meet every condition, or the front of these; with `plot` draw both, too.

    Raises:
        UserError: an unknown column, or nothing to draw.
    """
    answer = query(run.table, where, order, only_front=not everything)
    if plot is not None:
        plot_run(run, where, plot)
    print_candidates(answer, where, output_format, columns)
    if plot is not None:
        tell(f"plot: {plot}")


def plot_run(run: Run, where: Sequence[Condition], path: Path) -> None:
    """Draw the candidates that meet every condition, their front, and the candidate that is chosen for export.

    If they are trained, the scores of the same candidates without training are drawn, too, as far as the run has them.

    Raises:
        UserError: an unknown column, nothing to draw, or no place to write.
    """
    shown = query(run.table, where, only_front=False)
    if len(shown) == 0:
        raise UserError(f"{_none_met(run.table, where)}; wanted at least one to draw")
    title = run.workspace.experiment.name + (f", {_in_words(where)}" if where else "")
    plot_front(shown, path, title, chosen_candidate(run), read_without_training(run.workspace.folder, shown))


def print_candidates(
    table: CandidateTable, where: Sequence[Condition], output_format: str = "table", columns: str | None = None
) -> None:
    """Print candidates that meet every condition, as a `table` for people, or as exact `json` or `csv`.

    `columns` are those of the table as the command line names them, by default those that a candidate is chosen by.

    Raises:
        UserError: a column that the table lacks.
    """
    if output_format == "json":
        sys.stdout.write(to_json(table) + "\n")
    elif output_format == "csv":
        sys.stdout.write(printable(to_csv(table), keep="\n"))
    elif len(table):
        shown = front_columns(table, [condition.column for condition in where], columns)
        print_table(shown, f"scored at '{table.fidelity.value}'")
    else:
        tell(_none_met(table, where))


def _none_met(table: CandidateTable, where: Sequence[Condition]) -> str:
    scored = f"candidate scored at '{table.fidelity.value}'"
    return f"no {scored} meets {_in_words(where)}" if where else f"there is no {scored} yet"


def _in_words(where: Sequence[Condition]) -> str:
    return " and ".join(map(str, where))


def front_columns(table: CandidateTable, also: Sequence[str] = (), asked: str | None = None) -> list[Column]:
    """Make the columns that the terminal shows of candidates.

    Those that the command line names as `asked`, or else those that a candidate is chosen by, as far as they fit: quality and
    other objectives first. The columns in `also`, which conditions name, are shown in any case.

    Raises:
        UserError: a column that the table lacks.
    """
    every = named_columns(table)
    for name in also:
        column_values(table, name)
    if asked is not None:
        names = asked_for(asked, every)
        return [_column(table, name, names) for name in names]
    objectives = [objective.column for objective in table.objectives if objective.column in every]
    left_out = [name for name in (BLOCKS_LEFT_OUT, CHANNELS_KEPT) if name in every]
    needed = list(dict.fromkeys(["candidate", *objectives, *also, DROP, SIZE, AVERAGE_BITS, *left_out, "strategy"]))
    order = [*(name for name in every if name in needed), *(name for name in needed if name not in every)]
    columns = [_column(table, name, needed) for name in order if name in every or name in also]
    shown = fitting(columns, needed)
    return [column for column in columns if column in shown or column.name in also]


def _column(table: CandidateTable, name: str, beside: Sequence[str]) -> Column:
    """Make a column with its margin, unless the margin has a column of its own."""
    margin = MARGINS.get(name)
    if margin not in table.columns or margin in beside:
        return Column(name, [_cell(name, value) for (value,) in rows(table, [name])], words=name in TEXTS)
    cells = [f"{_decibels(value)} ± {_decibels(width)}" for value, width in rows(table, [name, margin])]
    return Column(name, cells, note="± 95 %")


def _decibels(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    return in_figures(name, value) if isinstance(value, float) or is_count(name) else str(value)
