"""How well cheap fidelities rank allocations, against long trainings of each allocation's own.

The allocations are random ones, as the shared network is trained on, and optima of two sensitivities, with 2 to 5 bits per weight
on average. All are scored on the same validation mixtures. Large allocations are better than small ones at every fidelity, which
any fidelity can tell; so each correlation is also given with the bytes held fixed (partial correlation).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from bench import POST_TRAINING, SHARED, Bench, Choice, Settings, bench_of
from exact import exact
from judging import trained
from numpy.typing import NDArray
from running import make_data, work_off
from scipy.stats import rankdata
from searches import measured

from hwsearch.files.reading import digest, read_json
from hwsearch.files.writing import atomic_write_json
from hwsearch.metrics.statistics import mean_interval
from hwsearch.search.mixture_batches import MixtureBatch, improvements
from hwsearch.search.priors import separable_loss
from hwsearch.sensitivity.estimate import read_table, table_path
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.fast import KeptInput
from hwsearch.separator.trained import trained_mask_function
from hwsearch.training.shared import SharedTraining

MEAN_BITS = (2.0, 5.0)
SOLVED_AT = (2.5, 3.0, 4.0)
RESAMPLES = 2000
BYTES = "bytes"
"""Ranks allocations by their size alone."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Fidelity:
    """How an allocation is scored: what it starts from, and the number of its own training steps."""

    start: str
    steps: int = 0

    def __str__(self) -> str:
        if not self.steps:
            return self.start
        return f"{self.steps} own steps" + (" from shared" if self.start == SHARED else "")


@dataclass(frozen=True)
class Measurement:
    """Sensitivities of a network, for the solved allocations."""

    kind: str

    def __str__(self) -> str:
        return f"sensitivities of the {self.kind} network"

    def do(self, bench: Bench) -> None:
        """Measure them."""
        measured(bench, self.kind)


@dataclass(frozen=True)
class Score:
    """One allocation at one fidelity."""

    number: int
    allocation: BitAllocation
    fidelity: Fidelity
    mixtures: int

    def __str__(self) -> str:
        return f"allocation {self.number}, {self.fidelity}"

    def path(self, bench: Bench) -> Path:
        """Return the file of the improvements of all mixtures."""
        choice = Choice(self.allocation, start=self.fidelity.start)
        return bench.folder / "correlations" / f"{bench.key(choice, 0, self.fidelity.steps)}-{self.mixtures}.json"

    def do(self, bench: Bench) -> None:
        """Train if the fidelity wants it, and score on validation mixtures."""
        path = self.path(bench)
        if path.is_file():
            return
        state = trained(bench, Choice(self.allocation, start=self.fidelity.start), 0, self.fidelity.steps)
        mask = trained_mask_function(bench.base(), state)

        def network(kept: KeptInput) -> Any:
            return mask(kept.normalised)

        found = improvements(bench.base().separator, network, _batches(bench, self.mixtures))
        atomic_write_json(path, {"si_snr_improvement_db": found.tolist()})


@lru_cache(maxsize=1)
def _batches(bench: Bench, mixtures: int) -> list[MixtureBatch]:
    """Analyse the validation mixtures once in each process."""
    return bench.validation(mixtures)


def fidelities(bench: Bench, reference_steps: int) -> tuple[Fidelity, ...]:
    """Return the fidelities that are compared; the last one is the reference."""
    own = (Fidelity(POST_TRAINING, steps) for steps in (bench.steps, reference_steps))
    return Fidelity(POST_TRAINING), Fidelity(SHARED), Fidelity(SHARED, bench.steps), *own


def allocations(bench: Bench, count: int) -> list[BitAllocation]:
    """Return optima at some sizes and random allocations, `count` in all, in an order in which every beginning holds both."""
    solved = []
    for kind in (POST_TRAINING, SHARED):
        kept = read_table(table_path(bench.workspaces[kind], "output-noise-ratio"))
        loss = separable_loss(kept, bench.space)
        solved += [exact(bench, loss, bits) for bits in SOLVED_AT]
    experiment = bench.experiment
    draws = SharedTraining(dict(bench.space.widths), bench.space.groups, experiment.shared, experiment.qat, seed=0, key="")
    found: list[BitAllocation] = []
    step = 1
    while len(found) < count:
        drawn = draws.allocation(step)
        step += 2  # the others are the narrowest and the widest
        if MEAN_BITS[0] <= bench.charge(drawn)[1] <= MEAN_BITS[1]:
            found.append(drawn)
        if len(found) % 4 == 3 and solved:
            found.append(solved.pop(0))
    return list(dict.fromkeys(found))[:count]


def run(settings: Settings, count: int, mixtures: int, reference_steps: int, workers: int) -> None:
    """Score what is missing."""
    bench = bench_of(settings)
    make_data(settings, workers)
    work_off(settings, [Measurement(SHARED), Measurement(POST_TRAINING)], workers)
    wanted = [
        Score(number, allocation, fidelity, mixtures)
        for number, allocation in enumerate(allocations(bench, count))
        for fidelity in fidelities(bench, reference_steps)
    ]
    work_off(settings, [one for one in wanted if not one.path(bench).is_file()], workers)


def report(settings: Settings, count: int, mixtures: int, reference_steps: int) -> dict[str, Any]:
    """Correlate each fidelity with the last one, over the allocations that are scored at all of them."""
    bench = bench_of(settings)
    ladder = fidelities(bench, reference_steps)
    rows: list[dict[str, Any]] = []
    if not bench.workspace.shared_path.is_file():
        return {"allocations": rows, "correlations": []}
    for number, allocation in enumerate(allocations(bench, count)):
        paths = [Score(number, allocation, fidelity, mixtures).path(bench) for fidelity in ladder]
        if all(path.is_file() for path in paths):
            scores = [float(np.mean(read_json(path, "scores")["si_snr_improvement_db"])) for path in paths]
            size, mean_bits = bench.charge(allocation)
            by_name = dict(zip(map(str, ladder), scores, strict=True))
            rows.append({"allocation": digest(allocation.to_json())[:12], "bytes": size, "mean_bits": mean_bits} | by_name)
    if len(rows) < 4:
        return {"allocations": rows, "correlations": []}
    columns = {name: np.array([row[name] for row in rows]) for name in (BYTES, *map(str, ladder))}
    return {
        "mixtures": mixtures,
        "reference": str(ladder[-1]),
        "allocations": rows,
        "correlations": [correlated(columns, name, str(ladder[-1])) for name in (BYTES, *map(str, ladder[:-1]))],
        "differences_db": {str(fidelity): difference(columns, str(fidelity), str(ladder[-1])) for fidelity in ladder[:-1]},
    }


def difference(columns: Mapping[str, Values], name: str, reference: str) -> list[float | None]:
    """Return how much more a fidelity reaches than the reference, the mean over allocations, with its 95 % interval."""
    found = mean_interval(columns[name] - columns[reference])
    return [found.value, found.low, found.high]


def correlated(columns: Mapping[str, Values], name: str, reference: str) -> dict[str, Any]:
    """Correlate a fidelity with the reference, with 95 % intervals by bootstrap over allocations."""
    found: dict[str, Any] = {"fidelity": name}
    table = np.stack([columns[name], columns[reference], columns[BYTES]])
    measures: dict[str, Callable[[Values], float]] = {"spearman": _plain(_spearman), "kendall": _plain(_kendall)}
    if name != BYTES:
        measures |= {"spearman at equal bytes": _partial(_spearman), "kendall at equal bytes": _partial(_kendall)}
    drawn = np.random.default_rng(0).integers(table.shape[1], size=(RESAMPLES, table.shape[1]))
    for label, measure in measures.items():
        resampled = [measure(table[:, chosen]) for chosen in drawn]
        low, high = np.nanquantile(resampled, [0.025, 0.975])
        found[label] = [measure(table), float(low), float(high)]
    return found


def _spearman(x: Values, y: Values) -> float:
    return _generalised(rankdata(x), rankdata(y), np.asarray)


def _kendall(x: Values, y: Values) -> float:
    return _generalised(x, y, np.sign)


def _generalised(x: Values, y: Values, of: Callable[[Values], Values]) -> float:
    """Correlate differences of pairs, or their signs (Daniels, Biometrika 33, 1944). SciPy is slow with few values."""
    first, second = of(x[:, None] - x), of(y[:, None] - y)
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / scale if scale > 0 else float("nan")


def _plain(measure: Callable[[Values, Values], float]) -> Callable[[Values], float]:
    return lambda table: measure(table[0], table[1])


def _partial(measure: Callable[[Values, Values], float]) -> Callable[[Values], float]:
    """Correlate the first two rows with the third one held fixed (Kendall, Biometrika 32, 1942; the same form for Spearman)."""

    def of(table: Values) -> float:
        xy, xz, yz = measure(table[0], table[1]), measure(table[0], table[2]), measure(table[1], table[2])
        rest = (1 - xz**2) * (1 - yz**2)
        return (xy - xz * yz) / float(np.sqrt(rest)) if rest > 0 else float("nan")

    return of


def table(content: Mapping[str, Any]) -> str:
    """Write the correlations as a table in Markdown."""
    found = content["correlations"]
    if not found:
        return f"Rank correlations: {len(content['allocations'])} allocations are scored at all fidelities; wanted 4.\n"
    labels = [label for label in found[-1] if label != "fidelity"]
    reference = content["reference"]
    lines = [
        f"Rank correlation to {reference}; {len(content['allocations'])} allocations, {content['mixtures']} validation mixtures;",
        f"beside it, SI-SNR in dB less that after {reference}, the mean over allocations; 95 % intervals",
        "",
        f"| fidelity | {' | '.join(labels)} | dB more than {reference} |",
        "|---" * (len(labels) + 2) + "|",
    ]
    for row in found:
        cells = [f"{row[label][0]:.2f} [{row[label][1]:.2f}, {row[label][2]:.2f}]" if label in row else "" for label in labels]
        more = content["differences_db"].get(row["fidelity"])
        cells.append("" if more is None else f"{more[0]:.2f} [{more[1]:.2f}, {more[2]:.2f}]")
        lines.append(f"| {row['fidelity']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
