"""The candidates of a search at one fidelity, as a table of columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hwsearch.errors import UserError
from hwsearch.experiment import Fidelity
from hwsearch.search.objectives import QUALITY, Objective
from hwsearch.search.record import REFERENCE, Failed, Header, Scored, read_record
from hwsearch.separator.allocation import BitAllocation, is_weight
from hwsearch.separator.configuration import Configuration

DROP = "drop_db"
"""Quality lost against the full-precision network, dB: the network's `si_snr_improvement_db` minus the candidate's."""

BLOCKS_LEFT_OUT, CHANNELS_KEPT = "blocks_left_out", "channels_kept"
"""Number of blocks that a candidate leaves out, and the mean share of the channels that groups outside these blocks keep; NaN if
there are no such groups."""

_BLOCK = ".kept"
"""What the names of blocks end with (`network.blocks.KEPT`, whose module imports torch, which is slow to load)."""


@dataclass(frozen=True, eq=False)
class CandidateTable:
    """Candidates scored at one fidelity, one row each, in the order in which they were scored. The reference is left out.

    Shapes: N candidates, S sites, O options.
    """

    sites: tuple[str, ...]
    fixed: frozenset[str]
    """Sites that the experiment fixes by pattern."""
    objectives: tuple[Objective, ...]
    fidelity: Fidelity
    candidate: npt.NDArray[np.int64]
    """[N], number of the candidate."""
    strategy: npt.NDArray[np.str_]
    """[N], strategy that proposed the candidate."""
    uniform: npt.NDArray[np.bool_]
    """[N], whether all weights have one width and all activations have one; sites that a pattern fixes do not count."""
    widths: npt.NDArray[np.int16]
    """[N, S], bit-width of every site; 0 where it is left out."""
    options: tuple[tuple[str, int], ...]
    """What may be left out, and how much of it is the whole."""
    kept: npt.NDArray[np.int64]
    """[N, O], what is kept of every option. What lies in a block that is left out counts as whole."""
    columns: dict[str, npt.NDArray[np.float64]]
    """[N] each: metrics, costs and `drop_db`; NaN where a candidate has none."""
    reference: dict[str, float]
    """Metrics and costs of the full-precision network; empty until it is scored."""
    failures: dict[int, str]
    """Reason why a candidate failed at this fidelity, by its number."""
    weights: dict[int, str]
    """File of a trained candidate's weights, by its number."""

    def __len__(self) -> int:
        return len(self.candidate)

    def configuration(self, row: int) -> Configuration:
        """Return the configuration of a row."""
        widths = zip(self.sites, self.widths[row].tolist(), strict=True)
        kept = zip(self.options, self.kept[row].tolist(), strict=True)
        structure = tuple((name, count) for (name, whole), count in kept if count != whole)
        return Configuration(BitAllocation(tuple((site, bits) for site, bits in widths if bits)), structure)

    def take(self, rows: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> "CandidateTable":
        """Return a table of the given rows, chosen by index (in that order) or by mask."""
        return replace(
            self,
            candidate=self.candidate[rows],
            strategy=self.strategy[rows],
            uniform=self.uniform[rows],
            widths=self.widths[rows],
            kept=self.kept[rows],
            columns={name: values[rows] for name, values in self.columns.items()},
        )


def read_candidates(folder: Path, fidelity: Fidelity | None = None) -> CandidateTable:
    """Read the candidates of a run folder, also while the search runs.

    By default these are the scores at the highest fidelity at which the search has scored a candidate. Scores at different
    fidelities are never mixed.

    Raises:
        UserError: no record there, a damaged one (names file and line), or nothing scored at the fidelity asked for.
    """
    header, iterator = read_record(folder)
    events = [event for event in iterator if isinstance(event, Scored | Failed)]
    there = {event.fidelity for event in events if event.candidate != REFERENCE and isinstance(event, Scored)}
    if fidelity is None:
        fidelity = max(there, key=list(Fidelity).index, default=events[0].fidelity if events else Fidelity.POST_TRAINING)
    elif fidelity not in there:
        known = ", ".join(f"'{known.value}'" for known in Fidelity if known in there) or "nothing yet"
        raise UserError(f"{folder}: nothing was scored at fidelity '{fidelity.value}'; it has {known}")
    return _table(header, [event for event in events if event.fidelity is fidelity], fidelity)


def read_every_fidelity(folder: Path) -> list[CandidateTable]:
    """Read the candidates of a run folder at every fidelity at which one was scored, from cheap to expensive.

    Raises:
        UserError: no record there, or a damaged one (names file and line).
    """
    header, iterator = read_record(folder)
    events: dict[Fidelity, list[Scored | Failed]] = {}
    for event in iterator:
        if isinstance(event, Scored | Failed):
            events.setdefault(event.fidelity, []).append(event)
    tables = [_table(header, events[fidelity], fidelity) for fidelity in Fidelity if fidelity in events]
    return [table for table in tables if len(table)]


def read_without_training(folder: Path, table: CandidateTable) -> CandidateTable:
    """Read the scores that candidates of a run folder have without training, on the same mixtures.

    Candidates without such scores are left out, and so are all if the table itself holds these scores.

    Raises:
        UserError: no record there, or a damaged one (names file and line).
    """
    header, events = read_record(folder)
    fidelity = table.fidelity.without_training
    wanted = set() if fidelity is table.fidelity else {REFERENCE, *table.candidate.tolist()}
    found = [event for event in events if isinstance(event, Scored) and event.fidelity is fidelity and event.candidate in wanted]
    return _table(header, found, fidelity)


def _table(header: Header, events: Sequence[Scored | Failed], fidelity: Fidelity) -> CandidateTable:
    every = [event for event in events if isinstance(event, Scored)]
    scored = [event for event in every if event.candidate != REFERENCE]
    of_reference = [values for event in every if event.candidate == REFERENCE for values in (event.metrics, event.costs)]
    reference = {name: value for values in of_reference for name, value in values.items() if value is not None}
    sites = tuple(header.widths)
    widths = np.array([[event.allocation.get(site, 0) for site in sites] for event in scored], dtype=np.int16)
    widths = widths.reshape(len(scored), len(sites))
    options = tuple((name, values[-1]) for name, values in header.options.items())
    kept = np.array([[event.structure.get(*option) for option in options] for event in scored], np.int64)
    kept = kept.reshape(len(scored), len(options))
    columns = _columns([{**event.metrics, **event.costs} for event in scored]) | _left_out(options, kept, header.inside)
    if QUALITY in columns:
        columns[DROP] = reference.get(QUALITY, np.nan) - columns[QUALITY]
    return CandidateTable(
        sites=sites,
        fixed=frozenset(header.fixed),
        objectives=header.objectives,
        fidelity=fidelity,
        candidate=np.array([event.candidate for event in scored], dtype=np.int64),
        strategy=np.array([event.strategy for event in scored], dtype=np.str_),
        uniform=_uniform(widths, header) & (kept == [whole for _, whole in options]).all(axis=1),
        widths=widths,
        options=options,
        kept=kept,
        columns=columns,
        reference=reference,
        failures={event.candidate: event.reason for event in events if isinstance(event, Failed)},
        weights={event.candidate: event.weights for event in scored if event.weights is not None},
    )


def _columns(rows: list[dict[str, float | None]]) -> dict[str, npt.NDArray[np.float64]]:
    """Collect columns, in the order in which the rows first name them. None becomes NaN."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([row.get(name) for row in rows], dtype=np.float64) for name in names}


def _left_out(
    options: Sequence[tuple[str, int]], kept: npt.NDArray[np.int64], inside: Mapping[str, str]
) -> dict[str, npt.NDArray[np.float64]]:
    """Say how much candidates leave out, if anything may be left out."""
    if not options:
        return {}
    names = [name for name, _ in options]
    block = np.array([name.endswith(_BLOCK) for name in names])
    shares = kept / np.array([whole for _, whole in options])
    found = {BLOCKS_LEFT_OUT: (shares[:, block] == 0).sum(axis=1).astype(np.float64)}
    if block.all():
        return found
    for place, name in enumerate(names):
        if name in inside:
            shares[shares[:, names.index(inside[name])] == 0, place] = np.nan
    channels = shares[:, ~block]
    there = (~np.isnan(channels)).sum(axis=1)
    mean = np.divide(np.nansum(channels, axis=1), there, out=np.full(len(channels), np.nan), where=there > 0)
    return found | {CHANNELS_KEPT: mean}


def _uniform(widths: npt.NDArray[np.int16], header: Header) -> npt.NDArray[np.bool_]:
    result = np.ones(len(widths), dtype=np.bool_)
    for of_weights in (True, False):
        picked = [index for index, site in enumerate(header.widths) if is_weight(site) is of_weights and site not in header.fixed]
        if picked:
            result &= (widths[:, picked] == widths[:, picked[:1]]).all(axis=1)
    return result
