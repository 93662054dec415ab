"""What a driver says of its search: after each finished candidate, and at the end."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hwsearch.experiment import Fidelity
from hwsearch.search.record import Failed, Scored
from hwsearch.search.stopping import OutOfTime


@dataclass(frozen=True)
class SearchProgress:
    """Where a search stands, after each finished candidate."""

    fidelity: Fidelity
    """The rung that is being scored; the counts are of it."""
    scored: int
    failed: int
    trials: int
    seconds: float
    """Since this driver began the rung."""
    candidates_per_second: float
    """Finished by this driver."""
    remaining_seconds: float | None
    """To the end of the rung; 0 at its end, and before it None until this driver has finished a candidate."""
    in_flight: int = 0
    """With a worker or waiting for one, the reference among them."""
    latest: Scored | Failed | None = None
    """What was finished; None at the start of a rung."""


@dataclass(frozen=True)
class SearchSummary:
    """How a search ended."""

    folder: Path
    scored: int
    """Distinct candidates scored in all, the full-precision reference not among them."""
    failed: int
    trials: int
    promoted: Mapping[Fidelity, int]
    """How many candidates were scored at each higher fidelity."""
    seconds: float
    interrupted: bool
    stopped: str | None = None
    """The budget that ended it before it had as many candidates as wanted, or all its promotions."""
    shared: str | None = None
    """What became of the shared study, in one line."""

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
