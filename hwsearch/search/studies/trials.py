"""Finished candidates as trials of Optuna, with everything that the record says of them."""

from datetime import datetime, timedelta
from typing import Any, NamedTuple, Self

from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from hwsearch.search.objectives import objective_values
from hwsearch.search.record import Failed, Header, Scored
from hwsearch.search.space import Point

SEARCH_ATTRIBUTE = "hwsearch"
"""Attribute of the study that names the search that it belongs to."""

METRIC_NAMES = "study:metric_names"
"""System attribute with the names of the objectives, as `Study.set_metric_names` sets it. That function warns that it is
experimental, and a warning cannot be suppressed in one thread alone.
"""

Finished = tuple[Scored | Failed, Point]
"""The outcome of a candidate at a fidelity, and the point of the candidate."""


class Key(NamedTuple):
    """Identifies a trial within the study of a record."""

    candidate: int
    fidelity: str

    @classmethod
    def of(cls, event: Scored | Failed) -> Self:
        """Return the key of a result."""
        return cls(event.candidate, event.fidelity.value)


class TrialWriter:
    """Makes the trials of one search.

    Parameters are the widths of the free choices and what is kept of the options; the study's attributes hold the others.
    """

    def __init__(self, header: Header) -> None:
        self._header = header
        self._space = header.space
        self.distributions = {name: CategoricalDistribution(values) for name, values in self._space.variables}

    @property
    def metric_names(self) -> list[str]:
        """The columns of the objectives, in their order."""
        return [objective.column for objective in self._header.objectives]

    def study_attributes(self) -> dict[str, Any]:
        """Describe the search, and everything that its candidates share."""
        header = self._header
        return {
            "schema_version": header.schema_version,
            "experiment": header.experiment,
            "run": header.identity,
            "begun": header.time,
            "seed": header.seed,
            "provenance": header.provenance,
            "objectives": self.metric_names,
            "fixed_widths": {site: widths[0] for site, widths in header.widths.items() if len(widths) == 1},
            "groups": {name: list(members) for name, members in self._space.members.items() if len(members) > 1},
            "versions": header.versions,
        }

    def trial(self, event: Scored | Failed, point: Point) -> FrozenTrial:
        """Make the trial of a result."""
        # Optuna takes times without a zone as local.
        start, end = (time.astimezone().replace(tzinfo=None) for time in self.times(event))
        return FrozenTrial(
            number=-1,
            trial_id=-1,
            state=self.state(event),
            value=None,
            values=self.values(event),
            datetime_start=start,
            datetime_complete=end,
            params={name: values[index] for (name, values), index in zip(self._space.variables, point, strict=True)},
            distributions=dict(self.distributions),
            user_attrs=self.attributes(event),
            system_attrs={},
            intermediate_values={},
        )

    def state(self, event: Scored | Failed) -> TrialState:
        """Return the state. Candidates that are being scored are not stored."""
        return TrialState.COMPLETE if isinstance(event, Scored) else TrialState.FAIL

    def values(self, event: Scored | Failed) -> list[float] | None:
        """Return the objectives; None for a failed candidate."""
        return objective_values(self._header.objectives, event.metrics, event.costs) if isinstance(event, Scored) else None

    def times(self, event: Scored | Failed) -> tuple[datetime, datetime]:
        """Return the beginning and the end."""
        end = datetime.fromisoformat(event.time)
        return end - timedelta(seconds=event.seconds), end

    def attributes(self, event: Scored | Failed) -> dict[str, Any]:
        """Return everything else that the record says; the allocation is in the parameters."""
        found = {"reason": event.reason} if isinstance(event, Failed) else {**event.metrics, **event.costs}
        return {
            **found,
            "run": self._header.identity,
            "candidate": event.candidate,
            "fidelity": event.fidelity.value,
            "strategy": event.strategy,
            "seed": self._header.seed,
            "seconds": event.seconds,
            "worker": event.worker,
            "attempts": event.attempts,
            "versions": event.versions or self._header.versions,
            "schema_version": self._header.schema_version,
        }
