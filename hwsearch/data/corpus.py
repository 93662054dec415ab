"""From the corpora of an experiment to the speech of each split, with no speaker and no sentence in two of
them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hwsearch.data.fsdd import PREFIX as FSDD
from hwsearch.data.utterance import Utterance
from hwsearch.errors import UserError
from hwsearch.experiment import DataConfig, Split
from hwsearch.extensions import CORPORA

Speech = dict[Split, tuple[Utterance, ...]]
"""The utterances of each split; every split is a key."""


@dataclass(frozen=True)
class Corpora:
    """The speech of an experiment, of which the synthesised part need not have been made yet."""

    speech: Speech
    synthetic: tuple[Callable[[], None], ...]
    """Each makes what is missing of one corpus."""

    def synthesise(self) -> None:
        """Make the sound that is missing.

        Raises:
            UserError: eSpeak NG is not usable, or some of what it made is gone.
        """
        for synthesise in self.synthetic:
            synthesise()


def read_corpora(data: DataConfig, seed: int, cache: Path) -> Corpora:
    """Read all corpora of an experiment and deal their speakers to splits; nothing is synthesised or written.

    Args:
        data: the experiment's data section.
        seed: the experiment's seed.
        cache: folder in which synthetic corpora are kept.

    No speaker, file or transcript is in two splits. Recorded speakers may happen to say the same words:
    such a sentence stays in the test split before the validation split before the training split. FSDD's
    speakers may serve in several splits (see `hwsearch.data.fsdd`); its recordings and digit strings do
    not.

    Raises:
        UserError: a corpus is unusable, two corpora put one speaker into different splits or share an
            utterance id, or a split that mixtures or rooms are wanted for has fewer than two speakers.
    """
    speech: dict[Split, list[Utterance]] = {split: [] for split in Split}
    sources = [CORPORA.load(corpus.kind)(corpus, seed, cache) for corpus in data.corpora]
    for source in sources:
        for split, utterances in source.speech.items():
            speech[split] += utterances
    _check_ids(speech)
    _check_speakers(speech)
    distinct = _drop_repeated_sentences(speech)
    for split in Split:
        speakers = {utterance.speaker for utterance in distinct[split]}
        if (split in data.rooms.count or split in data.mixtures.count) and len(speakers) < 2:
            raise UserError(
                f"data.corpora: speakers in the {split.value} split: {len(speakers)}; a mixture needs two: "
                f"raise the {split.value} share in 'splits' or add a corpus"
            )
    return Corpora(distinct, tuple(source.synthesise for source in sources if source.synthesise is not None))


def load_corpora(data: DataConfig, seed: int, cache: Path) -> Speech:
    """The speech of an experiment, with the synthesised part made where it is missing.

    Raises:
        UserError: as `read_corpora` and `Corpora.synthesise`.
    """
    corpora = read_corpora(data, seed, cache)
    corpora.synthesise()
    return corpora.speech


def _check_ids(speech: dict[Split, list[Utterance]]) -> None:
    seen: dict[str, Utterance] = {}
    for utterance in (utterance for split in Split for utterance in speech[split]):
        if utterance.id in seen:
            raise UserError(
                f"data.corpora: utterance {utterance.id} is in {seen[utterance.id].root} and in "
                f"{utterance.root}; wanted different names"
            )
        seen[utterance.id] = utterance


def _check_speakers(speech: dict[Split, list[Utterance]]) -> None:
    home: dict[str, Split] = {}
    for split in Split:
        for utterance in speech[split]:
            other = home.setdefault(utterance.speaker, split)
            if other is not split and not utterance.speaker.startswith(FSDD):
                raise UserError(
                    f"data.corpora: speaker {utterance.speaker} is in the {other.value} split and, from "
                    f"{utterance.root}, in the {split.value} split; wanted speakers of one split only"
                )


def _drop_repeated_sentences(speech: dict[Split, list[Utterance]]) -> Speech:
    kept: Speech = {}
    taken: set[str] = set()
    for split in (Split.TEST, Split.VALIDATION, Split.TRAIN):
        kept[split] = tuple(utterance for utterance in speech[split] if utterance.transcript not in taken)
        taken |= {utterance.transcript for utterance in kept[split] if utterance.transcript is not None}
    return {split: kept[split] for split in Split}
