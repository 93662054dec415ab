"""Weights in words: the digits of numbers, whatever the width and the number of weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hwsearch.export.words import is_packed, to_words, weights_per_word

WIDTHS = (2, 3, 4, 5, 6, 7, 8)


@st.composite
def weights(draw):
    bits = draw(st.sampled_from(WIDTHS))
    limit = 2 ** (bits - 1) - 1
    return bits, draw(arrays.arrays(np.int8, st.integers(1, 200), elements=st.integers(-limit, limit)))


@given(weights())
def test_words_hold_the_weights(drawn):
    bits, integers = drawn
    words = to_words(integers, bits)
    base = 2**bits - 1
    found = []
    for word in words.ravel():
        left = int(word)  # Python's integers cannot overflow
        assert 0 <= left < 2**63
        for _ in range(weights_per_word(bits)):
            left, digit = divmod(left, base)
            found.append(digit - base // 2)
        assert left == 0
    assert found[: len(integers)] == integers.tolist()
    assert set(found[len(integers) :]) <= {0}
    assert len(words) == -(-len(integers) // weights_per_word(bits))


def test_a_word_holds_as_many_weights_as_fit():
    assert [weights_per_word(bits) for bits in WIDTHS] == [39, 22, 16, 12, 10, 9, 7]


@pytest.mark.parametrize(("bits", "packed"), [(2, True), (7, True), (8, False)])
def test_words_are_for_many_narrow_weights(bits, packed):
    assert is_packed(10**5, bits) == packed
    assert not is_packed(300, bits)
