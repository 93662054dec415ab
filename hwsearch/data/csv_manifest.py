"""Reader of a CSV manifest with the columns `path`, `speaker` and, optionally, `transcript`."""

import csv
import io
from pathlib import Path

from hw_models.reading import Unreadable, no_file, read_text
from hwsearch.data.source import Source, dealt, root_of
from hwsearch.data.utterance import Utterance
from hwsearch.errors import UserError
from hwsearch.experiment import CorpusConfig

MANIFEST_BYTES = 256 * 2**20
"""Size limit of a manifest: twice the size with a million utterances."""

_WANTED = ("path", "speaker")
_OPTIONAL = ("transcript",)


def read_corpus(corpus: CorpusConfig, seed: int, _cache: Path) -> Source:
    """Read the utterances that a CSV file lists, in its order, and deal their speakers to splits.

    Paths are absolute, or relative to the CSV file's folder. Transcripts may be empty.

    Raises:
        UserError: the experiment names no root, the file is missing or no CSV, a column is missing or unknown, or a line lacks a
            value, or names a missing file or the same file again. Names the file and the line.
    """
    manifest = root_of(corpus)
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
    return dealt(utterances.values(), corpus, seed)


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
    if (reason := no_file(manifest.parent / path)) is not None:
        raise UserError(f"{manifest}:{line}: {manifest.parent / path}: {reason}; wanted a recording")
    # A file below the manifest's folder has the same name on every machine, however its path is written.
    folder = manifest.parent.absolute()
    name = (Path(path).relative_to(folder) if Path(path).is_relative_to(folder) else Path(path)).as_posix()
    words = " ".join((row.get("transcript") or "").lower().split())
    return Utterance(f"csv:{name}", f"csv:{speaker}", manifest.parent, (name,), words or None)
