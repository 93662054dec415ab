"""Times the scorer against a plain loop over the Brevitas network, on the same mixtures and candidates, in one thread.

    OMP_NUM_THREADS=1 python experiments/scoring_speed.py [--experiment FILE --runs-dir DIR]

Without an experiment: the embedded base on mixtures of noise made in memory. With one whose data are built, its base and its
validation mixtures, too. The plain loop builds the Brevitas network for each candidate and runs it in eval mode; the scorer is
timed in floats, as it is by default, and in 8-bit integers. All score every candidate, one right after the other and taking turns
to begin, with the same synthesis and SI-SNR. Times are processor seconds, and leave out what the scorer keeps for all candidates:
quantized weights and the first layer's results, made before by a uniform candidate at each width.

Prints a table in Markdown and writes experiments/results/scoring_speed.json. Ratios are of mean times, with a 95% bootstrap
interval over candidates.
"""

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from plane_wave_mixtures import plane_wave_mixture
from torch import Tensor

from hwsearch.data.arrays import microphone_array
from hwsearch.data.dataset import load_mixture, open_dataset
from hwsearch.data.example import Example
from hwsearch.experiment import QuantizationConfig, Split, load_experiment
from hwsearch.files.writing import atomic_write_json
from hwsearch.network.sites import Sites
from hwsearch.search.mixture_batches import MixtureBatch, improvements, mixture_batches
from hwsearch.separator.allocation import BitAllocation, is_weight
from hwsearch.separator.base import EMBEDDED_BASE, base_digest, load_base
from hwsearch.separator.calibration import calibrate
from hwsearch.separator.fast import FastNetwork, KeptInput
from hwsearch.separator.integer import integers_are_fast
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.traced import traced
from hwsearch.workflow.training import prepare
from hwsearch.workspace import Workspace

SETTINGS = {
    "weights 2-8, activations 8": ((2, 3, 4, 5, 6, 7, 8), (8,)),
    "weights and activations 4-8": ((4, 5, 6, 7, 8), (4, 5, 6, 7, 8)),
}
"""Widths of weights, then of activations, that candidates are drawn from."""

SYNTHETIC_MIXTURES, SYNTHETIC_SECONDS = 8, 4.0
RESAMPLES = 2000
PLAIN = "brevitas loop"


@dataclass(frozen=True, eq=False)
class Case:
    """A base, and the examples that candidates are scored on."""

    name: str
    base: PreparedBase
    examples: Sequence[Example]


@dataclass(frozen=True, eq=False)
class Way:
    """One way to score.

    Attributes:
        network: what computes a candidate's masks; making it is part of the candidate's time.
        batches: the mixtures, as this way takes them.
    """

    network: Callable[[BitAllocation], Callable[[KeptInput], Tensor]]
    batches: Sequence[MixtureBatch]


@dataclass(frozen=True, eq=False)
class Timed:
    """One way's scoring of all candidates.

    Attributes:
        whole, forward: processor seconds of each candidate, all of it and the network's forward passes alone.
        scores: mean SI-SNR improvement of each candidate, dB.
    """

    whole: NDArray[np.float64]
    forward: NDArray[np.float64]
    scores: NDArray[np.float64]


def embedded_case() -> Case:
    """The base that ships, calibrated on mixtures of noise."""
    separator, description = load_base(EMBEDDED_BASE)
    array, rate = microphone_array(description.array), description.sample_rate
    examples = [plane_wave_mixture(SYNTHETIC_SECONDS, array, rate, seed) for seed in range(SYNTHETIC_MIXTURES)]
    graph = traced(separator)
    features = [batch.analysis.normalised for example in examples[:4] for batch in mixture_batches(separator, [example])]
    base = PreparedBase(separator, graph, calibrate(graph, features), QuantizationConfig(), base_digest(EMBEDDED_BASE))
    return Case("embedded", base, examples)


def experiment_case(file: Path, runs: Path) -> Case:
    """An experiment's base and the validation mixtures that its search scores on."""
    workspace = Workspace(runs, load_experiment(file))
    examples = []
    mixtures = open_dataset(workspace.data_folder, Split.VALIDATION)
    for mixture in mixtures[: workspace.experiment.search.validation_mixtures]:
        sound, target = load_mixture(workspace.data_folder, mixture)
        examples.append(Example(sound, target, mixture.target.doa_deg))
    return Case(workspace.experiment.name, prepare(workspace), examples)


def ways(case: Case) -> dict[str, Way]:
    """The plain loop and the scorer's ways, by name."""
    base = case.base

    def brevitas(allocation: BitAllocation) -> Callable[[KeptInput], Tensor]:
        network = build_quantized(base.graph, allocation, base.calibration, base.quantization)
        return lambda features: network(features.normalised)

    def scorer(*, integers: bool) -> Way:
        network = FastNetwork(base.graph, base.calibration, base.quantization, integers=integers)
        return Way(network.mask_function, mixture_batches(base.separator, case.examples))

    singles = [batch for example in case.examples for batch in mixture_batches(base.separator, [example])]
    found = {PLAIN: Way(brevitas, [MixtureBatch((i,), *_rest(batch)) for i, batch in enumerate(singles)])}
    found["scorer"] = scorer(integers=False)
    if integers_are_fast():
        found["scorer, 8-bit integers"] = scorer(integers=True)
    return found


def random_allocation(sites: Sites, widths: tuple[tuple[int, ...], tuple[int, ...]], rng: np.random.Generator) -> BitAllocation:
    """Every site at one of its widths."""
    drawn = ((site, int(rng.choice(widths[0] if is_weight(site) else widths[1]))) for site in sites.all)
    return BitAllocation(tuple(drawn))


def score(base: PreparedBase, way: Way, allocation: BitAllocation) -> tuple[float, float, float]:
    """Seconds of a candidate, those of its forward passes, and its score in dB."""
    forward = 0.0
    start = time.process_time()
    network = way.network(allocation)

    def timed(features: KeptInput) -> Tensor:
        nonlocal forward
        before = time.process_time()
        mask = network(features)
        forward += time.process_time() - before
        return mask

    mean = float(improvements(base.separator, timed, way.batches).mean())
    return time.process_time() - start, forward, mean


def measure(case: Case, widths: tuple[tuple[int, ...], tuple[int, ...]], candidates: int) -> dict[str, Timed]:
    """Score random candidates in every way."""
    rng = np.random.default_rng(0)
    sites = case.base.sites
    all_ways = ways(case)
    kept = [(bits, activation) for bits in widths[0] for activation in widths[1]]
    for way in list(all_ways.values())[1:]:
        for bits, activation in kept:
            every = ((site, bits if is_weight(site) else activation) for site in sites.all)
            score(case.base, way, BitAllocation(tuple(every)))
    results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in all_ways}
    names = list(all_ways)
    for number in range(candidates):
        allocation = random_allocation(sites, widths, rng)
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            results[name].append(score(case.base, all_ways[name], allocation))
    return {name: Timed(*np.array(rows).T) for name, rows in results.items()}


def ratio(plain: NDArray[np.float64], scorer: NDArray[np.float64]) -> dict[str, float]:
    """How many times faster, with a bootstrap interval over candidates."""
    drawn = np.random.default_rng(0).integers(len(plain), size=(RESAMPLES, len(plain)))
    low, high = np.quantile(plain[drawn].sum(axis=1) / scorer[drawn].sum(axis=1), [0.025, 0.975])
    return {"value": float(plain.sum() / scorer.sum()), "low": float(low), "high": float(high)}


def summary(case: Case, setting: str, found: dict[str, Timed]) -> list[dict[str, Any]]:
    """The rows of the table."""
    plain = found[PLAIN]
    seconds = sum(len(one.target) for one in case.examples) / case.base.separator.front_end.sample_rate
    rows = []
    for name, timed in found.items():
        difference = np.abs(timed.scores - plain.scores)
        rows.append(
            {
                "base": case.name,
                "base_sha256": case.base.base_sha256,
                "mixtures": len(case.examples),
                "seconds_of_sound": round(seconds, 2),
                "setting": setting,
                "way": name,
                "candidates": len(timed.whole),
                "candidates_per_second": float(1 / timed.whole.mean()),
                "seconds": timed.whole.tolist(),
                "forward_seconds": timed.forward.tolist(),
                "times_faster": ratio(plain.whole, timed.whole),
                "forward_times_faster": ratio(plain.forward, timed.forward),
                "score_difference_db": {"mean": float(difference.mean()), "largest": float(difference.max())},
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows in Markdown."""
    lines = [
        "| base | candidates | way | per second | times faster | network alone | score differs by (mean, largest) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        whole, forward, difference = row["times_faster"], row["forward_times_faster"], row["score_difference_db"]
        lines.append(
            f"| {row['base']}, {row['mixtures']} mixtures | {row['candidates']}, {row['setting']} | {row['way']} "
            f"| {row['candidates_per_second']:.2f} | {whole['value']:.1f} ({whole['low']:.1f} to {whole['high']:.1f}) "
            f"| {forward['value']:.1f} ({forward['low']:.1f} to {forward['high']:.1f}) "
            f"| {difference['mean']:.4f}, {difference['largest']:.4f} dB |"
        )
    return "\n".join(lines)


def processor() -> str:
    """The processor's name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _rest(batch: MixtureBatch) -> tuple[Any, ...]:
    return batch.analysis, batch.features, batch.targets, batch.unprocessed_db


def main() -> None:
    """Time the embedded base, and an experiment's if there is one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--experiment", type=Path)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--candidates", type=int, default=24)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "scoring_speed.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = [embedded_case()]
    if arguments.experiment is not None:
        cases.append(experiment_case(arguments.experiment, arguments.runs_dir))
    rows = [
        row
        for case in cases
        for setting, widths in SETTINGS.items()
        for row in summary(case, setting, measure(case, widths, arguments.candidates))
    ]
    made_by = {"processor": processor(), "threads": 1, "torch": version("torch"), "brevitas": version("brevitas")}
    atomic_write_json(arguments.output, {"made_by": made_by, "rows": rows})
    print(table(rows))


if __name__ == "__main__":
    main()
