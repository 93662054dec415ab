import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsearch.search.hypervolume import has_stalled, hypervolume, volumes_at, worst
from hwsearch.search.objectives import Direction

CORNER = 5
BOTH = [Direction.MAXIMIZE, Direction.MINIMIZE]


def cells(points: list[tuple[int, ...]], objectives: int) -> int:
    """Unit cells below the corner that a point dominates, counted one by one; less is better."""
    return sum(
        any(all(value <= place for value, place in zip(point, cell, strict=True)) for point in points)
        for cell in itertools.product(range(CORNER), repeat=objectives)
    )


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@given(data=st.data())
def test_the_hypervolume_is_the_number_of_cells_that_are_dominated(objectives: int, data: st.DataObject) -> None:
    points = data.draw(st.lists(st.tuples(*[st.integers(0, CORNER + 1)] * objectives), max_size=8))
    values = np.array(points, dtype=np.float64).reshape(len(points), objectives)
    with_gaps = np.vstack([values, np.full((1, objectives), np.nan)])
    directions = [Direction.MINIMIZE] * objectives
    assert hypervolume(with_gaps, directions, [CORNER] * objectives) == cells(points, objectives)
    flipped = with_gaps * ([-1.0] + [1.0] * (objectives - 1))
    assert hypervolume(flipped, [Direction.MAXIMIZE, *directions[1:]], [-CORNER] + [CORNER] * (objectives - 1)) == cells(
        points, objectives
    )


def test_the_worst_corner_leaves_out_what_is_outside_the_limits() -> None:
    values = np.array([[1.0, 9.0], [np.nan, np.nan], [3.0, 4.0], [2.0, 20.0]])
    assert worst(values, BOTH) == [1.0, 20.0]
    assert worst(values[1:2], BOTH) is None
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
