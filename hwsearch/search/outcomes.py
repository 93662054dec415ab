"""The result of a candidate, as the record holds it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hwsearch.executor import Outcome
from hwsearch.search.objectives import Objective, implausible
from hwsearch.search.proposer import Candidate
from hwsearch.search.record import Failed, Scored, now
from hwsearch.search.scoring import ScoringJob

Charged = Mapping[str, float | None]
"""Costs by column name; None if a target has no cost, because the allocation does not run on it."""


@dataclass(frozen=True)
class InFlight:
    """A candidate that is being scored."""

    candidate: Candidate
    job: ScoringJob
    start: int | None = None
    """The candidate whose trained weights its training starts from."""


def settled(
    flight: InFlight,
    outcome: Outcome[Mapping[str, float]],
    costs: Charged,
    objectives: Sequence[Objective],
    seed: int,
    versions: dict[str, str] | None,
) -> Scored | Failed:
    """Turn the outcome of a job into an entry of the record.

    The candidate is scored if all these objectives are finite and no number is implausible, else it has failed. Metrics that are
    not finite are left out. `versions` are those of packages, if they have changed since the search began.
    """
    found = outcome.result or {}
    metrics = {name: float(value) for name, value in found.items() if math.isfinite(value)}
    reason = outcome.error or _unusable(objectives, metrics, costs, found)
    if reason is not None:
        return Failed(
            candidate=flight.candidate.number,
            strategy=flight.candidate.strategy,
            fidelity=flight.job.fidelity,
            reason=reason,
            seconds=outcome.seconds,
            worker=outcome.worker,
            attempts=outcome.attempts,
            versions=versions,
            time=now(),
        )
    return Scored(
        candidate=flight.candidate.number,
        strategy=flight.candidate.strategy,
        seed=seed,
        allocation=flight.job.configuration.allocation.to_json(),
        structure=flight.job.configuration.kept,
        metrics=metrics,
        costs=dict(costs),
        fidelity=flight.job.fidelity,
        start=flight.start,
        weights=None if flight.job.output is None else flight.job.output.name,
        seconds=outcome.seconds,
        worker=outcome.worker,
        attempts=outcome.attempts,
        versions=versions,
        time=now(),
    )


def finite(value: float) -> float | None:
    """Return the value, or None if it is not finite."""
    return float(value) if math.isfinite(value) else None


def _unusable(
    objectives: Sequence[Objective], metrics: Mapping[str, float], costs: Charged, found: Mapping[str, float]
) -> str | None:
    """Say why a candidate cannot take part, or return None."""
    for objective in objectives:
        if metrics.get(objective.column, costs.get(objective.column)) is None:
            return f"objective '{objective.column}' is {found.get(objective.column, 'absent')}; wanted a finite number"
    return implausible(metrics, costs)
