"""The language model against its own definition, and its ARPA text against two other readers."""

import re
from pathlib import Path

import pocketsphinx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsearch.metrics.recognisers.trigram import END, START, to_arpa, train_trigram

words = st.sampled_from(["a", "b", "c", "don't"])
texts = st.lists(st.lists(words, min_size=1, max_size=6).map(" ".join), min_size=1, max_size=6)

Table = dict[tuple[str, ...], tuple[float, float]]


def read_arpa(text: str) -> Table:
    """log10 probability and back-off weight of each n-gram, checked against the counts in the header."""
    table: Table = {}
    for order, count in re.findall(r"^ngram (\d)=(\d+)$", text, re.MULTILINE):
        section = re.search(rf"^\\{order}-grams:\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
        assert section is not None
        lines = section[1].splitlines()
        assert len(lines) == int(count)
        for line in lines:
            probability, gram, *weight = line.split("\t")
            assert len(gram.split()) == int(order)
            table[tuple(gram.split())] = (float(probability), float(weight[0]) if weight else 0.0)
    return table


def arpa_log10(table: Table, gram: tuple[str, ...]) -> float:
    """The back-off rule of the format."""
    if gram in table:
        return table[gram][0]
    return table.get(gram[:-1], (0.0, 0.0))[1] + arpa_log10(table, gram[1:])


@given(texts)
def test_probabilities_sum_to_one_after_every_history(sentences: list[str]) -> None:
    model = train_trigram(sentences)
    outer = sorted(set(model.probabilities[()]) - {END})
    histories = [(), *((u,) for u in [*outer, START]), *((u, v) for u in [*outer, START] for v in outer)]
    for history in histories:
        assert sum(model.probability(word, history) for word in model.probabilities[()]) == pytest.approx(1)
        assert all(0 < model.probability(word, history) <= 1 for word in model.probabilities[()])


@given(texts)
def test_the_written_model_sums_to_one_and_says_the_same(sentences: list[str]) -> None:
    model = train_trigram(sentences)
    table = read_arpa(to_arpa(model))
    outer = sorted(set(model.probabilities[()]) - {END})
    for history in [(), *((u,) for u in [*outer, START]), *((u, v) for u in [*outer, START] for v in outer)]:
        total = 0.0
        for word in model.probabilities[()]:
            probability = 10 ** arpa_log10(table, (*history, word))
            assert probability == pytest.approx(model.probability(word, history), rel=1e-4)
            total += probability
        assert total == pytest.approx(1, rel=1e-4)


def test_witten_bell_by_hand() -> None:
    """After `a` came b, b, c: three tokens of two types, so b has 2/5, c 1/5 and what is left backs off."""
    model = train_trigram(["a b", "a b", "a c"])
    assert model.probability("b", ("a",)) == pytest.approx(2 / 5)
    assert model.probability("c", ("a",)) == pytest.approx(1 / 5)
    unigram = {"a": 3 / 9, "b": 2 / 9, "c": 1 / 9, END: 3 / 9}
    assert model.probability("a", ()) == pytest.approx(unigram["a"])
    left = 1 - unigram["b"] - unigram["c"]
    assert model.probability("a", ("a",)) == pytest.approx(2 / 5 * unigram["a"] / left)
    assert model.probability("d", ("a",)) == 0


def test_pocketsphinx_reads_the_same_probabilities(tmp_path: Path) -> None:
    model = train_trigram(["the cat sat", "the cat ran", "a dog sat on the cat", "the dog ran"])
    path = tmp_path / "model.arpa"
    path.write_text(to_arpa(model))
    logmath = pocketsphinx.LogMath(1.0001)
    reader = pocketsphinx.NGramModel.readfile(str(path))
    for gram in [
        ("sat",),
        ("the", "cat"),
        ("the", "cat", "sat"),
        ("cat", "ran", "dog"),
        ("dog", "the", "dog"),
    ]:
        read = logmath.exp(reader.prob(list(reversed(gram))))
        assert read == pytest.approx(model.probability(gram[-1], gram[:-1]), rel=0.01)


def test_no_words_no_model() -> None:
    with pytest.raises(ValueError, match="no word"):
        train_trigram(["", " "])
