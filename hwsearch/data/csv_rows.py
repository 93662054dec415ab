"""Rows of CSV files, with their columns checked."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hw_models.reading import Unreadable, read_text
from hwsearch.errors import UserError

CSV_BYTES = 256 * 2**20
"""Size limit of a CSV file: twice the size with a million lines of the usual length."""


@dataclass(frozen=True)
class Columns:
    """The columns of a CSV file.

    Attributes:
        wanted: columns that must be there.
        optional: columns that may be there.
        what: name of the file in error messages.
        closed: whether any other column is an error.
    """

    wanted: Sequence[str]
    optional: Sequence[str] = ()
    what: str = "a CSV file"
    closed: bool = True

    def __str__(self) -> str:
        """The columns as a header, with the optional ones in brackets."""
        return ",".join(self.wanted) + "".join(f"[,{name}]" for name in self.optional)

    def check(self, path: Path, found: Sequence[str]) -> None:
        """Raise `UserError` for a wanted column that is missing, an unknown one, or one that stands twice."""
        for column in self.wanted:
            if column not in found:
                raise UserError(f"{path}:1: no column '{column}'; wanted {self}")
        for column in found:
            if self.closed and column not in (*self.wanted, *self.optional):
                raise UserError(f"{path}:1: unknown column {column!r}; wanted {self}")
            if found.count(column) > 1:
                raise UserError(f"{path}:1: column '{column}' stands twice")


def read_rows(path: Path, columns: Columns) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Read the rows of a CSV file.

    Yields:
        The number of each line, and its values by column, without spaces around them; a value that is missing is empty.

    Raises:
        UserError: the file is missing or no CSV, its columns are wrong, or a line has more values than columns.
    """
    try:
        reader = csv.DictReader(io.StringIO(read_text(path, CSV_BYTES), newline=""), strict=True)
        columns.check(path, list(reader.fieldnames or []))
        for row in reader:
            if None in row:
                raise UserError(f"{path}:{reader.line_num}: more values than columns")
            yield reader.line_num, {name: (value or "").strip() for name, value in row.items()}
    except Unreadable as error:
        raise UserError(f"{path}: {error}; wanted {columns.what} of {columns}") from None
    except csv.Error as error:
        raise UserError(f"{path}: not readable as CSV ({error}); wanted {columns}") from None


def words(text: str) -> str | None:
    """A transcript in lower case with single spaces; None if it is empty."""
    return " ".join(text.lower().split()) or None
