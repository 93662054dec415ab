"""The reports of a driver: one after each finished candidate, and a summary at the end."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from hwsearch.experiment import Fidelity
from hwsearch.search.record import Failed, Scored

INTERRUPTED = "interrupted by Ctrl-C or SIGTERM"


class How(StrEnum):
    """How a driver ended."""

    FINISHED = "finished"
    EXHAUSTED = "exhausted"
    """No proposer had more to propose."""
    HOURS = "hours"
    STALLED = "stalled"
    INTERRUPTED = "interrupted"
    """Ctrl-C or SIGTERM ended it."""
    ERROR = "error"
    KILLED = "killed"
    """It left no last line: a signal killed it, or its machine went down."""


@dataclass(frozen=True)
class SearchProgress:
    """The state of a search after a finished candidate."""

    fidelity: Fidelity
    """The rung that is being scored. All counts are for this rung."""
    scored: int
    failed: int
    trials: int
    remaining_seconds: float | None
    """Time to the end of the rung: 0 at its end; None until this driver has finished a candidate."""
    in_flight: int
    """Candidates with a worker or waiting for one, including the reference."""
    latest: Scored | Failed | None
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
    how: How
    reason: str
    shared: str | None = None
    """The state of the shared study, in one line."""

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C or SIGTERM ended the search."""
        return self.how is How.INTERRUPTED

    def __str__(self) -> str:
        """One line for the user."""
        counts = f"{self.scored} of {self.trials} candidates scored, {self.failed} failed"
        counts += "".join(f", {count} at '{fidelity.value}'" for fidelity, count in self.promoted.items())
        match self.how:
            case How.INTERRUPTED:
                return f"interrupted: {counts}; run the same command again to continue in {self.folder}"
            case How.HOURS:
                return f"stopped, {self.reason}: {counts}; the same command goes on for as long again in {self.folder}"
            case How.STALLED:
                return f"stopped, {self.reason}: {counts}; the same command with a larger budget goes on in {self.folder}"
            case How.EXHAUSTED:
                return f"{self.reason}: {counts}, in {self.folder}"
            case _:
                return f"done: {counts}, in {self.folder}"
