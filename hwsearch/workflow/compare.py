"""Several runs against each other: their fronts, the best of each at equal cost, and paired tests of these."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hwsearch.data.dataset import Mixture, load_mixture, open_dataset
from hwsearch.errors import UserError
from hwsearch.experiment import Split
from hwsearch.metrics.errors import MetricUnavailable
from hwsearch.metrics.evaluation import System, of_target
from hwsearch.metrics.quality import SI_SNR_IMPROVEMENT
from hwsearch.metrics.si_snr import si_snr
from hwsearch.metrics.statistics import PairedTest, paired_permutation_test
from hwsearch.results.candidates import CandidateTable
from hwsearch.results.query import cost_columns
from hwsearch.search.objectives import QUALITY, QUALITY_CI95, Direction
from hwsearch.search.pareto import non_dominated
from hwsearch.search.record import read_record
from hwsearch.workflow.caller import SILENT, Listener, Progress
from hwsearch.workflow.checks import VALIDATION, check_provenance
from hwsearch.workflow.evaluate import candidate_system
from hwsearch.workflow.runs import Run, open_candidate, read_run
from hwsearch.workflow.training import prepare

LEVELS = 5
"""Number of costs at which runs are compared, between the smallest that all reach and the largest on any front."""

DIGITS = 3
"""Significant digits of these costs."""

FEWEST = 2
"""A paired test wants so many mixtures at least."""


@dataclass(frozen=True)
class Best:
    """The best candidate of a run at a cost.

    Attributes:
        quality: SI-SNR improvement in dB on the run's validation mixtures.
        margin: half the width of its 95 % interval; None if unknown.
        cost: what the candidate costs.
    """

    candidate: int
    quality: float
    margin: float | None
    cost: float


@dataclass(frozen=True)
class Level:
    """The best candidate of each run that costs at most `limit`; None where a run has none."""

    limit: float
    best: tuple[Best | None, ...]


@dataclass(frozen=True)
class Tested:
    """A paired test between the best candidates of two runs at a level: second minus first, in dB of SI-SNR.

    Attributes:
        limit: cost of the level.
        runs: names of the first and the second run.
        candidates: their candidates.
        split: the mixtures that both were separated on.
    """

    limit: float
    runs: tuple[str, str]
    candidates: tuple[int, int]
    split: Split
    test: PairedTest


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs against each other.

    Attributes:
        names: of the runs.
        tables: their candidates at the highest fidelity of each.
        cost: the column that they are compared at.
        levels: with rising costs.
        tests: every run but the first against the first.
        untested: pairs of runs without a test, with the reason.
        notes: what makes the fronts less comparable.
    """

    names: tuple[str, ...]
    tables: tuple[CandidateTable, ...]
    cost: str
    levels: tuple[Level, ...]
    tests: tuple[Tested, ...]
    untested: Mapping[tuple[str, str], str]
    notes: tuple[str, ...]


def compare_runs(folders: Sequence[Path], cost: str, listener: Listener = SILENT) -> Comparison:
    """Compare runs at equal cost, each at its highest fidelity.

    The paired tests separate mixtures that two runs share, test mixtures if there are any, otherwise validation mixtures.

    Args:
        folders: at least two run folders.
        cost: a column that all runs have.
        listener: hears of separated mixtures.

    Raises:
        UserError: fewer than two runs, one named twice, one that is no run, or one without the cost.
    """
    if len(folders) < 2:
        raise UserError(f"{len(folders)} run; wanted at least two to compare")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("a run is named twice; wanted different ones")
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        _check_cost(run, cost)
    names = _names(folders)
    tables = tuple(run.table for run in runs)
    levels = tuple(Level(limit, tuple(_best(table, cost, limit) for table in tables)) for limit in _limits(tables, cost))
    bench = _Bench(runs)
    tests: list[Tested] = []
    untested: dict[tuple[str, str], str] = {}
    for second in range(1, len(runs)):
        pair = (names[0], names[second])
        try:
            tests += _tests(bench, (0, second), pair, levels, listener.progress("mixtures compared"))
        except UserError as reason:
            untested[pair] = str(reason)
    return Comparison(names, tables, cost, levels, tuple(tests), untested, tuple(_notes(runs, names)))


class _Bench:
    """Separates mixtures with candidates of several runs, each once."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self._systems: dict[tuple[int, int], System] = {}
        self._scores: dict[tuple[int, int, str, str], float] = {}

    def score(self, run: int, candidate: int, mixture: Mixture) -> float:
        """Compute the SI-SNR in dB of what a candidate makes of a mixture of its run.

        Raises:
            UserError: base, data or weights are missing, or not those of the search.
        """
        key = (run, candidate, mixture.mixture_sha256, mixture.target_sha256)
        if key not in self._scores:
            sound, target = load_mixture(self.runs[run].workspace.data_folder, mixture)
            estimate = of_target(self._system(run, candidate)(sound, mixture.doa_deg), target)
            try:
                self._scores[key] = float(si_snr(estimate, target))
            except MetricUnavailable:  # as in the search
                self._scores[key] = SI_SNR_IMPROVEMENT.worst
        return self._scores[key]

    def _system(self, run: int, candidate: int) -> System:
        if (run, candidate) not in self._systems:
            opened = open_candidate(self.runs[run], prepare(self.runs[run].workspace), candidate)
            self._systems[run, candidate] = candidate_system(opened.base, opened.configuration.allocation, opened.state)
        return self._systems[run, candidate]


def _tests(
    bench: _Bench, pair: tuple[int, int], names: tuple[str, str], levels: Sequence[Level], progress: Progress
) -> list[Tested]:
    """Test two runs at every level that both reach.

    Raises:
        UserError: they share no mixtures, or one of them cannot separate any more.
    """
    first, second = pair
    for run in pair:
        check_provenance(bench.runs[run].workspace)
    split, mixtures = _shared_mixtures(bench.runs[first], bench.runs[second])
    met = [(level.limit, mine, other) for level in levels if (mine := level.best[first]) and (other := level.best[second])]
    if not met:
        raise UserError("no cost is within reach of both")
    wanted = list(dict.fromkeys((run, best.candidate) for _, *both in met for run, best in zip(pair, both, strict=True)))
    scores: dict[tuple[int, int], list[float]] = {key: [] for key in wanted}
    for done, shared in enumerate(mixtures, start=1):
        for run, candidate in wanted:
            scores[run, candidate].append(bench.score(run, candidate, shared[pair.index(run)]))
        progress(done, len(mixtures))
    groups = [mixture.target.utterance for mixture, _ in mixtures]
    seed = bench.runs[first].workspace.experiment.seed

    def tested(mine: Best, other: Best) -> PairedTest:
        return paired_permutation_test(scores[second, other.candidate], scores[first, mine.candidate], seed, groups)

    return [Tested(limit, names, (a.candidate, b.candidate), split, tested(a, b)) for limit, a, b in met]


def _shared_mixtures(first: Run, second: Run) -> tuple[Split, list[tuple[Mixture, Mixture]]]:
    """Find the mixtures whose sound and target two runs share byte for byte.

    Raises:
        UserError: there are fewer than two test mixtures and fewer than two validation mixtures, or data are missing.
    """
    found: dict[str, int] = {}
    for split in (Split.TEST, Split.VALIDATION):
        if not all(split in run.workspace.experiment.data.mixtures.count for run in (first, second)):
            found[split.value] = 0
            continue
        mine, theirs = (
            {
                (mixture.mixture_sha256, mixture.target_sha256): mixture
                for mixture in open_dataset(run.workspace.data_folder, split)
            }
            for run in (first, second)
        )
        shared = [(mixture, theirs[key]) for key, mixture in mine.items() if key in theirs]
        if len(shared) >= FEWEST:
            return split, shared
        found[split.value] = len(shared)
    counts = " and ".join(f"{count} {split}" for split, count in found.items())
    raise UserError(f"they share {counts} mixtures; wanted at least {FEWEST} of one kind, with the same sound")


def _check_cost(run: Run, cost: str) -> None:
    table = run.table
    known = cost_columns(table)
    if cost not in known or not np.isfinite(table.columns[cost]).any():
        raise UserError(f"{run.workspace.folder}: no cost '{cost}'; wanted one of {', '.join(known)}")


def _names(folders: Sequence[Path]) -> tuple[str, ...]:
    """Name runs after their folders, or by their paths if two folders have the same name."""
    short = [folder.resolve().name for folder in folders]
    return tuple(short if len(set(short)) == len(short) else map(str, folders))


def _limits(tables: Sequence[CandidateTable], cost: str) -> list[float]:
    """Return costs from the smallest that all runs reach to the largest on any front, spaced evenly in ratio, rounded up."""
    fronts = [_front_costs(table, cost) for table in tables]
    low, high = max(min(front) for front in fronts), max(max(front) for front in fronts)
    spaced = np.geomspace(low, high, LEVELS) if 0 < low < high else np.array([low])
    return list(dict.fromkeys(map(_rounded_up, spaced.tolist())))


def _front_costs(table: CandidateTable, cost: str) -> list[float]:
    values = np.stack([table.columns[QUALITY], table.columns[cost]], axis=1)
    found: list[float] = table.columns[cost][non_dominated(values, [Direction.MAXIMIZE, Direction.MINIMIZE])].tolist()
    return found


def _rounded_up(value: float) -> float:
    if value == 0.0:
        return 0.0
    step = 10.0 ** (np.floor(np.log10(abs(value))) - DIGITS + 1)
    rounded = float(np.ceil(value / step) * step)
    return max(value, float(f"{rounded:.12g}"))


def _best(table: CandidateTable, cost: str, limit: float) -> Best | None:
    within = np.flatnonzero(table.columns[cost] <= limit)
    if not len(within):
        return None
    # Of equal qualities, the cheapest.
    row = int(within[np.lexsort((table.columns[cost][within], -table.columns[QUALITY][within]))[0]])
    margin = float(table.columns[QUALITY_CI95][row]) if QUALITY_CI95 in table.columns else np.nan
    quality = float(table.columns[QUALITY][row])
    return Best(int(table.candidate[row]), quality, None if np.isnan(margin) else margin, float(table.columns[cost][row]))


def _notes(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """Say where fronts differ in more than what was found."""

    def differing(of: Callable[[Run], str | None]) -> list[str]:
        return [name for name, run in zip(names, runs, strict=True) if of(run) != of(runs[0])]

    notes = []
    if others := differing(lambda run: read_record(run.workspace.folder)[0].provenance.get(VALIDATION)):
        notes.append(f"scored on other validation mixtures than {names[0]}: {', '.join(others)}; only paired tests compare them")
    if others := differing(lambda run: run.table.fidelity.value):
        fidelities = ", ".join(f"{name} at '{run.table.fidelity.value}'" for name, run in zip(names, runs, strict=True))
        notes.append(f"scored at different fidelities: {fidelities}")
    return notes
