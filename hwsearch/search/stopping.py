"""The budgets of a search, beside its number of trials: when no more candidates are asked for.

None of them changes what a candidate means or which one comes next, so a search that one has stopped goes on with
another.
"""

from collections.abc import Callable, Sequence

import numpy as np

from hwsearch.experiment import SearchConfig
from hwsearch.search.hypervolume import has_stalled
from hwsearch.search.objectives import Objective

CHECKS_PER_WINDOW = 10
"""How often growth is looked at while as many candidates are scored as it is measured over."""


class OutOfTime(str):
    """Why no candidate may be begun any more; unlike other budgets this one starts anew with every run."""

    __slots__ = ()


class Budgets:
    """`search.hours` and `search.stall_candidates` of one run of a search."""

    def __init__(self, search: SearchConfig, objectives: Sequence[Objective], seeds: int, elapsed: Callable[[], float]) -> None:
        """Start from nothing scored.

        Args:
            search: the budgets.
            objectives: of the search.
            seeds: candidates that are scored in any case, before growth is judged.
            elapsed: seconds since this run began.
        """
        self._hours = search.hours
        self._window = search.stall_candidates
        self._growth = search.stall_growth
        self._directions = [objective.direction for objective in objectives]
        self._seeds = seeds
        self._elapsed = elapsed
        self._values: list[Sequence[float]] = []
        self._judged: tuple[int, bool] = (0, False)

    def add(self, values: Sequence[float] | None) -> None:
        """A candidate was scored at the first fidelity, with these objectives; None: it lies outside the limits."""
        self._values.append([np.nan] * len(self._directions) if values is None else values)

    def out_of_time(self) -> OutOfTime | None:
        """Why no candidate may be begun any more at any fidelity, or None."""
        if self._hours is None or self._elapsed() < 3600 * self._hours:
            return None
        return OutOfTime(f"{hours_said(self._hours)} (search.hours) are over")

    def stalled(self) -> str | None:
        """Why no new candidate is worth asking for, or None. The answer depends on what was scored and in which order alone."""
        if self._window is None:
            return None
        count = len(self._values) - len(self._values) % _between_looks(self._window)
        if count < self._seeds + self._window:
            return None
        if self._judged[0] != count:
            values = np.array(self._values[:count], dtype=np.float64)
            self._judged = count, has_stalled(values, self._directions, self._window, self._growth)
        if not self._judged[1]:
            return None
        return stall_said(self._growth, self._window)


def first_judged(window: int, seeds: int) -> int:
    """Candidates scored when growth over a window is looked at first, behind so many seeds."""
    step = _between_looks(window)
    return -(-(seeds + window) // step) * step


def stall_said(growth: float, window: int) -> str:
    """What a stall is."""
    return f"the hypervolume grew by less than {growth:.3g} of itself over {window} candidates"


def _between_looks(window: int) -> int:
    return max(1, window // CHECKS_PER_WINDOW)


def hours_said(hours: float) -> str:
    """Hours as people say them: 1 hour, 2.5 hours."""
    return f"{hours:.10g} hour" + ("" if hours == 1 else "s")
