"""The choice of the candidate that the main job exports."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hwsearch.errors import UserError
from hwsearch.results.candidates import DROP, CandidateTable, read_candidates
from hwsearch.results.query import Condition, query
from hwsearch.search.objectives import DROP_CI95, QUALITY, UTTERANCES
from hwsearch.workflow.runs import Run


def within_limits(limits: Mapping[str, float]) -> list[Condition]:
    """Turn `search.limits` into conditions on candidates."""
    return [Condition(column, "<=", limit) for column, limit in limits.items()]


def choose(table: CandidateTable, max_drop_db: float, limits: Mapping[str, float]) -> int:
    """Choose the smallest candidate of the front within `max_drop_db` of full precision, or else the best-sounding one.

    Candidates beyond `limits`, the largest values by column, do not count.

    Raises:
        UserError: no candidate is scored, or none is within the limits.
    """
    if len(table) == 0:
        raise UserError("the search has scored no candidate; wanted at least one to choose from")
    front = query(table, within_limits(limits))
    if len(front) == 0:
        wanted = ", ".join(f"{column} <= {limit:.10g}" for column, limit in limits.items())
        raise UserError(
            f"none of {len(table)} candidates is within search.limits ({wanted}); wanted more trials or higher limits"
        )
    near = front.take(front.columns[DROP] <= max_drop_db)
    if len(near):
        return int(near.candidate[near.columns["size_bytes"].argmin()])
    return int(front.candidate[front.columns[QUALITY].argmax()])


def chosen_candidate(run: Run) -> int | None:
    """Choose by the scores of the highest fidelity, at whatever fidelity the run is open; None if none is within the limits."""
    experiment = run.workspace.experiment
    table = read_candidates(run.workspace.folder)
    if len(query(table, within_limits(experiment.search.limits))) == 0:
        return None
    return choose(table, experiment.export.max_drop_db, experiment.search.limits)


@dataclass(frozen=True)
class Choice:
    """The candidate that the main job exports.

    Attributes:
        near: whether it loses at most `max_drop_db`. Otherwise it is the best-sounding one.
        limited: whether there are `search.limits`.
        max_drop_db: `export.max_drop_db`.
        drop_db: its loss against full precision.
        margin_db: half the width of the 95 % interval of that loss; None if unknown.
        mixtures: the number of mixtures that it was scored on.
    """

    candidate: int
    near: bool
    limited: bool
    max_drop_db: float
    drop_db: float
    margin_db: float | None
    mixtures: int


def choose_candidate(run: Run) -> Choice:
    """Choose the candidate to export, as `choose` does."""
    experiment, table = run.workspace.experiment, run.table
    most, limits = experiment.export.max_drop_db, experiment.search.limits
    chosen = choose(table, most, limits)
    row = run.row(chosen)
    drop, mixtures = (float(table.columns[name][row]) for name in (DROP, UTTERANCES))
    margins = table.columns.get(DROP_CI95)
    margin = None if margins is None or math.isnan(margins[row]) else float(margins[row])
    return Choice(chosen, drop <= most, bool(limits), most, drop, margin, int(mixtures))
