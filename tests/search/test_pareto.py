"""Fronts, hypervolumes and who goes on to a higher fidelity, against comparisons of every pair and counted cells."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsearch.search.objectives import Direction
from hwsearch.search.pareto import best_rows, has_stalled, hypervolume, non_dominated, volumes_at

MAX, MIN = Direction.MAXIMIZE, Direction.MINIMIZE
BOTH = [MAX, MIN]

# Few distinct values, so that ties and equal points are common.
VALUES = st.one_of(st.integers(-4, 4).map(float), st.sampled_from([np.nan, np.inf, -np.inf]))


def dominates(a: list[float], b: list[float], directions: list[Direction]) -> bool:
    """By the definition, one objective at a time."""
    signs = [1 if direction is MAX else -1 for direction in directions]
    gains = [(x > y) - (x < y) for x, y in ((s * p, s * q) for s, p, q in zip(signs, a, b, strict=True))]
    return min(gains) >= 0 and max(gains) > 0


@given(st.data())
def test_the_front_is_what_brute_force_finds(data: st.DataObject) -> None:
    directions = data.draw(st.lists(st.sampled_from([MAX, MIN]), min_size=1, max_size=4))
    rows = data.draw(st.lists(st.lists(VALUES, min_size=len(directions), max_size=len(directions)), max_size=25))
    whole = [row for row in rows if not any(np.isnan(row))]
    expected = [not any(np.isnan(row)) and not any(dominates(other, row, directions) for other in whole) for row in rows]
    values = np.array(rows, dtype=np.float64).reshape(len(rows), len(directions))
    assert non_dominated(values, directions).tolist() == expected


def test_large_tables_agree_with_brute_force_too() -> None:
    rows = np.random.default_rng(0).integers(0, 40, (600, 3)).astype(np.float64)
    gains = np.sign((rows[:, None] - rows[None]) * np.array([1, -1, 1]))
    dominated = ((gains.min(axis=2) >= 0) & (gains.max(axis=2) > 0)).any(axis=0)
    np.testing.assert_array_equal(non_dominated(rows, [MAX, MIN, MAX]), ~dominated)


def test_ten_thousand_candidates_on_one_front_are_all_kept() -> None:
    size = np.arange(10_000.0)
    assert non_dominated(np.stack([np.sqrt(size), size], axis=1), BOTH).sum() == 10_000


def test_columns_must_match_directions() -> None:
    with pytest.raises(ValueError, match="wanted one column for each of 3"):
        non_dominated(np.zeros((2, 2)), [MAX, MIN, MIN])


# Successive halving


def fronts(rows: list[list[float]], directions: list[Direction]) -> list[set[int]]:
    """Non-dominated sorting: peel off front after front."""
    left, found = dict(enumerate(rows)), []
    while left:
        front = {a for a in left if not any(dominates(left[b], left[a], directions) for b in left)}
        found.append(front)
        left = {number: row for number, row in left.items() if number not in front}
    return found


ROW = st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 2)).map(list)


@given(st.lists(ROW, max_size=14), st.integers(1, 16))
def test_whole_fronts_go_on_from_the_best_and_part_of_the_last(rows: list[list[float]], keep: int) -> None:
    directions = [MAX, MIN, MIN]
    found = best_rows(np.array(rows, dtype=float).reshape(len(rows), 3), directions, keep)
    assert len(set(found)) == len(found) == min(keep, len(rows))
    for front in fronts(rows, directions):
        # A front goes on whole while there is room, and not at all when there is none.
        assert len(front.intersection(found)) == min(len(front), max(keep, 0))
        keep -= len(front)


def test_of_the_last_front_those_go_on_that_stand_farthest_apart() -> None:
    """By hand (Deb et al. 2002): the ends, then the point with the largest box between its neighbours."""
    size = np.array([0.0, 1.0, 2.0, 6.0, 10.0])
    values = np.stack([size, size], axis=1)
    # Boxes: 1 has (2 - 0) / 10 twice, 2 has (6 - 1) / 10 twice, 6 has (10 - 2) / 10 twice.
    for keep, wanted in ((2, [0, 4]), (3, [0, 3, 4]), (4, [0, 2, 3, 4]), (5, [0, 1, 2, 3, 4])):
        assert sorted(best_rows(values, BOTH, keep)) == wanted


def test_equal_values_do_not_divide_by_zero() -> None:
    assert best_rows(np.ones((5, 2)), BOTH, 2) == [0, 4]


# Hypervolume

CORNER = 5


def cells(points: list[tuple[int, ...]], objectives: int) -> int:
    """Unit cells below the corner that a point dominates, counted one by one; less is better."""
    return sum(
        any(all(value <= place for value, place in zip(point, cell, strict=True)) for point in points)
        for cell in itertools.product(range(CORNER), repeat=objectives)
    )


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@given(data=st.data())
def test_the_hypervolume_is_the_number_of_cells_that_are_dominated(objectives: int, data: st.DataObject) -> None:
    """Points beyond the corner and those with a NaN add nothing."""
    points = data.draw(st.lists(st.tuples(*[st.integers(0, CORNER + 1)] * objectives), max_size=8))
    values = np.array(points, dtype=np.float64).reshape(len(points), objectives)
    with_gaps = np.vstack([values, np.full((1, objectives), np.nan)])
    directions = [MIN] * objectives
    wanted = cells(points, objectives)
    assert hypervolume(with_gaps, directions, [CORNER] * objectives) == wanted
    flipped = with_gaps * ([-1.0] + [1.0] * (objectives - 1))
    assert hypervolume(flipped, [MAX, *directions[1:]], [-CORNER] + [CORNER] * (objectives - 1)) == wanted


def test_the_worst_corner_leaves_out_what_is_outside_the_limits() -> None:
    values = np.array([[1.0, 9.0], [np.nan, np.nan], [3.0, 4.0], [2.0, 20.0]])
    # Against (1, 20), the third dominates 2 * 16.
    assert volumes_at(values, BOTH, [1, 2, 4]) == [0.0, 0.0, 32.0]
    assert volumes_at(values[1:2], BOTH, [0, 1]) == [0.0, 0.0]


def test_volumes_never_fall_and_end_at_the_whole() -> None:
    values = np.random.default_rng(0).normal(size=(60, 2))
    found = volumes_at(values, BOTH, list(range(1, 61)))
    assert (np.diff(found) > -1e-12).all()
    assert found[-1] == hypervolume(values, BOTH, [values[:, 0].min(), values[:, 1].max()])


def test_a_search_stalls_when_the_last_candidates_add_less_than_the_share() -> None:
    # Against the worst corner (0, 10) the second and third dominate 1 * 10 + 4 * 1 = 14; the last adds 1 * 0.1.
    values = np.array([[0.0, 10.0], [1.0, 0.0], [5.0, 9.0], [0.5, 5.0], [5.1, 9.0]])
    assert not has_stalled(values, BOTH, window=2, growth=0.007)
    assert has_stalled(values, BOTH, window=2, growth=0.0072)
    assert not has_stalled(values, BOTH, window=4, growth=1.0), "before them nothing was dominated"
    assert not has_stalled(values[:1], BOTH, window=3, growth=1.0)
