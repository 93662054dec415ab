"""Finished candidates as Optuna's trials, with everything that the record says of them."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from hwsearch.search.objectives import objective_values
from hwsearch.search.record import Failed, Header, Scored
from hwsearch.search.space import Point

SEARCH_ATTRIBUTE = "hwsearch"
"""Attribute of the study that says whose it is."""

METRIC_NAMES = "study:metric_names"
"""System attribute in which `Study.set_metric_names` keeps the names of the objectives. That function itself warns that it is
experimental, and a warning cannot be held back in one thread alone.
"""

Finished = tuple[Scored | Failed, Point]
"""What became of a candidate at a fidelity, and the point that it was asked at."""


class TrialWriter:
    """Makes trials of one search. Parameters are widths of the free choices; the study's attributes say those of other sites."""

    def __init__(self, header: Header) -> None:
        self._header = header
        self._space = header.space
        self.distributions = {site: CategoricalDistribution(widths) for site, widths in self._space.free}

    @property
    def metric_names(self) -> list[str]:
        """Names of the objectives, in their order."""
        return [objective.column for objective in self._header.objectives]

    def study_attributes(self) -> dict[str, Any]:
        """What all candidates share, and which search they belong to."""
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
        """A candidate as it ended at a fidelity."""
        # Optuna's trials know local time, without saying so.
        start, end = (time.astimezone().replace(tzinfo=None) for time in self.times(event))
        return FrozenTrial(
            number=-1,
            trial_id=-1,
            state=self.state(event),
            value=None,
            values=self.values(event),
            datetime_start=start,
            datetime_complete=end,
            params={site: widths[index] for (site, widths), index in zip(self._space.free, point, strict=True)},
            distributions=dict(self.distributions),
            user_attrs=self.attributes(event),
            system_attrs={},
            intermediate_values={},
        )

    def state(self, event: Scored | Failed) -> TrialState:
        """Finished either way: nothing is stored that runs."""
        return TrialState.COMPLETE if isinstance(event, Scored) else TrialState.FAIL

    def values(self, event: Scored | Failed) -> list[float] | None:
        """The objectives."""
        return objective_values(self._header.objectives, event.metrics, event.costs) if isinstance(event, Scored) else None

    def times(self, event: Scored | Failed) -> tuple[datetime, datetime]:
        """When it began and ended."""
        end = datetime.fromisoformat(event.time)
        return end - timedelta(seconds=event.seconds), end

    def attributes(self, event: Scored | Failed) -> dict[str, Any]:
        """What else the record says of it; the allocation is in the parameters."""
        return {**self._found(event), **self._provenance(event)}

    def _found(self, event: Scored | Failed) -> Mapping[str, Any]:
        return {"reason": event.reason} if isinstance(event, Failed) else {**event.metrics, **event.costs}

    def _provenance(self, event: Scored | Failed) -> Mapping[str, Any]:
        return {
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
