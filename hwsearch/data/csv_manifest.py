"""Reader of a CSV manifest with the columns `path`, `speaker` and, if wanted, `transcript`."""

import csv
import io
from pathlib import Path

from hw_models.reading import Unreadable, read_text
from hwsearch.data.source import Source, dealt, root_of
from hwsearch.data.utterance import Utterance
from hwsearch.errors import UserError
from hwsearch.experiment import CorpusConfig

MANIFEST_BYTES = 256 * 2**20
"""The largest manifest that is read; one of a million utterances takes half of it."""

_WANTED = ("path", "speaker")
_OPTIONAL = ("transcript",)


def read_corpus(corpus: CorpusConfig, seed: int, cache: Path) -> Source:
    """The corpus of a CSV manifest, its speakers dealt to splits.

    Raises:
        UserError: as `read_csv_manifest`, or no `root`.
    """
    del cache
    return dealt(read_csv_manifest(root_of(corpus)), corpus, seed)


def read_csv_manifest(manifest: Path) -> tuple[Utterance, ...]:
    """Read the utterances that a CSV file lists, in its order.

    Paths are absolute, or relative to the CSV file's folder. An empty transcript is none.

    Raises:
        UserError: the file is missing or no CSV, a column is missing or unknown, or a line lacks a value,
            names a file that is not there or repeats one; names the file and the line.
    """
    try:
        reader = csv.DictReader(io.StringIO(read_text(manifest, MANIFEST_BYTES), newline=""), strict=True)
        _check_columns(manifest, list(reader.fieldnames or []))
        utterances: dict[str, Utterance] = {}
        for row in reader:
            utterance = _utterance(row, manifest, reader.line_num)
            if utterance.id in utterances:
                raise UserError(f"{manifest}:{reader.line_num}: path {row['path']!r} is listed twice")
            utterances[utterance.id] = utterance
    except Unreadable as error:
        raise UserError(f"{manifest}: {error}; wanted a CSV manifest of path,speaker[,transcript]") from None
    except csv.Error as error:
        raise UserError(f"{manifest}: not readable as CSV ({error}); wanted path,speaker[,transcript]") from None
    if not utterances:
        raise UserError(f"{manifest}: no utterance in it; wanted a line for each after the header")
    return tuple(utterances.values())


def _check_columns(manifest: Path, columns: list[str]) -> None:
    for column in _WANTED:
        if column not in columns:
            raise UserError(f"{manifest}:1: no column '{column}'; wanted path,speaker[,transcript]")
    for column in columns:
        if column not in (*_WANTED, *_OPTIONAL):
            raise UserError(f"{manifest}:1: unknown column {column!r}; wanted path,speaker[,transcript]")
        if columns.count(column) > 1:
            raise UserError(f"{manifest}:1: column '{column}' stands twice")


def _utterance(row: dict[str | None, str | None], manifest: Path, line: int) -> Utterance:
    if None in row:
        raise UserError(f"{manifest}:{line}: more values than columns")
    path, speaker = ((row[column] or "").strip() for column in _WANTED)
    if not path or not speaker:
        raise UserError(f"{manifest}:{line}: no {'speaker' if path else 'path'}")
    if not _is_file(manifest.parent / path):
        raise UserError(f"{manifest}:{line}: {manifest.parent / path} is not there, or no file")
    name = _name(Path(path), manifest.parent.absolute())
    words = " ".join((row.get("transcript") or "").lower().split())
    return Utterance(f"csv:{name}", f"csv:{speaker}", manifest.parent, (name,), words or None)


def _name(path: Path, folder: Path) -> str:
    """The path from the manifest's folder where the file lies below it: the same on every machine, however it is written."""
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or one with a NUL
        return False
