"""Successive halving with several objectives: chooses the candidates to score again at a higher fidelity."""

from collections.abc import Collection, Sequence

import numpy as np

from hwsearch.search.objectives import Direction
from hwsearch.search.pareto import Values, non_dominated
from hwsearch.search.space import ENDS, UNIFORM

ALWAYS_PROMOTED = (UNIFORM, ENDS)
"""Strategies whose candidates are scored at every fidelity. Uniform allocations are what a search has to beat; hand rules can
look poor before training and good after it."""


def promoted(
    values: Values, directions: Sequence[Direction], keep: int, numbers: Sequence[int], always: Collection[int] = ()
) -> list[int]:
    """Choose the candidates that go on: whole fronts, the best first, and of the last front the candidates that lie farthest
    apart.

    Args:
        values: [N, objectives].
        directions: of the objectives.
        keep: how many go on.
        numbers: [N] of the candidates.
        always: those that go on in any case, outside the count.

    Returns:
        Their numbers, rising.
    """
    contest = np.flatnonzero([number not in always for number in numbers])
    chosen: list[int] = []
    while len(contest) and len(chosen) < keep:
        on_front = non_dominated(values[contest], directions)
        front = contest[on_front]
        room = keep - len(chosen)
        if len(front) > room:
            front = front[np.argsort(-_crowding(values[front]), kind="stable")[:room]]
        chosen += [numbers[row] for row in front.tolist()]
        contest = contest[~on_front]
    return sorted({*chosen, *(number for number in numbers if number in always)})


def _crowding(values: Values) -> Values:
    """Compute the crowding distance (Deb et al. 2002, NSGA-II, section III.B): how far apart a row's neighbours are; infinite at
    the ends.
    """
    distance = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]]
        distance[order[[0, -1]]] = np.inf
        if span > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return distance
