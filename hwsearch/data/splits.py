"""Which split a speaker and a sentence belong to.

Both are decided by hashes, so that neither the order of files nor a corpus added beside changes who is where.
"""

import hashlib
from collections.abc import Iterable, Mapping

from hwsearch.experiment import Split

_SENTENCE_OWNERS = (Split.TRAIN, Split.TRAIN, Split.VALIDATION, Split.TEST)
"""Half of all sentences a generator can make belong to training, a quarter each to validation and test."""


def deal_speakers(speakers: Iterable[str], shares: Mapping[Split, float], seed: int) -> dict[str, Split]:
    """Deal speakers to splits.

    Speakers are ordered by a hash of name and seed; each split takes the next ones, as many as its share
    rounded so that the totals never drift by more than half a speaker. Speakers beyond the sum of the
    shares are left out.

    Returns:
        the split of each speaker dealt, in dealing order.
    """
    order = sorted(set(speakers), key=lambda speaker: hashlib.sha256(f"{seed}/{speaker}".encode()).digest())
    dealt: dict[str, Split] = {}
    start, total = 0, 0.0
    for split in Split:
        total += shares.get(split, 0.0)
        end = int(total * len(order) + 0.5)
        dealt |= dict.fromkeys(order[start:end], split)
        start = end
    return dealt


def sentence_split(sentence: str) -> Split:
    """The only split that may say a generated sentence; it depends on the words alone."""
    return _SENTENCE_OWNERS[hashlib.sha256(sentence.encode()).digest()[0] % len(_SENTENCE_OWNERS)]
