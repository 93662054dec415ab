"""The reports of a driver: one after each finished candidate, and a summary at the end."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hwsearch.experiment import Fidelity
from hwsearch.search.record import Failed, Scored
from hwsearch.search.stopping import OutOfTime


@dataclass(frozen=True)
class SearchProgress:
    """The state of a search after a finished candidate."""

    fidelity: Fidelity
    """The rung that is being scored. All counts are for this rung."""
    scored: int
    failed: int
    trials: int
    seconds: float
    """Since this driver began the rung."""
    candidates_per_second: float
    """Finished by this driver."""
    remaining_seconds: float | None
    """Time to the end of the rung: 0 at its end; None until this driver has finished a candidate."""
    in_flight: int = 0
    """Candidates with a worker or waiting for one, including the reference."""
    latest: Scored | Failed | None = None
    """The candidate that has just finished; None at the start of a rung."""


@dataclass(frozen=True)
class SearchSummary:
    """How a search ended."""

    folder: Path
    scored: int
    """Distinct candidates scored in all, without the full-precision reference."""
    failed: int
    trials: int
    promoted: Mapping[Fidelity, int]
    """How many candidates were scored at each higher fidelity."""
    seconds: float
    interrupted: bool
    stopped: str | None = None
    """The budget that ended the search early, before all candidates or promotions were done."""
    shared: str | None = None
    """The state of the shared study, in one line."""

    def __str__(self) -> str:
        """One line for the user."""
        counts = f"{self.scored} of {self.trials} candidates scored, {self.failed} failed"
        counts += "".join(f", {count} at '{fidelity.value}'" for fidelity, count in self.promoted.items())
        if self.interrupted:
            return f"interrupted: {counts}; run the same command again to continue in {self.folder}"
        if isinstance(self.stopped, OutOfTime):
            return f"stopped, {self.stopped}: {counts}; the same command goes on for as long again in {self.folder}"
        if self.stopped is not None:
            return f"stopped, {self.stopped}: {counts}; the same command with a larger budget goes on in {self.folder}"
        if self.scored < self.trials:
            return f"no more allocations to propose: {counts}, in {self.folder}"
        return f"done: {counts}, in {self.folder}"
