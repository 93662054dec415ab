"""Reader of folders laid out as LibriSpeech: `<speaker>-<chapter>-<utterance>.flac` (or `.wav`), at any depth."""

import re
from pathlib import Path

from hw_models.reading import Unreadable, read_text
from hwsearch.data.source import Source, dealt, root_of
from hwsearch.data.utterance import Utterance
from hwsearch.errors import UserError
from hwsearch.experiment import CorpusConfig

TRANSCRIPTS_BYTES = 256 * 2**20
"""Size limit of a file of transcripts: twice the size with a million utterances."""

_NAME = re.compile(r"([^-]+)-([^-]+)-([^-]+)\.(?:flac|wav)")


def read_corpus(corpus: CorpusConfig, seed: int, _cache: Path) -> Source:
    """Find the utterances below the corpus's root, in order of their names, and deal their speakers to splits.

    Transcripts come from files named `*.trans.txt` or `transcripts.txt`, in lines of `<utterance id> <words>`.

    Raises:
        UserError: the experiment names no root, there is no such folder, no utterance in it, an utterance found twice, or a
            broken transcript line.
    """
    root = root_of(corpus)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; wanted a LibriSpeech-style corpus")
    transcripts = _transcripts(root)
    found: dict[str, Utterance] = {}
    for path in sorted(root.rglob("*")):
        name = _NAME.fullmatch(path.name)
        if name is None or not path.is_file():
            continue
        if path.stem in found:
            raise UserError(f"{path}: utterance {path.stem} is already at {root / found[path.stem].paths[0]}")
        found[path.stem] = Utterance(
            id=f"librispeech:{path.stem}",
            speaker=f"librispeech:{name[1]}",
            root=root,
            paths=(path.relative_to(root).as_posix(),),
            transcript=transcripts.get(path.stem),
        )
    if not found:
        raise UserError(f"{root}: no <speaker>-<chapter>-<utterance>.flac or .wav; wanted a LibriSpeech-style corpus")
    return dealt((found[stem] for stem in sorted(found)), corpus, seed)


def _transcripts(root: Path) -> dict[str, str]:
    words: dict[str, str] = {}
    for path in sorted([*root.rglob("*.trans.txt"), *root.rglob("transcripts.txt")]):
        try:
            lines = read_text(path, TRANSCRIPTS_BYTES).splitlines()
        except Unreadable as error:
            raise UserError(f"{path}: {error}; wanted transcripts") from None
        for number, line in enumerate(lines, start=1):
            match line.split():
                case []:
                    continue
                case [name, *rest] if rest:
                    words[name] = " ".join(rest).lower()
                case _:
                    raise UserError(f"{path}:{number}: no words after the utterance id {line.strip()!r}")
    return words
