"""What reads a corpus: the contract of its readers, and what they share."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hwsearch.data.splits import deal_speakers
from hwsearch.data.utterance import Utterance
from hwsearch.errors import UserError
from hwsearch.experiment import CorpusConfig, Split


@dataclass(frozen=True)
class Source:
    """The speech of one corpus.

    Attributes:
        speech: utterances by split.
        synthesise: makes the sound that is missing; None where all is recorded.
    """

    speech: Mapping[Split, tuple[Utterance, ...]]
    synthesise: Callable[[], None] | None = None


ReadCorpus = Callable[[CorpusConfig, int, Path], Source]
"""From a corpus of the experiment file, the experiment's seed and the folder of synthesised speech to its speech. Nothing is
synthesised or written. Raises `UserError` for a corpus that cannot be used."""


def root_of(corpus: CorpusConfig) -> Path:
    """Where a recorded corpus lies.

    Raises:
        UserError: the experiment does not say.
    """
    if corpus.root is None:
        raise UserError(f"data.corpora: root is wanted for kind '{corpus.kind}'")
    return corpus.root


def dealt(utterances: Iterable[Utterance], corpus: CorpusConfig, seed: int) -> Source:
    """Recorded utterances, every speaker in one split."""
    utterances = tuple(utterances)
    splits = deal_speakers((utterance.speaker for utterance in utterances), corpus.splits, seed)
    return Source({split: tuple(found for found in utterances if splits.get(found.speaker) is split) for split in Split})
