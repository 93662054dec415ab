"""Tables for the terminal. Of many columns, those needed most are shown, as far as they fit. Cells are never cut."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from hwsearch.view.terminal import SafeConsole, output, say

WIDTH = 80
"""Characters of a line."""

NAMES = 30
"""Characters of a line that names may take."""

GAP = 2
"""Spaces between two columns of a table."""

EVERY = "all"
"""The word for every column on the command line."""


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    cells: Sequence[str]
    words: bool = False
    """Whether it holds words, which begin on the left. Numbers end on the right."""
    note: str = ""
    """A second heading."""

    @property
    def heading(self) -> str:
        """Name and note. The name is broken after `_` and `-` and before `[` if the cells are narrower."""
        parts = [part for part in re.split(r"(?<=[_-])|(?=\[)", self.name) if part]
        width = max(map(cell_len, [*self.cells, *parts]))
        lines = [""]
        for part in parts:
            if lines[-1] and cell_len(lines[-1] + part) > width:
                lines.append("")
            lines[-1] += part
        return "\n".join([*lines, self.note] if self.note else lines)

    @property
    def width(self) -> int:
        """Characters of a line that it takes."""
        return max(map(cell_len, [*self.cells, *self.heading.splitlines()]))


def fitting(columns: Sequence[Column], by_need: Sequence[str]) -> list[Column]:
    """Return the columns that fit `WIDTH`, tried in the order of `by_need`. Their own order stays.

    The first of `by_need` holds names. Names longer than `NAMES` make the table wider and push no column out.
    """
    by_name = {column.name: column for column in columns}
    shown = [by_name[by_need[0]]]
    limit = WIDTH + max(0, shown[0].width - NAMES)
    for name in by_need[1:]:
        if name in by_name and table_width([*shown, by_name[name]]) <= limit:
            shown.append(by_name[name])
    return [column for column in columns if column in shown]


def asked_for(text: str, every: Sequence[str]) -> list[str]:
    """Return the columns that a command line names, separated by commas, or all of them."""
    return list(every) if text == EVERY else list(dict.fromkeys(text.split(",")))


def table_width(columns: Sequence[Column]) -> int:
    """Return the characters of a line that a table takes."""
    return sum(column.width for column in columns) + GAP * (len(columns) - 1)


def print_table(columns: Sequence[Column], title: str) -> None:
    """Print a title and a table. A narrow terminal wraps or scrolls, a pipe gets whole lines."""
    say(title)
    SafeConsole(width=max(output.width, table_width(columns))).print(to_rich(columns))


def to_rich(columns: Sequence[Column]) -> Table:
    """Make a table of Rich. Nothing in it is markup."""
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    for column in columns:
        shown.add_column(Text(column.heading), justify="left" if column.words else "right", no_wrap=True)
    for row in zip(*(column.cells for column in columns), strict=True):
        shown.add_row(*map(Text, row))
    return shown
