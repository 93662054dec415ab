"""The candidates of a search as a columnar table."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hwsearch.search.objectives import QUALITY, Objective
from hwsearch.search.record import REFERENCE, Failed, Header, Scored, read_record
from hwsearch.separator.allocation import BitAllocation, is_weight

DROP = "drop_db"
"""Quality lost against the full-precision network, dB: its `si_snr_improvement_db` less the candidate's."""


@dataclass(frozen=True, eq=False)
class CandidateTable:
    """Scored candidates, one row each, in the order of their scores; the reference is not among them.

    Shapes: N candidates, S sites.
    """

    sites: tuple[str, ...]
    fixed: frozenset[str]
    """Sites that the experiment fixes by pattern."""
    objectives: tuple[Objective, ...]
    candidate: npt.NDArray[np.int64]
    """[N], number of the candidate."""
    strategy: npt.NDArray[np.str_]
    """[N], who proposed it."""
    uniform: npt.NDArray[np.bool_]
    """[N], whether all weights have one width and all activations another, sites fixed by pattern aside."""
    widths: npt.NDArray[np.int16]
    """[N, S], bit-width of every site."""
    columns: dict[str, npt.NDArray[np.float64]]
    """[N] each: metrics, costs and `drop_db`; NaN where a candidate has none."""
    reference: dict[str, float]
    """Metrics and costs of the full-precision network; empty while it is not scored."""
    failures: dict[int, str]
    """Number of each failed candidate, and why it failed."""

    def __len__(self) -> int:
        return len(self.candidate)

    def allocation(self, row: int) -> BitAllocation:
        """The bit allocation of a row."""
        return BitAllocation(tuple(zip(self.sites, self.widths[row].tolist(), strict=True)))

    def take(self, rows: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> "CandidateTable":
        """The table of these rows, by index (in that order) or by mask."""
        return CandidateTable(
            sites=self.sites,
            fixed=self.fixed,
            objectives=self.objectives,
            candidate=self.candidate[rows],
            strategy=self.strategy[rows],
            uniform=self.uniform[rows],
            widths=self.widths[rows],
            columns={name: values[rows] for name, values in self.columns.items()},
            reference=self.reference,
            failures=self.failures,
        )


def read_candidates(folder: Path) -> CandidateTable:
    """Read the candidates of a run folder, also while the search runs.

    Raises:
        UserError: no record there, or a damaged one; names file and line.
    """
    header, events = read_record(folder)
    scored: list[Scored] = []
    reference: dict[str, float] = {}
    failures: dict[int, str] = {}
    for event in events:
        if isinstance(event, Failed):
            failures[event.candidate] = event.reason
        elif isinstance(event, Scored):
            if event.candidate == REFERENCE:
                reference = {name: value for name, value in _values(event).items() if value is not None}
            else:
                scored.append(event)
    sites = tuple(header.widths)
    widths = np.array([[event.allocation[site] for site in sites] for event in scored], dtype=np.int16)
    widths = widths.reshape(len(scored), len(sites))
    columns = _columns([_values(event) for event in scored])
    if QUALITY in columns:
        columns[DROP] = reference.get(QUALITY, np.nan) - columns[QUALITY]
    return CandidateTable(
        sites=sites,
        fixed=frozenset(header.fixed),
        objectives=header.objectives,
        candidate=np.array([event.candidate for event in scored], dtype=np.int64),
        strategy=np.array([event.strategy for event in scored], dtype=np.str_),
        uniform=_uniform(widths, header),
        widths=widths,
        columns=columns,
        reference=reference,
        failures=failures,
    )


def _values(event: Scored) -> dict[str, float | None]:
    return {**event.metrics, **event.costs}


def _columns(rows: list[dict[str, float | None]]) -> dict[str, npt.NDArray[np.float64]]:
    """Columns in the order in which the rows first name them; None becomes NaN."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([row.get(name) for row in rows], dtype=np.float64) for name in names}


def _uniform(widths: npt.NDArray[np.int16], header: Header) -> npt.NDArray[np.bool_]:
    result = np.ones(len(widths), dtype=np.bool_)
    for of_weights in (True, False):
        picked = [index for index, site in enumerate(header.widths) if is_weight(site) is of_weights and site not in header.fixed]
        if picked:
            result &= (widths[:, picked] == widths[:, picked[:1]]).all(axis=1)
    return result
