"""Readers of lists of mixtures in CSV: this project's own columns, and those of LibriMix."""

import math
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from hwsearch.data.arrays import microphone_array
from hwsearch.data.csv_rows import Columns, read_rows, words
from hwsearch.data.recorded import RecordedList, RecordedMixture
from hwsearch.errors import UserError
from hwsearch.experiment import DataConfig, Split

_COLUMNS = Columns(("mixture", "target", "doa_deg"), ("transcript", "speaker", "split"), "a CSV list of mixtures")

_LIBRIMIX = Columns(("mixture_ID", "mixture_path", "source_1_path", "source_2_path"), (), "LibriMix's CSV", closed=False)

_LIBRIMIX_SPLITS = {"train": Split.TRAIN, "dev": Split.VALIDATION, "test": Split.TEST}
"""Parts of LibriMix, as they stand in the names of its files."""


def read_csv(path: Path, data: DataConfig) -> RecordedList:
    """Read a CSV file with the columns `mixture`, `target` and `doa_deg`, and, if wanted, `transcript`, `speaker` and `split`.

    Paths are absolute, or relative to the CSV file's folder. Without a split, a mixture belongs to the test split. A direction
    may be empty.

    Raises:
        UserError: the file is missing or no CSV, a column is missing or unknown, or a line has no mixture, no target, or an
            unknown split, or its direction is no number in the range of the array. Names the file and the line.
    """
    rows = read_rows(path, _COLUMNS)
    return RecordedList(tuple(_mixture(row, path, f"{path}:{line}", data) for line, row in rows))


def _mixture(row: Mapping[str, str], path: Path, where: str, data: DataConfig) -> RecordedMixture:
    if not row["mixture"]:
        raise UserError(f"{where}: no mixture")
    if not row["target"]:
        raise UserError(
            f"{where}: no target; 'hwsearch separate' needs none, but to score and to train on a mixture, its target is wanted"
        )
    split = row.get("split") or Split.TEST.value
    if split not in list(Split):
        raise UserError(f"{where}: split is {split!r}; wanted 'train', 'validation' or 'test'")
    return RecordedMixture(
        where,
        Split(split),
        path.parent / row["mixture"],
        (path.parent / row["target"],),
        read_direction(row["doa_deg"], where, data) if row["doa_deg"] else None,
        stable_path(row["target"], path.parent),
        row.get("speaker") or None,
        words(row.get("transcript", "")),
    )


def stable_path(text: str, folder: Path) -> str:
    """A path in a list, as a name that is the same on all machines if the file lies below the list's folder."""
    path = Path(text)
    return unicodedata.normalize("NFC", (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix())


def read_direction(text: str, where: str, data: DataConfig) -> float:
    """Read a direction in degrees.

    Raises:
        UserError: it is no number, or not in the range of the array.
    """
    array = microphone_array(data.array)
    try:
        doa_deg = float(text)
    except ValueError:
        doa_deg = math.nan
    if not 0 <= doa_deg <= array.max_doa_deg:
        raise UserError(
            f"{where}: doa_deg is {text!r}; wanted 0 to {array.max_doa_deg:g} degrees, as data.array {array} counts them"
        )
    return doa_deg


def read_librimix(path: Path, data: DataConfig) -> RecordedList:
    """Read a CSV file that LibriMix has written, such as `mixture_test_mix_clean.csv`. Each of its two speakers is a target once.

    Raises:
        UserError: the file is missing or no CSV, its name holds none of `train`, `dev` and `test`, a column is missing, or there
            are three speakers.
    """
    del data
    named = [split for part, split in _LIBRIMIX_SPLITS.items() if part in path.name]
    if len(named) != 1:
        raise UserError(f"{path}: the name holds not one of 'train', 'dev' and 'test'; wanted LibriMix's own name, which does")
    found: list[RecordedMixture] = []
    for line, row in read_rows(path, _LIBRIMIX):
        if "source_3_path" in row:
            raise UserError(f"{path}:1: column 'source_3_path'; wanted mixtures of two speakers")
        # A name joins those of the two utterances, which begin with the speaker.
        utterances = row["mixture_ID"].split("_")
        for number, utterance in enumerate(utterances[:2] if len(utterances) == 2 else ("", ""), start=1):
            speaker = utterance.partition("-")[0] or None
            mixture, target = (path.parent / row[name] for name in ("mixture_path", f"source_{number}_path"))
            name = f"{row['mixture_ID']}/{number}"
            found.append(RecordedMixture(f"{path}:{line}", named[0], mixture, (target,), None, name, speaker, None))
    return RecordedList(tuple(found))
