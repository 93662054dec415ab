"""Reader of the Free Spoken Digit Dataset: `{digit}_{speaker}_{take}.wav`, joined to strings of 3 to 6
digits.

The corpus has six speakers, too few to deal in most shares. Where every named split would get two speakers
or more, speakers are dealt as in any corpus. Otherwise all speakers speak in every named split, and splits
differ by their takes (no recording serves in two splits; takes 0 to 4 are the corpus's own test split) and
by their strings (no string is said in two splits): then "unseen" means unseen recordings and sentences of
known speakers.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hwsearch.data.seeding import generator
from hwsearch.data.sentences import DIGITS, digits_in_words, draw_digits
from hwsearch.data.source import Source, root_of
from hwsearch.data.splits import deal_speakers, sentence_split
from hwsearch.data.utterance import Utterance
from hwsearch.errors import UserError
from hwsearch.experiment import CorpusConfig, Split

PREFIX = "fsdd:"

_NAME = re.compile(r"(\d)_([A-Za-z0-9]+)_(\d+)\.wav")
_TAKES = {Split.TEST: range(5), Split.VALIDATION: range(5, 10), Split.TRAIN: range(10, 1000)}


def read_corpus(corpus: CorpusConfig, seed: int, cache: Path) -> Source:
    """Digit strings of the Free Spoken Digit Dataset.

    Raises:
        UserError: as `read_fsdd`, or no `root`.
    """
    del cache
    return Source(read_fsdd(root_of(corpus), corpus.splits, corpus.utterances_per_speaker, seed))


def read_fsdd(
    root: Path, shares: Mapping[Split, float], strings_per_speaker: int, seed: int
) -> dict[Split, tuple[Utterance, ...]]:
    """Make `strings_per_speaker` digit strings for each speaker of each split in `shares`.

    Raises:
        UserError: no such folder, no recording in it, or a speaker lacks takes of a digit that a split may
        use.
    """
    takes = _find_takes(root)
    speakers = sorted({speaker for speaker, _ in takes})
    named = [split for split in Split if shares.get(split, 0.0) > 0]
    dealt = deal_speakers(speakers, shares, seed)
    spoken_by = {split: [speaker for speaker in speakers if dealt.get(speaker) is split] for split in named}
    if min(len(group) for group in spoken_by.values()) < 2:
        spoken_by = dict.fromkeys(named, speakers)
    return {
        split: tuple(
            utterance for speaker in group for utterance in _strings(root, takes, speaker, split, strings_per_speaker, seed)
        )
        for split, group in spoken_by.items()
    }


def _find_takes(root: Path) -> dict[tuple[str, int], list[int]]:
    """Takes of each (speaker, digit), in rising order."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; wanted the Free Spoken Digit Dataset's recordings")
    takes: dict[tuple[str, int], list[int]] = {}
    for path in root.iterdir():
        name = _NAME.fullmatch(path.name)
        if name is not None:
            takes.setdefault((name[2], int(name[1])), []).append(int(name[3]))
    if not takes:
        raise UserError(f"{root}: no {{digit}}_{{speaker}}_{{take}}.wav in it; wanted spoken digits")
    return {key: sorted(found) for key, found in takes.items()}


def _strings(
    root: Path, takes: dict[tuple[str, int], list[int]], speaker: str, split: Split, count: int, seed: int
) -> list[Utterance]:
    usable = {}
    for digit in range(len(DIGITS)):
        usable[digit] = [take for take in takes.get((speaker, digit), []) if take in _TAKES[split]]
        if not usable[digit]:
            wanted = _TAKES[split]
            raise UserError(
                f"{root}: speaker {speaker} has no take {wanted.start} to {wanted.stop - 1} of digit "
                f"{digit}, which the {split.value} split needs"
            )
    random = generator("fsdd", seed, speaker, split.value)
    utterances: list[Utterance] = []
    said: set[str] = set()
    while len(utterances) < count:
        digits = draw_digits(random)
        words = digits_in_words(digits)
        if sentence_split(words) is not split or words in said:
            continue
        said.add(words)
        paths = tuple(f"{digit}_{speaker}_{_choose(usable[digit], random)}.wav" for digit in digits)
        name = f"{PREFIX}{speaker}-{split.value}-{len(utterances):04d}-{''.join(map(str, digits))}"
        utterances.append(Utterance(name, PREFIX + speaker, root, paths, words))
    return utterances


def _choose(takes: list[int], random: np.random.Generator) -> int:
    return takes[int(random.integers(len(takes)))]
