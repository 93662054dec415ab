"""Tables for the terminal: as many columns as fit 80, those that are needed most; what is asked for is never cut."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from hwsearch.view.terminal import SafeConsole, output, say

WIDTH = 80
"""Columns of a usual terminal."""

NAMES = 30
"""Columns that names may take of it."""

GAP = 2
"""Spaces between two columns of a table."""

EVERY = "all"
"""What stands for every column on the command line."""


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
        """Name and note, broken behind `_` and `-` and before `[` where the cells are narrower."""
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
        """Columns of the terminal that it takes."""
        return max(map(cell_len, [*self.cells, *self.heading.splitlines()]))


def fitting(columns: Sequence[Column], by_need: Sequence[str]) -> list[Column]:
    """The columns that fit `WIDTH`, tried in the order of `by_need`; their own order stays.

    The first of `by_need` holds names. Those longer than `NAMES` make the table wider instead of pushing others out.
    """
    by_name = {column.name: column for column in columns}
    shown = [by_name[by_need[0]]]
    limit = WIDTH + max(0, shown[0].width - NAMES)
    for name in by_need[1:]:
        if name in by_name and table_width([*shown, by_name[name]]) <= limit:
            shown.append(by_name[name])
    return [column for column in columns if column in shown]


def asked_for(text: str, every: Sequence[str]) -> list[str]:
    """The columns that a command line names, with commas between, or all of them."""
    return list(every) if text == EVERY else list(dict.fromkeys(text.split(",")))


def table_width(columns: Sequence[Column]) -> int:
    """Columns of the terminal that a table takes."""
    return sum(column.width for column in columns) + GAP * (len(columns) - 1)


def print_table(columns: Sequence[Column], title: str) -> None:
    """Print a title and, below it, columns side by side. A narrow terminal wraps or scrolls, a pipe gets whole lines."""
    say(title)
    SafeConsole(width=max(output.width, table_width(columns))).print(to_rich(columns))


def to_rich(columns: Sequence[Column]) -> Table:
    """Columns as Rich draws them; nothing in them is markup."""
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    for column in columns:
        shown.add_column(Text(column.heading), justify="left" if column.words else "right", no_wrap=True)
    for row in zip(*(column.cells for column in columns), strict=True):
        shown.add_row(*map(Text, row))
    return shown
