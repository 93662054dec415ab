"""Who goes on to a higher fidelity, against non-dominated sorting by comparing every pair."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsearch.search.objectives import Direction
from hwsearch.search.promotion import promoted

MAX, MIN = Direction.MAXIMIZE, Direction.MINIMIZE
DIRECTIONS = [MAX, MIN, MIN]
ROW = st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 2))


def dominates(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    gains = [a[0] - b[0], *(theirs - mine for mine, theirs in zip(a[1:], b[1:], strict=True))]
    return min(gains) >= 0 and max(gains) > 0


def fronts(rows: dict[int, tuple[int, ...]]) -> list[set[int]]:
    """Non-dominated sorting: peel off front after front."""
    left, found = dict(rows), []
    while left:
        front = {a for a in left if not any(dominates(left[b], left[a]) for b in left)}
        found.append(front)
        left = {number: row for number, row in left.items() if number not in front}
    return found


@given(st.lists(ROW, min_size=1, max_size=14), st.integers(1, 16), st.sets(st.integers(1, 14)))
def test_whole_fronts_go_on_from_the_best_and_part_of_the_last(
    rows: list[tuple[int, int, int]], keep: int, always: set[int]
) -> None:
    by_number = dict(enumerate(rows, start=1))
    found = promoted(np.array(rows, dtype=float), DIRECTIONS, keep, list(by_number), always)
    assert found == sorted(set(found))
    contest = {number: row for number, row in by_number.items() if number not in always}
    assert set(found) >= always & by_number.keys()
    chosen = set(found) - always
    assert len(chosen) == min(keep, len(contest))
    room = keep
    for front in fronts(contest):
        # A front goes on whole while there is room, and not at all when there is none.
        assert len(chosen & front) == min(len(front), max(room, 0))
        room -= len(front)


def test_of_the_last_front_those_go_on_that_stand_farthest_apart() -> None:
    """By hand (Deb et al. 2002): the ends, then the point with the largest box between its neighbours."""
    size = np.array([0.0, 1.0, 2.0, 6.0, 10.0])
    values = np.stack([size, size], axis=1)
    # Boxes: 1 has (2 - 0) / 10 twice, 2 has (6 - 1) / 10 twice, 6 has (10 - 2) / 10 twice.
    for keep, wanted in ((2, [11, 15]), (3, [11, 14, 15]), (4, [11, 13, 14, 15]), (5, [11, 12, 13, 14, 15])):
        assert promoted(values, [MAX, MIN], keep, [11, 12, 13, 14, 15]) == wanted


def test_equal_values_do_not_divide_by_zero() -> None:
    assert promoted(np.ones((5, 2)), [MAX, MIN], 2, [1, 2, 3, 4, 5]) == [1, 5]


def test_those_that_always_go_on_stand_outside_the_count_and_the_contest() -> None:
    """Candidate 9 dominates everything and goes on in any case: the others compete as if it were not there."""
    values = np.array([[10.0, 0.0], [5.0, 5.0], [4.0, 6.0]])
    assert promoted(values, [MAX, MIN], 1, [9, 2, 3], {9}) == [2, 9]
    assert promoted(values, [MAX, MIN], 1, [9, 2, 3], {3}) == [3, 9]
    assert promoted(values, [MAX, MIN], 1, [9, 2, 3], {9, 2, 3, 77}) == [2, 3, 9]


@pytest.mark.parametrize("keep", [1, 3])
def test_nobody_is_promoted_from_nothing(keep: int) -> None:
    assert promoted(np.zeros((0, 2)), [MAX, MIN], keep, []) == []
