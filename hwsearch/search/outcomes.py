"""The result of a candidate, as the record holds it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hwsearch.executor import Outcome
from hwsearch.experiment import Fidelity
from hwsearch.search.objectives import Objective, implausible
from hwsearch.search.record import Failed, Scored, now
from hwsearch.separator.allocation import BitAllocation

Charged = Mapping[str, float | None]
"""Costs by column name; None if a target has no cost, because the allocation does not run on it."""


@dataclass(frozen=True)
class InFlight:
    """A candidate that is being scored.

    Attributes:
        start: the candidate whose trained weights its training starts from.
        weights: file of its own trained weights.
    """

    number: int
    strategy: str
    allocation: BitAllocation
    fidelity: Fidelity
    start: int | None = None
    weights: str | None = None


def settled(
    candidate: InFlight,
    outcome: Outcome[Mapping[str, float]],
    costs: Charged,
    objectives: Sequence[Objective],
    seed: int,
    versions: dict[str, str] | None,
) -> Scored | Failed:
    """Turn an outcome into an entry of the record: scored if every objective is finite and no number is implausible, else
    failed.

    Args:
        candidate: which.
        outcome: of its job; values that are not finite are left out of the metrics.
        costs: of its allocation.
        objectives: those that it must have.
        seed: of the search.
        versions: of the packages that candidates depend on, if they have changed since the search began.
    """
    found = outcome.result or {}
    metrics = {name: value for name, value in ((name, finite(value)) for name, value in found.items()) if value is not None}
    reason = outcome.error or _unusable(objectives, metrics, costs, found)
    if reason is not None:
        return Failed(
            candidate=candidate.number,
            strategy=candidate.strategy,
            fidelity=candidate.fidelity,
            reason=reason,
            seconds=outcome.seconds,
            worker=outcome.worker,
            attempts=outcome.attempts,
            versions=versions,
            time=now(),
        )
    return Scored(
        candidate=candidate.number,
        strategy=candidate.strategy,
        seed=seed,
        allocation=candidate.allocation.to_json(),
        metrics=metrics,
        costs=dict(costs),
        fidelity=candidate.fidelity,
        start=candidate.start,
        weights=candidate.weights,
        seconds=outcome.seconds,
        worker=outcome.worker,
        attempts=outcome.attempts,
        versions=versions,
        time=now(),
    )


def finite(value: float) -> float | None:
    """The value, or None if it is not finite."""
    return float(value) if math.isfinite(value) else None


def _unusable(
    objectives: Sequence[Objective], metrics: Mapping[str, float], costs: Charged, found: Mapping[str, float]
) -> str | None:
    """Say why a candidate cannot take part, or return None if every objective is finite and no number is implausible."""
    for objective in objectives:
        if metrics.get(objective.column, costs.get(objective.column)) is None:
            return f"objective '{objective.column}' is {found.get(objective.column, 'absent')}; wanted a finite number"
    return implausible(metrics, costs)
