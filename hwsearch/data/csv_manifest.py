"""Reader of a CSV manifest with the columns `path`, `speaker` and, optionally, `transcript`."""

from collections.abc import Mapping
from pathlib import Path

from hw_models.reading import no_file
from hwsearch.data.csv_rows import Columns, read_rows, words
from hwsearch.data.source import Source, dealt, root_of
from hwsearch.data.utterance import Utterance
from hwsearch.errors import UserError
from hwsearch.experiment import CorpusConfig

_COLUMNS = Columns(("path", "speaker"), ("transcript",), "a CSV manifest")


def read_corpus(corpus: CorpusConfig, seed: int, _cache: Path) -> Source:
    """Read the utterances that a CSV file lists, in its order, and deal their speakers to splits.

    Paths are absolute, or relative to the CSV file's folder. Transcripts may be empty.

    Raises:
        UserError: the experiment names no root, the file is missing or no CSV, a column is missing or unknown, or a line lacks a
            value, or names a missing file or the same file again. Names the file and the line.
    """
    manifest = root_of(corpus)
    utterances: dict[str, Utterance] = {}
    for line, row in read_rows(manifest, _COLUMNS):
        utterance = _utterance(row, manifest, line)
        if utterance.id in utterances:
            raise UserError(f"{manifest}:{line}: path {row['path']!r} is listed twice")
        utterances[utterance.id] = utterance
    if not utterances:
        raise UserError(f"{manifest}: no utterance in it; wanted a line for each after the header")
    return dealt(utterances.values(), corpus, seed)


def _utterance(row: Mapping[str, str], manifest: Path, line: int) -> Utterance:
    path, speaker = row["path"], row["speaker"]
    if not path or not speaker:
        raise UserError(f"{manifest}:{line}: no {'speaker' if path else 'path'}")
    if (reason := no_file(manifest.parent / path)) is not None:
        raise UserError(f"{manifest}:{line}: {manifest.parent / path}: {reason}; wanted a recording")
    # A file below the manifest's folder has the same name on every machine, however its path is written.
    folder = manifest.parent.absolute()
    name = (Path(path).relative_to(folder) if Path(path).is_relative_to(folder) else Path(path)).as_posix()
    return Utterance(f"csv:{name}", f"csv:{speaker}", manifest.parent, (name,), words(row.get("transcript", "")))
