"""Generated sentences: a small grammar of everyday English, and strings of digits."""

import hashlib

import numpy as np

from hwsearch.experiment import Split

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_SHORTEST_STRING, _LONGEST_STRING = 3, 6

_PEOPLE = (
    "the old captain", "my neighbour", "a young doctor", "the night porter", "our teacher", "the baker",
    "his sister", "a quiet stranger", "the farmer", "her uncle", "the mayor", "an honest clerk",
    "the piano tuner", "my cousin", "the first officer", "a tired traveller", "the gardener",
    "their youngest son", "the lighthouse keeper", "a famous painter",
)  # fmt: skip
_VERBS = (
    "found", "carried", "sold", "forgot", "repaired", "measured", "noticed", "borrowed", "painted",
    "returned", "watched", "counted", "described", "wrapped", "dropped", "polished", "followed", "ordered",
    "studied", "hid",
)  # fmt: skip
_THINGS = (
    "a wooden box", "the silver watch", "three loaves of bread", "the broken window", "a heavy suitcase",
    "the yellow boat", "an empty bottle", "the garden gate", "a bundle of letters", "the kitchen table",
    "a basket of apples", "the brass key", "a pair of shoes", "the winter coat", "some fresh coffee",
    "the bicycle", "a map of the coast", "the church bell", "two white horses", "the last newspaper",
)  # fmt: skip
_PLACES = (
    "near the harbour", "behind the station", "on the narrow bridge", "at the edge of the forest",
    "in the village square", "under the stairs", "beside the river", "at the top of the hill",
    "in the school library", "outside the theatre", "along the beach", "in front of the bank",
)  # fmt: skip
_TIMES = (
    "before breakfast", "on monday morning", "after the storm", "late at night", "during the summer",
    "just before noon", "at the end of the week", "without a word", "as usual", "once again", "in the rain",
    "while it was still dark",
)  # fmt: skip
_QUESTIONS = (
    "why do you think",
    "i never understood how",
    "nobody knows if",
    "they asked us whether",
    "we heard that",
    "it seems",
)

_TEMPLATES = (
    "{person} {verb} {thing} {place}",
    "{person} {verb} {thing} {time}",
    "{time} {person} {verb} {thing}",
    "{question} {person} {verb} {thing}",
    "{person} and {other} {verb} {thing} {place}",
    "{place} {person} {verb} {thing} {time}",
)

_OWNERS = (Split.TRAIN, Split.TRAIN, Split.VALIDATION, Split.TEST)
"""Half of all generated sentences belong to training, and a quarter each to validation and test."""


def sentence_split(sentence: str) -> Split:
    """The split that a generated sentence belongs to, by a hash of its words."""
    return _OWNERS[hashlib.sha256(sentence.encode()).digest()[0] % len(_OWNERS)]


def draw_sentence(random: np.random.Generator) -> str:
    """Draw one of about three million sentences: lower-case words without punctuation."""
    person, other = random.choice(_PEOPLE, size=2, replace=False)
    return str(random.choice(_TEMPLATES)).format(
        person=person,
        other=other,
        verb=random.choice(_VERBS),
        thing=random.choice(_THINGS),
        place=random.choice(_PLACES),
        time=random.choice(_TIMES),
        question=random.choice(_QUESTIONS),
    )


def draw_digits(random: np.random.Generator) -> tuple[int, ...]:
    """Draw a string of 3 to 6 digits, with length and digits uniformly distributed."""
    length = int(random.integers(_SHORTEST_STRING, _LONGEST_STRING, endpoint=True))
    return tuple(int(digit) for digit in random.integers(0, len(DIGITS), size=length))


def digits_in_words(digits: tuple[int, ...]) -> str:
    """Spell digits out: (3, 0, 4) is `three zero four`."""
    return " ".join(DIGITS[digit] for digit in digits)
