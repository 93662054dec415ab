"""Everything that the report of a run shows, as one value."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from hwsearch.data.dataset import manifest_hash
from hwsearch.errors import UserError
from hwsearch.experiment import Fidelity, Split
from hwsearch.files.reading import read_json
from hwsearch.metrics.evaluation import Summary, read_figures, summarise
from hwsearch.results.candidates import CandidateTable, read_every_fidelity
from hwsearch.results.query import column_values, query
from hwsearch.results.status import VolumePoint, read_status
from hwsearch.search.experiment_space import experiment_space
from hwsearch.search.objectives import QUALITY, SIZE
from hwsearch.search.pareto import best_rows, non_dominated
from hwsearch.sensitivity.estimate import kept_tables
from hwsearch.sensitivity.table import SensitivityTable
from hwsearch.workflow.caller import SILENT, Listener
from hwsearch.workflow.choose import chosen_candidate, within_limits
from hwsearch.workflow.listening import Listening, listen
from hwsearch.workflow.network_costs import LayerCosts, network_costs
from hwsearch.workflow.runs import Run

MOST_VALUES = 50_000
"""Values of candidates in a report, over rows and columns, so that the file stays small. The best candidates are kept."""

FEWEST_ROWS = 50
"""At least so many candidates at each fidelity are kept, however many columns there are."""

MOST_DETAILED = 300
"""Number of candidates with the costs of their layers. The front comes first."""

MOST_HEARD = 4
"""Number of candidates to listen to."""

LARGEST_FIGURES = 64 * 2**20
"""Larger files of the run folder, in bytes, are not looked at for figures."""

_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class Evaluated:
    """Figures of one system on the test mixtures of the run.

    Attributes:
        system: its name, such as `candidate 20`, with the run or the fidelity if it is another one.
        file: where the figures are from.
        summaries: one for each angle bin, then one for all mixtures.
    """

    system: str
    file: Path
    summaries: Sequence[Summary]


@dataclass(frozen=True, eq=False)
class Report:
    """What a run has found.

    Attributes:
        folder: the run folder.
        made: when the report was made, UTC.
        tables: the candidates at each fidelity, from cheap to expensive; the front is that of the last.
        left_out: number of candidates at a fidelity that are not in its table, because there are too many.
        limits: `search.limits`.
        chosen: the candidate that the main job exports; None if none is within the limits.
        costs: costs by layer, for each target.
        sensitivities: the kept tables.
        curves: hypervolume over candidates and time, at each fidelity.
        listening: sound; None if there is none.
        evaluations: figures by angle.
        warnings: what could not be shown, and why.
    """

    name: str
    folder: Path
    made: datetime
    tables: Sequence[CandidateTable]
    left_out: Mapping[Fidelity, int]
    limits: Mapping[str, float]
    chosen: int | None
    costs: Sequence[LayerCosts] = ()
    sensitivities: Sequence[SensitivityTable] = ()
    curves: Mapping[Fidelity, Sequence[VolumePoint]] | None = None
    listening: Listening | None = None
    evaluations: Sequence[Evaluated] = ()
    warnings: Sequence[str] = ()

    @property
    def main(self) -> CandidateTable:
        """The candidates at the highest fidelity."""
        return self.tables[-1]


def make_report(run: Run, figures: Sequence[Path] = (), listener: Listener = SILENT) -> Report:
    """Collect what a run has found. What cannot be shown, such as sound without its data, becomes a warning.

    Args:
        run: the run folder, opened at the highest fidelity.
        figures: files of `hwsearch evaluate --output`, besides those in the run folder.
        listener: hears of the warnings.

    Raises:
        UserError: nothing is scored yet, the record is damaged, or a file of `figures` is not of this run's test mixtures.
    """
    workspace = run.workspace
    every = read_every_fidelity(workspace.folder)
    if not every:
        raise UserError(f"{workspace.folder}: no candidate is scored yet; wanted at least one to report on")
    chosen = chosen_candidate(run)
    width = sum(len(table.columns) for table in every)
    tables = [_best(table, max(FEWEST_ROWS, MOST_VALUES // width), chosen) for table in every]
    evaluations = [_named_figures(run, path) for path in figures]
    warnings: list[str] = []

    def tried(what: str, step: Callable[[], _T]) -> _T | None:
        try:
            return step()
        except UserError as reason:
            warnings.append(f"no {what}: {reason}")
            listener.said(f"warning: the report shows no {what}: {reason}")
            return None

    heard = heard_candidates(run, chosen)
    detailed = _detailed(run, chosen, [number for number, _ in heard])
    space = tried("sensitivities", lambda: experiment_space(workspace.experiment))
    given = {path.resolve() for path in figures}
    files = [path for path in _kept_figures(workspace.folder) if path.resolve() not in given]
    kept = [each for path in files if (each := tried("results by angle", partial(_named_figures, run, path)))]
    return Report(
        name=workspace.experiment.name,
        folder=workspace.folder,
        made=datetime.now(UTC),
        tables=tables,
        left_out={table.fidelity: len(table) - len(kept) for table, kept in zip(every, tables, strict=True)},
        limits=workspace.experiment.search.limits,
        chosen=chosen,
        costs=tried("costs of layers", lambda: network_costs(run, detailed)) or (),
        sensitivities=(space and tried("sensitivities", lambda: kept_tables(workspace, space.free_sites))) or (),
        curves=tried("hypervolume", lambda: {rung.fidelity: rung.curve for rung in read_status(workspace.folder).rungs}),
        listening=tried("sound", lambda: listen(run, heard)),
        evaluations=[*kept, *evaluations],
        warnings=warnings,
    )


def heard_candidates(run: Run, chosen: int | None) -> list[tuple[int, str]]:
    """Choose the candidates to listen to, each with the reason: the exported one and the ends of the front first."""
    table, limits = run.table, run.workspace.experiment.search.limits
    front = query(table, within_limits(limits))
    if len(front) == 0:  # nothing is within the limits, or nothing has a value of every objective
        front = query(table) if len(query(table)) else table
    found: dict[int, str] = {}
    if chosen is not None and chosen in table.candidate:
        found[chosen] = "for export"
    found.setdefault(int(front.candidate[front.columns[SIZE].argmin()]), "smallest of the front")
    found.setdefault(int(front.candidate[front.columns[QUALITY].argmax()]), "best SI-SNR of the front")
    for objective in table.objectives:
        if objective.column not in (QUALITY, SIZE):
            order = np.argsort(column_values(front, objective.column))
            end = order[0] if objective.direction == "minimize" else order[-1]
            found.setdefault(int(front.candidate[end]), f"best {objective.column} of the front")
    found.setdefault(int(front.candidate[len(front) // 2]), "middle of the front")
    return list(found.items())[:MOST_HEARD]


def _best(table: CandidateTable, most: int, chosen: int | None) -> CandidateTable:
    """Keep the front, the best of the others, the uniform ones and the chosen one, in the order in which they were scored."""
    if len(table) <= most:
        return table
    values = np.stack([column_values(table, objective.column) for objective in table.objectives], axis=1)
    directions = [objective.direction for objective in table.objectives]
    kept = table.uniform | (table.candidate == chosen) | non_dominated(values, directions)
    kept[best_rows(values, directions, most)] = True
    return table.take(kept)


def _detailed(run: Run, chosen: int | None, heard: Sequence[int]) -> list[int]:
    """Order candidates by how likely someone looks at their layers, and return the first ones."""
    table = run.table
    uniform = table.candidate[table.uniform].tolist()
    first = [*([] if chosen is None else [chosen]), *heard, *query(table).candidate.tolist(), *uniform]
    known = set(table.candidate.tolist())
    rest = query(table, only_front=False).candidate.tolist()
    return [number for number in dict.fromkeys((*first, *rest)) if number in known][:MOST_DETAILED]


def _kept_figures(folder: Path) -> list[Path]:
    """Find the files of figures in the run folder. Other JSON files there hold none."""
    files = (path for path in sorted(folder.glob("*.json")) if path.is_file())
    return [path for path in files if path.stat().st_size <= LARGEST_FIGURES and _made_by(path) is not None]


def _made_by(path: Path) -> Mapping[str, object] | None:
    """Return what figures were made by; None if the file holds no figures."""
    try:
        content = read_json(path, "figures")
    except UserError:
        return None
    made_by = content.get("made_by") if isinstance(content, dict) and "utterances" in content else None
    return made_by if isinstance(made_by, dict) else None


def _named_figures(run: Run, path: Path) -> Evaluated:
    """Read figures, and refuse those of other mixtures."""
    results, made_by = read_figures(path), _made_by(path) or {}
    workspace, experiment = run.workspace, run.workspace.experiment
    if Split.TEST not in experiment.data.mixtures.count:
        raise UserError(f"{path}: experiment '{experiment.name}' makes no test mixtures; wanted no figures of any")
    if made_by.get("test_sha256") != manifest_hash(workspace.data_folder, Split.TEST):
        raise UserError(f"{path}: measured on other test mixtures than those of '{workspace.folder}'; wanted figures of these")
    return Evaluated(
        _system_name(run, made_by) or path.stem, path, summarise(results, experiment.evaluation.angle_bins_deg, experiment.seed)
    )


def _system_name(run: Run, made_by: Mapping[str, object]) -> str:
    """Name a system so that candidates of other runs and fidelities are told apart."""
    system, experiment, fidelity = (str(made_by.get(key) or "") for key in ("system", "experiment", "fidelity"))
    other = f" of {experiment}" if experiment and experiment != run.workspace.experiment.name else ""
    trained = f" at '{fidelity}'" if fidelity and fidelity != run.table.fidelity.value else ""
    return system and f"{system}{other}{trained}"
