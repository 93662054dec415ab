"""The budgets that end a search, other than its number of trials.

No budget changes what a candidate means or which one comes next, so a stopped search can go on with a larger budget.
"""

from collections.abc import Callable, Sequence

import numpy as np

from hwsearch.experiment import SearchConfig
from hwsearch.search.objectives import Objective
from hwsearch.search.pareto import has_stalled

CHECKS_PER_WINDOW = 10
"""Checks of growth while one window of candidates is scored."""


class Budgets:
    """`search.hours` and `search.stall_candidates` of one run of a search."""

    def __init__(self, search: SearchConfig, objectives: Sequence[Objective], seeds: int, elapsed: Callable[[], float]) -> None:
        """Start from nothing scored. Growth is judged after as many candidates as `seeds`; `elapsed` gives seconds."""
        self._hours = search.hours
        self._window = search.stall_candidates
        self._growth = search.stall_growth
        self._directions = [objective.direction for objective in objectives]
        self._seeds = seeds
        self._elapsed = elapsed
        self._values: list[Sequence[float]] = []
        self._judged: tuple[int, bool] = (0, False)

    def add(self, values: Sequence[float] | None) -> None:
        """Add the objectives of a candidate that was scored at the first fidelity; None if it lies outside the limits."""
        self._values.append([np.nan] * len(self._directions) if values is None else values)

    def out_of_time(self) -> str | None:
        """Say why no candidate may start at any fidelity, or return None."""
        if self._hours is None or self._elapsed() < 3600 * self._hours:
            return None
        return f"{hours_said(self._hours)} (search.hours) are over"

    def stalled(self) -> str | None:
        """Say why no new candidate is worth asking for, or return None. The answer depends only on the scores and their order."""
        if self._window is None:
            return None
        count = len(self._values) - len(self._values) % _between_looks(self._window)
        if count < self._seeds + self._window:
            return None
        if self._judged[0] != count:
            values = np.array(self._values[:count], dtype=np.float64)
            self._judged = count, has_stalled(values, self._directions, self._window, self._growth)
        return stall_said(self._growth, self._window) if self._judged[1] else None


def first_judged(window: int, seeds: int) -> int:
    """Return the number of scored candidates at which growth over a window is first checked, given the number of seeds."""
    step = _between_looks(window)
    return -(-(seeds + window) // step) * step


def stall_said(growth: float, window: int) -> str:
    """Describe a stall in words."""
    return f"the hypervolume grew by less than {growth:.3g} of itself over {window} candidates"


def _between_looks(window: int) -> int:
    return max(1, window // CHECKS_PER_WINDOW)


def hours_said(hours: float) -> str:
    """Format hours in words, such as 1 hour or 2.5 hours."""
    return f"{hours:.10g} hour" + ("" if hours == 1 else "s")
