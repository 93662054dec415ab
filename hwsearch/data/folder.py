"""Reader of a folder with one folder of WAV or FLAC files for each speaker, at any depth below it."""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from hw_models.reading import Unreadable, read_text
from hwsearch.data.source import Source, dealt_to_all, root_of
from hwsearch.data.utterance import Utterance
from hwsearch.errors import UserError
from hwsearch.experiment import CorpusConfig

PREFIX = "folder:"

SOUNDS = (".wav", ".flac")
"""Suffixes of the files that are read, in either case."""

_WORDS = (".txt", ".lab")
"""Suffixes of transcripts, the preferred one first."""

_WORDS_BYTES = 2**16
"""Size limit of a transcript."""

_WANTED = "wanted a folder of WAV or FLAC files for each speaker"


def read_corpus(corpus: CorpusConfig, seed: int, _cache: Path) -> Source:
    """Find the recordings below each speaker's folder, and deal the speakers to splits.

    The name of a folder in the corpus's root is the name of a speaker. Names that begin with a dot are skipped, and so are other
    files. A text file of the same name beside a recording (`.txt` or `.lab`) holds its words.

    Raises:
        UserError: the experiment names no root, there is no such folder, a recording lies outside all speakers' folders, a name
            is not UTF-8, a transcript cannot be read, there is no recording, or there are fewer speakers than splits.
    """
    root = root_of(corpus)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; {_WANTED}")
    channel = 0 if corpus.channel is None else corpus.channel
    found = [utterance for speaker in _listed(root) for utterance in _spoken(root, speaker, channel)]
    if not found:
        raise UserError(f"{root}: no WAV or FLAC file in the folders in it; {_WANTED}")
    return dealt_to_all(sorted(found, key=lambda utterance: utterance.id), corpus, seed)


def sounds_below(folder: Path) -> Iterator[Path]:
    """Find the WAV and FLAC files in a folder, at any depth, without those whose names or folders begin with a dot.

    Links are followed, but no folder is read twice, because links may form a circle.

    Raises:
        UserError: a folder cannot be read, or a name is not UTF-8.
    """
    return _sounds_below(folder, set())


def _sounds_below(folder: Path, seen: set[Path]) -> Iterator[Path]:
    if (place := folder.resolve()) in seen:
        return
    seen.add(place)
    for path in _listed(folder):
        if path.is_dir():
            yield from _sounds_below(path, seen)
        elif path.suffix.lower() in SOUNDS:
            yield path


def stable_name(path: Path, root: Path) -> str:
    """The name of a file below a root, the same on all machines: file systems write letters such as umlauts differently."""
    return unicodedata.normalize("NFC", path.relative_to(root).as_posix())


def _spoken(root: Path, speaker: Path, channel: int) -> Iterator[Utterance]:
    if not speaker.is_dir():
        if speaker.suffix.lower() in SOUNDS:
            raise UserError(f"{speaker}: lies in no speaker's folder; {_WANTED}")
        return
    name = PREFIX + stable_name(speaker, root)
    for path in sounds_below(speaker):
        relative = path.relative_to(root).as_posix()
        yield Utterance(PREFIX + stable_name(path, root), name, root, (relative,), _words(path), channel, by_content=True)


def _listed(folder: Path) -> list[Path]:
    """What a folder holds, without hidden names, in the order of names."""
    try:
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); {_WANTED}") from None
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(f"{folder}: holds the name {os.fsencode(name)!r}, which is not UTF-8; wanted another name") from None
    return [folder / name for name in names]


def _words(path: Path) -> str | None:
    """The words of the text file beside a recording, or None without one."""
    for suffix in _WORDS:
        beside = path.with_suffix(suffix)
        if os.path.lexists(beside):
            try:
                return " ".join(read_text(beside, _WORDS_BYTES).lower().split()) or None
            except Unreadable as error:
                raise UserError(f"{beside}: {error}; wanted the words of {path.name}") from None
    return None
