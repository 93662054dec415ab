"""Word errors against a dynamic program written by hand, and the normal form of transcripts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsearch.metrics.errors import MetricUnavailable
from hwsearch.metrics.wer import WordErrors, corpus_wer, normalise, word_errors

sentences = st.lists(st.sampled_from(["one", "two", "three"]), max_size=7)


def edit_distance(reference: list[str], hypothesis: list[str]) -> int:
    """Levenshtein distance over words, row by row."""
    row = list(range(len(hypothesis) + 1))
    for i, wanted in enumerate(reference, 1):
        above, row[0] = row[0], i
        for j, heard in enumerate(hypothesis, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (wanted != heard))
    return row[-1]


@given(sentences, sentences)
def test_errors_are_the_edit_distance(reference: list[str], hypothesis: list[str]) -> None:
    counted = word_errors(" ".join(reference), " ".join(hypothesis))
    assert counted.errors == edit_distance(reference, hypothesis)
    assert counted.words == len(reference)
    assert len(hypothesis) - len(reference) == counted.insertions - counted.deletions


def test_each_kind_of_error_is_told_apart() -> None:
    assert word_errors("one two three", "one four three") == WordErrors(1, 0, 0, 3)
    assert word_errors("one two three", "one three") == WordErrors(0, 1, 0, 3)
    assert word_errors("one two three", "one two two three") == WordErrors(0, 0, 1, 3)


def test_an_empty_reference_has_only_insertions() -> None:
    assert word_errors("", "one two") == WordErrors(0, 0, 2, 0)
    assert word_errors("...", "") == WordErrors(0, 0, 0, 0)


def test_corpus_wer_weighs_utterances_by_their_words() -> None:
    utterances = [WordErrors(1, 0, 0, 1), WordErrors(0, 0, 0, 9)]
    assert corpus_wer(utterances) == pytest.approx(0.1)


def test_no_reference_word_means_no_rate() -> None:
    with pytest.raises(MetricUnavailable, match="no words"):
        corpus_wer([word_errors("", "one")])


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Don't  STOP, now!", "don't stop now"),
        ("the dogs’ bowl — ‘here’", "the dogs bowl here"),
        ("42 is 4-2", "four two is four two"),
        ("7up", "seven up"),
        ("snake_case", "snake case"),
        ("Élan vital", "élan vital"),
        ("''", ""),
    ],
)
def test_normal_form(text: str, normal: str) -> None:
    assert normalise(text) == normal


@given(st.text())
def test_the_normal_form_is_its_own_normal_form(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)
