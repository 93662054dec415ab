"""Word errors by minimum edit distance, and the word error rate of a set of utterances."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import jiwer

from hwsearch.data.sentences import DIGITS
from hwsearch.metrics.errors import MetricUnavailable

_APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'"})
_NOT_IN_A_WORD = re.compile(r"[^\w' ]|_")
_LONE_APOSTROPHE = re.compile(r"(?<!\w)'+|'+(?!\w)")


@dataclass(frozen=True)
class WordErrors:
    """Word errors of one utterance. `words` counts those of the reference."""

    substitutions: int
    deletions: int
    insertions: int
    words: int

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions


def normalise(text: str) -> str:
    """Transcript in the form in which transcripts are compared.

    Letters become lower case, and runs of spaces single. Apostrophes become plain inside words (`don't`) and are dropped around
    them; other punctuation becomes a space. Figures are read digit by digit: `42` is `four two`.
    """
    lowered = text.lower().translate(_APOSTROPHES)
    spoken = re.sub(r"[0-9]", lambda digit: f" {DIGITS[int(digit[0])]} ", lowered)
    return " ".join(_LONE_APOSTROPHE.sub(" ", _NOT_IN_A_WORD.sub(" ", spoken)).split())


def word_errors(reference: str, hypothesis: str) -> WordErrors:
    """Errors of `hypothesis` against `reference`, both normalised first; with an empty reference every word is an insertion."""
    wanted, heard = normalise(reference), normalise(hypothesis)
    if not wanted:
        return WordErrors(0, 0, len(heard.split()), 0)
    alignment = jiwer.process_words(wanted, heard)
    return WordErrors(alignment.substitutions, alignment.deletions, alignment.insertions, len(wanted.split()))


def corpus_wer(utterances: Sequence[WordErrors]) -> float:
    """Summed errors over summed reference words: 0 is perfect, and insertions can lift it above 1.

    Raises:
        MetricUnavailable: the references hold no word.
    """
    words = sum(utterance.words for utterance in utterances)
    if words == 0:
        raise MetricUnavailable("the reference transcripts hold no words")
    return sum(utterance.errors for utterance in utterances) / words
