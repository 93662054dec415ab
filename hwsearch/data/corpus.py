"""The speech of an experiment, with no speaker and no sentence in two splits."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from hwsearch.data.fsdd import PREFIX as FSDD
from hwsearch.data.recorded import RecordedMixture
from hwsearch.data.source import Source
from hwsearch.data.utterance import Utterance
from hwsearch.errors import UserError
from hwsearch.experiment import DataConfig, Split
from hwsearch.extensions import CORPORA

_MOST_SHOWN = 5
"""Largest number of names in a line."""

Speech = dict[Split, tuple[Utterance, ...]]
"""The utterances of each split; every split is a key."""


def read_corpora(data: DataConfig, seed: int, cache: Path) -> Source:
    """Read all corpora of an experiment and deal their speakers to splits; nothing is synthesised or written.

    No speaker, file or transcript is in two splits. If recorded speakers of several splits say the same words, the test split
    keeps the sentence before the validation split, and that before the training split. FSDD's speakers may be in several splits;
    its recordings and digit strings are not.

    Args:
        data: the experiment's data section.
        seed: the experiment's seed.
        cache: folder of synthetic corpora.

    Raises:
        UserError: a corpus is unusable, two corpora put one speaker into different splits or share an utterance id, or a split
            with mixtures or rooms has fewer than two speakers.
    """
    sources = [CORPORA.load(corpus.kind)(corpus, seed, cache) for corpus in data.corpora]
    speech = {
        split: [
            utterance if corpus.channel is None else replace(utterance, channel=corpus.channel)
            for corpus, source in zip(data.corpora, sources, strict=True)
            for utterance in source.speech.get(split, ())
        ]
        for split in Split
    }
    _check_ids(speech)
    _check_speakers(speech)
    distinct = _drop_repeated_sentences(speech)
    for split in (wanted := [split for split in Split if split in data.rooms.count or split in data.mixtures.count]):
        if _speakers(distinct[split]) < 2:
            _check_enough(data, speech, wanted)
            raise _too_few(split, _speakers(distinct[split]), _speakers(speech[split]))

    def synthesise() -> None:
        for source in sources:
            source.synthesise()

    return Source(distinct, synthesise)


def load_corpora(data: DataConfig, seed: int, cache: Path) -> Speech:
    """Read all corpora of an experiment, as `read_corpora`, and synthesise missing speech.

    Raises:
        UserError: as `read_corpora` and `Source.synthesise`.
    """
    corpora = read_corpora(data, seed, cache)
    corpora.synthesise()
    return dict(corpora.speech)


def speakers_also_recorded(speech: Mapping[Split, Sequence[Utterance]], mixtures: Sequence[RecordedMixture]) -> tuple[str, ...]:
    """Say which speakers of recorded mixtures have the name of a speaker whom the corpora have in another split.

    Other people may have the same name, so this is no error.
    """
    named = {split: {utterance.speaker.partition(":")[2] for utterance in found} for split, found in speech.items()}
    both = {
        mixture.speaker
        for mixture in mixtures
        for split, names in named.items()
        if mixture.speaker in names and split is not mixture.split
    }
    if not both:
        return ()
    shown = ", ".join(sorted(both)[:_MOST_SHOWN]) + (", ..." if len(both) > _MOST_SHOWN else "")
    return (
        (
            f"{len(both)} speaker{'s' * (len(both) != 1)} of recorded mixtures ({shown}) may speak in another split of "
            "data.corpora, where the same names are; if so, tests are not of new speakers"
        ),
    )


def _speakers(utterances: Iterable[Utterance]) -> int:
    """Count the speakers."""
    return len({utterance.speaker for utterance in utterances})


def _check_enough(data: DataConfig, speech: Mapping[Split, Sequence[Utterance]], wanted: Sequence[Split]) -> None:
    """Raise `UserError` if there are fewer than two speakers for each of the wanted splits, however they are dealt."""
    found = _speakers(chain(*speech.values()))
    if found < 2 * len(wanted):
        places = ", ".join(str(corpus.root or f"kind '{corpus.kind}'") for corpus in data.corpora)
        splits = ", ".join(split.value for split in wanted)
        raise UserError(
            f"data.corpora: speakers of {places} in the splits: {found}; wanted at least {2 * len(wanted)}, 2 in each of {splits}"
        )


def _too_few(split: Split, speakers: int, before: int) -> UserError:
    """The error of a split with fewer than two speakers, `before` of them before repeated sentences were left out."""
    found = f"data.corpora: speakers in the {split.value} split: {speakers}"
    if before > speakers:
        return UserError(
            f"{found}, of {before}, once sentences are left out that another split has, too; wanted speakers who say different "
            "sentences, or recordings without transcripts"
        )
    return UserError(f"{found}; a mixture needs two: raise the {split.value} share in 'splits', or add speakers")


def _check_ids(speech: dict[Split, list[Utterance]]) -> None:
    seen: dict[str, Utterance] = {}
    for utterance in (utterance for utterances in speech.values() for utterance in utterances):
        if utterance.id in seen:
            raise UserError(
                f"data.corpora: utterance {utterance.id} is in {seen[utterance.id].root} and in "
                f"{utterance.root}; wanted different names"
            )
        seen[utterance.id] = utterance


def _check_speakers(speech: dict[Split, list[Utterance]]) -> None:
    home: dict[str, Split] = {}
    for split, utterances in speech.items():
        for utterance in utterances:
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
