"""Every candidate in the record, and its result at each fidelity."""

import math
from collections import Counter
from collections.abc import Sequence, Set

import numpy as np

from hwsearch.experiment import Experiment, Fidelity
from hwsearch.search.objectives import Objective, objective_values
from hwsearch.search.pareto import best_rows
from hwsearch.search.proposer import Candidate, Result
from hwsearch.search.record import REFERENCE, Asked, Failed, Scored
from hwsearch.search.scoring import first_fidelity
from hwsearch.search.space import ALWAYS_PROMOTED, Point, SearchSpace
from hwsearch.separator.configuration import Configuration


class KnownCandidates:
    """Candidates by number and their results by fidelity; number 0 is full precision, which is outside the space."""

    def __init__(self, experiment: Experiment, space: SearchSpace, objectives: Sequence[Objective]) -> None:
        """Start without candidates."""
        self._space = space
        self._objectives = objectives
        self._limits = experiment.search.limits
        self.candidates: dict[int, Candidate] = {}
        self.points: set[Point] = set()
        self.unfinished: set[int] = set()
        """Numbers of the candidates that are not finished at the first fidelity."""
        self.first = first_fidelity(experiment)
        """The fidelity at which every candidate is scored."""
        self._rungs: dict[Fidelity, dict[int, Result | None]] = {self.first: {}}
        """Results of the fidelities that have begun, in order; None for a candidate that failed."""
        self._scored: Counter[Fidelity] = Counter()
        """Number of scored candidates without the reference, kept because it is read several times for each candidate."""

    @property
    def rungs(self) -> Sequence[Fidelity]:
        """Fidelities that have begun, in order."""
        return tuple(self._rungs)

    def begin(self, rung: Fidelity) -> None:
        """Remember that a fidelity has begun."""
        self._rungs.setdefault(rung, {})

    def ask(self, event: Asked) -> Candidate:
        """Remember that a candidate was asked for."""
        candidate = Candidate(event.candidate, event.point or (), event.strategy, event.state)
        self.candidates[event.candidate] = candidate
        self.unfinished.add(event.candidate)
        if event.point is not None:
            self.points.add(event.point)
        return candidate

    def finish(self, event: Scored | Failed) -> Result:
        """Remember the result of a candidate at a fidelity."""
        candidate = self.candidates[event.candidate]
        self.begin(event.fidelity)
        if isinstance(event, Scored):
            result = self._rungs[event.fidelity][event.candidate] = Result(candidate, event.metrics, event.costs)
            self._scored[event.fidelity] += event.candidate != REFERENCE
        else:
            result = Result(candidate, None, {})
            self._rungs[event.fidelity][event.candidate] = None
        if event.fidelity is self.first:
            self.unfinished.discard(event.candidate)
        return result

    def configuration(self, number: int) -> Configuration:
        """Return the configuration of a candidate."""
        return self._space.full_precision if number == REFERENCE else self._space.decode(self.candidates[number].point)

    def finished(self, fidelity: Fidelity) -> Set[int]:
        """Return the numbers of the candidates that were scored or failed at a fidelity, including the reference."""
        return self._rungs.get(fidelity, {}).keys()

    def counts(self, fidelity: Fidelity) -> tuple[int, int]:
        """Count the scored and the failed candidates at a fidelity, without the reference."""
        finished, scored = self.finished(fidelity), self._scored[fidelity]
        return scored, len(finished) - (REFERENCE in finished) - scored

    def fits(self, result: Result) -> bool:
        """Whether a candidate is within the limits."""
        costs = {name: value for name, value in result.costs.items() if value is not None}
        return all(costs.get(name, math.inf) <= limit for name, limit in self._limits.items())

    def values(self, result: Result) -> list[float]:
        """Return the objectives of a candidate that was scored."""
        return objective_values(self._objectives, result.metrics or {}, result.costs)

    def promoted(self, below: Fidelity, keep: int) -> list[int]:
        """Return the candidates to score again.

        These are the best `keep` within the limits by `best_rows`, and all of the strategies that are always promoted. The
        reference is first. The widest follow, so that narrow ones find trained neighbours to start from.
        """
        always: list[int] = []
        contest: list[Result] = []
        for number, result in self._rungs.get(below, {}).items():
            if result is None or number == REFERENCE:
                continue
            if result.candidate.strategy in ALWAYS_PROMOTED:
                always.append(number)
            elif self.fits(result):
                contest.append(result)
        values = np.array([self.values(result) for result in contest]).reshape(len(contest), len(self._objectives))
        rows = best_rows(values, [objective.direction for objective in self._objectives], keep)
        chosen = [*always, *(contest[row].candidate.number for row in rows)]
        widths = {number: sum(bits for _, bits in self.configuration(number).allocation.widths) for number in chosen}
        return [REFERENCE, *sorted(chosen, key=lambda number: (-widths[number], number))] if chosen else []
