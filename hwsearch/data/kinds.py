"""The kind of a corpus, found by looking at it."""

import csv
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from hw_models.reading import Unreadable, read_text
from hwsearch.data.csv_rows import CSV_BYTES
from hwsearch.errors import UserError
from hwsearch.extensions import CORPORA

_MOST_LOOKED_AT = 100_000
"""Files of a folder that are looked at."""

_SOUNDS = (".wav", ".flac")


def kind_of(place: Path) -> str:
    """Return the `kind` under which an experiment file lists a corpus.

    Args:
        place: a folder of recordings, or a file that lists them.

    Raises:
        UserError: there is nothing at the place, or nothing that the project reads.
    """
    if not place.exists():
        raise UserError(f"{place}: no such folder or file; wanted a corpus of speech")
    found = next((kind for kind, fits in _KINDS.items() if kind in CORPORA and fits(place)), None)
    if found is not None:
        return found
    readable = "; or ".join(f"'{kind}', {CORPORA.entries[kind].says}" for kind in _KINDS if kind in CORPORA)
    raise UserError(f"{place}: no speech found in a form that is read; wanted one of these: {readable.replace('`', '')}")


def _is_csv(place: Path) -> bool:
    """Whether it is a CSV file with a column for paths and one for speakers."""
    if place.suffix.lower() != ".csv" or not place.is_file():
        return False
    try:
        columns = next(csv.reader(read_text(place, CSV_BYTES).splitlines()), [])
    except (Unreadable, csv.Error):
        return False
    return {"path", "speaker"} <= set(columns)


def _is_lhotse(place: Path) -> bool:
    """Whether it holds manifests of lhotse or of Kaldi, or is a manifest."""
    name = r".*recordings.*\.jsonl(\.gz)?"
    if place.is_file():
        return re.fullmatch(name, place.name) is not None
    return (place / "wav.scp").is_file() or any(re.fullmatch(name, path.name) for path in place.iterdir())


def _is_fsdd(place: Path) -> bool:
    return place.is_dir() and any(re.fullmatch(r"\d_[A-Za-z0-9]+_\d+\.wav", path.name) for path in place.iterdir())


def _is_librispeech(place: Path) -> bool:
    """Whether utterances have four digits behind speaker and chapter, unlike dates."""
    return any(re.fullmatch(r"[^-]+-[^-]+-\d{4}", path.stem) for path in _sounds(place))


def _is_folder(place: Path) -> bool:
    """Whether its folders hold recordings: each is taken for a speaker."""
    return any(path.parent != place for path in _sounds(place))


def _sounds(place: Path) -> Iterator[Path]:
    found = islice(place.rglob("*"), _MOST_LOOKED_AT) if place.is_dir() else iter(())
    return (path for path in found if path.suffix.lower() in _SOUNDS)


_KINDS: dict[str, Callable[[Path], bool]] = {
    "csv": _is_csv,
    "lhotse": _is_lhotse,
    "fsdd": _is_fsdd,
    "librispeech": _is_librispeech,
    "folder": _is_folder,
}
"""How each kind looks, in the order in which they are tried. A kind that is not registered is passed over."""
