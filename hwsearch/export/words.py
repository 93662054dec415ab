"""Weights below 8 bits, packed into words of 64 bits.

A word holds as many weights as fit: they are the digits of a number whose base is the number of values that a weight can take. So
39 weights of 2 bits make a word, 22 of 3, 16 of 4, 12 of 5, 10 of 6, or 9 of 7.
"""

from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsearch.separator.allocation import weight_limit

_WORDS = 2**63
"""Number of values of a word. ONNX's integers are signed, and negative ones are not used."""

_UNPACKING_BYTES = 300
"""About what the nodes take that take the words of a tensor apart."""


def base(bits: int) -> int:
    """Return the number of values that a weight can take."""
    return 2 * weight_limit(bits) + 1


def weights_per_word(bits: int) -> int:
    """Return how many weights of a width a word holds."""
    return next(number for number in count() if base(bits) ** (number + 1) > _WORDS)


def powers(bits: int) -> NDArray[np.int64]:
    """Return the value of each digit of a word, [weights per word]."""
    return np.array([base(bits) ** place for place in range(weights_per_word(bits))], np.int64)


def is_packed(weights: int, bits: int) -> bool:
    """Whether a number of weights takes fewer bytes in words than in bytes."""
    return 8 * -(-weights // weights_per_word(bits)) + _UNPACKING_BYTES < weights


def to_words(integers: NDArray[np.integer[Any]], bits: int) -> NDArray[np.int64]:
    """Pack weights within +-weight_limit(bits) into words, [words, 1]. The last word is filled up with zero weights."""
    flat = integers.ravel().astype(np.int64)
    digits = np.pad(flat, (0, -len(flat) % weights_per_word(bits))) + weight_limit(bits)
    words: NDArray[np.int64] = digits.reshape(-1, weights_per_word(bits)) @ powers(bits)
    return words[:, None]
