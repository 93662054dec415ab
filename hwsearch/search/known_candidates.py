"""Every candidate in the record, and its result at each fidelity."""

import math
from collections import Counter
from collections.abc import Sequence, Set

import numpy as np

from hwsearch.experiment import Experiment, Fidelity
from hwsearch.search.objectives import Objective, objective_values
from hwsearch.search.promotion import ALWAYS_PROMOTED, promoted
from hwsearch.search.proposer import Candidate, Result
from hwsearch.search.record import REFERENCE, Asked, Failed, Scored
from hwsearch.search.scoring import first_fidelity
from hwsearch.search.space import Point, SearchSpace
from hwsearch.separator.allocation import BitAllocation


class KnownCandidates:
    """Candidates by number and their results by fidelity; number 0 is full precision, which is outside the space."""

    def __init__(self, experiment: Experiment, space: SearchSpace, objectives: Sequence[Objective]) -> None:
        """Start without candidates."""
        self._space = space
        self._objectives = objectives
        self._limits = experiment.search.limits
        self._candidates: dict[int, Candidate] = {}
        self._points: set[Point] = set()
        self._unfinished: set[int] = set()
        self.first = first_fidelity(experiment)
        """The fidelity at which every candidate is scored."""
        self._rungs: dict[Fidelity, dict[int, Result | None]] = {self.first: {}}
        """None for a candidate that failed."""
        self._scored: Counter[Fidelity] = Counter()
        """Number of scored candidates without the reference, kept because it is read several times for each candidate."""

    @property
    def asked(self) -> int:
        """Number of candidates asked for, including the reference; also the number that the next one gets."""
        return len(self._candidates)

    @property
    def points(self) -> Set[Point]:
        """The points of all candidates."""
        return self._points

    @property
    def unfinished(self) -> Set[int]:
        """Numbers of the candidates that were asked for and are not finished at the first fidelity."""
        return self._unfinished

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
        self._candidates[event.candidate] = candidate
        self._unfinished.add(event.candidate)
        if event.point is not None:
            self._points.add(event.point)
        return candidate

    def finish(self, event: Scored | Failed) -> Result:
        """Remember the result of a candidate at a fidelity."""
        candidate = self._candidates[event.candidate]
        scored = isinstance(event, Scored)
        result = Result(candidate, event.metrics, event.costs) if isinstance(event, Scored) else Result(candidate, None, {})
        self._rungs.setdefault(event.fidelity, {})[event.candidate] = result if scored else None
        self._scored[event.fidelity] += scored and event.candidate != REFERENCE
        if event.fidelity is self.first:
            self._unfinished.discard(event.candidate)
        return result

    def candidate(self, number: int) -> Candidate:
        """Return a candidate by its number."""
        return self._candidates[number]

    def allocation(self, number: int) -> BitAllocation:
        """Return the bit allocation of a candidate."""
        if number == REFERENCE:
            return self._space.full_precision
        return self._space.decode(self._candidates[number].point)

    def finished(self, fidelity: Fidelity) -> Set[int]:
        """Return the numbers of the candidates that were scored or failed at a fidelity, including the reference."""
        return self._rungs.get(fidelity, {}).keys()

    def counts(self, fidelity: Fidelity) -> tuple[int, int]:
        """Count the scored and the failed candidates at a fidelity, without the reference."""
        rung, scored = self._rungs.get(fidelity, {}), self._scored[fidelity]
        return scored, len(rung) - (REFERENCE in rung) - scored

    def fits(self, result: Result) -> bool:
        """Whether a candidate is within the limits."""
        costs = {name: value for name, value in result.costs.items() if value is not None}
        return all(costs.get(name, math.inf) <= limit for name, limit in self._limits.items())

    def values(self, result: Result) -> list[float]:
        """Return the objectives of a candidate that was scored."""
        return objective_values(self._objectives, result.metrics or {}, result.costs)

    def promoted(self, below: Fidelity, keep: int) -> list[int]:
        """Return the candidates to score again: first the reference, then the widest, so that narrow ones find trained
        neighbours to start from.
        """
        scored = {
            number: result
            for number, result in self._rungs.get(below, {}).items()
            if result is not None and number != REFERENCE and (result.candidate.strategy in ALWAYS_PROMOTED or self.fits(result))
        }
        if not scored:
            return []
        values = np.array([self.values(result) for result in scored.values()])
        always = {number for number, result in scored.items() if result.candidate.strategy in ALWAYS_PROMOTED}
        chosen = promoted(values, [objective.direction for objective in self._objectives], keep, list(scored), always)
        widths = {number: sum(bits for _, bits in self.allocation(number).widths) for number in chosen}
        return [REFERENCE, *sorted(chosen, key=lambda number: (-widths[number], number))]
