import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsearch.search.hypervolume import hypervolume
from hwsearch.search.objectives import Direction
from hwsearch.search.pareto import non_dominated

MAX, MIN = Direction.MAXIMIZE, Direction.MINIMIZE

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
    directions = [MAX, MIN, MAX]
    signs = np.array([1, -1, 1])
    gains = np.sign((rows[:, None] - rows[None]) * signs)
    dominated = ((gains.min(axis=2) >= 0) & (gains.max(axis=2) > 0)).any(axis=0)
    np.testing.assert_array_equal(non_dominated(rows, directions), ~dominated)


def test_ten_thousand_candidates_on_one_front_are_all_kept() -> None:
    size = np.arange(10_000.0)
    values = np.stack([np.sqrt(size), size], axis=1)
    assert non_dominated(values, [MAX, MIN]).sum() == 10_000


def test_columns_must_match_directions() -> None:
    with pytest.raises(ValueError, match="wanted one column for each of 3"):
        non_dominated(np.zeros((2, 2)), [MAX, MIN, MIN])


INTEGERS = st.integers(0, 8)


@given(st.lists(st.tuples(INTEGERS, INTEGERS), max_size=12), st.tuples(INTEGERS, INTEGERS))
def test_the_hypervolume_counts_the_unit_squares_that_are_dominated(
    points: list[tuple[int, int]], reference: tuple[int, int]
) -> None:
    """Maximise the first, minimise the second: count the squares between a point and the reference."""
    expected = sum(
        any(quality >= x + 1 and size <= y for quality, size in points)
        for x in range(reference[0], 9)
        for y in range(reference[1])
    )
    values = np.array(points, dtype=np.float64).reshape(len(points), 2)
    assert hypervolume(values, [MAX, MIN], [float(v) for v in reference]) == expected


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=20))
def test_dominated_points_add_no_hypervolume(points: list[tuple[float, float]]) -> None:
    values = np.array(points)
    front = values[non_dominated(values, [MAX, MIN])]
    whole = hypervolume(values, [MAX, MIN], (-1.0, 101.0))
    assert hypervolume(front, [MAX, MIN], (-1.0, 101.0)) == pytest.approx(whole)


def test_points_beyond_the_reference_and_nan_add_nothing() -> None:
    values = np.array([[5.0, 5.0], [np.nan, 1.0], [0.0, 1.0], [9.0, 20.0]])
    assert hypervolume(values, [MAX, MIN], (1.0, 10.0)) == (5 - 1) * (10 - 5)
