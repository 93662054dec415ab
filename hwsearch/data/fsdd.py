"""Reader of the Free Spoken Digit Dataset: `{digit}_{speaker}_{take}.wav`, joined to strings of 3 to 6 digits.

The corpus has six speakers. If the shares give two speakers or more to every named split, they are dealt as in any corpus.
Otherwise all speakers are in every named split, and no two splits share a take or a digit string: "unseen" then means unseen
recordings and sentences of known speakers. Takes 0 to 4 are the corpus's own test split.
"""

import re
from pathlib import Path

from hwsearch.data.seeding import generator
from hwsearch.data.sentences import DIGITS, digits_in_words, draw_digits, sentence_split
from hwsearch.data.source import Source, deal_speakers, root_of
from hwsearch.data.utterance import Utterance
from hwsearch.errors import UserError
from hwsearch.experiment import CorpusConfig, Split

PREFIX = "fsdd:"

_NAME = re.compile(r"(\d)_([A-Za-z0-9]+)_(\d+)\.wav")
_TAKES = {Split.TEST: range(5), Split.VALIDATION: range(5, 10), Split.TRAIN: range(10, 1000)}


def read_corpus(corpus: CorpusConfig, seed: int, _cache: Path) -> Source:
    """Make digit strings for each speaker of each split.

    Raises:
        UserError: the experiment names no root, there is no such folder, no recording in it, or a speaker lacks takes of a digit
            for a split.
    """
    root = root_of(corpus)
    takes = _find_takes(root)
    speakers = sorted({speaker for speaker, _ in takes})
    named = [split for split in Split if corpus.splits.get(split, 0.0) > 0]
    dealt = deal_speakers(speakers, corpus.splits, seed)
    spoken_by = {split: [speaker for speaker in speakers if dealt.get(speaker) is split] for split in named}
    if min(len(group) for group in spoken_by.values()) < 2:
        spoken_by = dict.fromkeys(named, speakers)
    count = corpus.utterances_per_speaker
    return Source(
        {
            split: tuple(said for speaker in group for said in _strings(root, takes, speaker, split, count, seed))
            for split, group in spoken_by.items()
        }
    )


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
        chosen = [usable[digit][int(random.integers(len(usable[digit])))] for digit in digits]
        paths = tuple(f"{digit}_{speaker}_{take}.wav" for digit, take in zip(digits, chosen, strict=True))
        name = f"{PREFIX}{speaker}-{split.value}-{len(utterances):04d}-{''.join(map(str, digits))}"
        utterances.append(Utterance(name, PREFIX + speaker, root, paths, words))
    return utterances
