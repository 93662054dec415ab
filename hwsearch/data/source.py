"""The contract of corpus readers, and the functions that they share."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hwsearch.data.utterance import Utterance
from hwsearch.errors import UserError
from hwsearch.experiment import CorpusConfig, Split


@dataclass(frozen=True)
class Source:
    """The speech of one or several corpora.

    Attributes:
        speech: utterances by split.
        synthesise: makes missing sound. Raises `UserError` if it cannot.
    """

    speech: Mapping[Split, tuple[Utterance, ...]]
    synthesise: Callable[[], None] = lambda: None


ReadCorpus = Callable[[CorpusConfig, int, Path], Source]
"""Reads a corpus of the experiment file, given the experiment's seed and the folder of synthesised speech. It neither synthesises
nor writes anything. Raises `UserError` for an unusable corpus."""


def root_of(corpus: CorpusConfig) -> Path:
    """Root of a recorded corpus.

    Raises:
        UserError: the experiment does not name it.
    """
    if corpus.root is None:
        raise UserError(f"data.corpora: root is wanted for kind '{corpus.kind}'")
    return corpus.root


def dealt(utterances: Iterable[Utterance], corpus: CorpusConfig, seed: int) -> Source:
    """Recorded utterances, with every speaker in one split."""
    utterances = tuple(utterances)
    splits = deal_speakers((utterance.speaker for utterance in utterances), corpus.splits, seed)
    return Source({split: tuple(found for found in utterances if splits.get(found.speaker) is split) for split in Split})


def dealt_to_all(utterances: Iterable[Utterance], corpus: CorpusConfig, seed: int) -> Source:
    """Recorded utterances, with every speaker in one split and enough speakers in every split.

    Raises:
        UserError: as `deal_to_all`.
    """
    utterances = tuple(utterances)
    speakers = (utterance.speaker for utterance in utterances)
    # A mixture needs two speakers.
    splits = deal_to_all(speakers, corpus.splits, seed, f"{corpus.root}: speakers", least=2)
    return Source({split: tuple(found for found in utterances if splits.get(found.speaker) is split) for split in Split})


def deal_to_all(names: Iterable[str], shares: Mapping[Split, float], seed: int, what: str, least: int) -> dict[str, Split]:
    """Deal names to splits as `deal_speakers`, but leave no split with a share empty.

    Such a split gets at least `least` names, or one if there are too few for that. It takes them from those that are left over,
    then from the split that has the most.

    Raises:
        UserError: there are fewer names than splits with a share. `what` says where what was found.
    """
    named = [split for split in Split if shares.get(split, 0.0) > 0]
    order = sorted(set(names), key=lambda name: _place(name, seed))
    if len(order) < len(named):
        splits = ", ".join(split.value for split in named)
        raise UserError(f"{what}: {len(order)}; wanted at least {least * len(named)}, {least} in each of {splits}")
    least = least if len(order) >= least * len(named) else 1
    by_share = list(deal_speakers(order, shares, seed).values())
    counts = {split: by_share.count(split) for split in named}
    for split in named:
        while counts[split] < least:
            if sum(counts.values()) == len(order):
                counts[max(named, key=lambda other: counts[other])] -= 1
            counts[split] += 1
    homes = [split for split in named for _ in range(counts[split])]
    return dict(zip(order, homes, strict=False))  # those beyond the shares are left out


def _place(name: str, seed: int) -> bytes:
    """What orders names."""
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()


def deal_speakers(speakers: Iterable[str], shares: Mapping[Split, float], seed: int) -> dict[str, Split]:
    """Deal speakers to splits.

    A hash of name and seed orders the speakers, so the order of files does not matter. Each split takes its share of them in
    turn, rounded so that the totals deviate by at most half a speaker. Speakers beyond the sum of the shares are left out.

    Returns:
        The split of each speaker, in dealing order.
    """
    order = sorted(set(speakers), key=lambda speaker: _place(speaker, seed))
    dealt: dict[str, Split] = {}
    start, total = 0, 0.0
    for split in Split:
        total += shares.get(split, 0.0)
        end = int(total * len(order) + 0.5)
        dealt |= dict.fromkeys(order[start:end], split)
        start = end
    return dealt
