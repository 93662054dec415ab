"""What quantization loses before any training, by the choices of section `[quantization]`.

    OMP_NUM_THREADS=1 python experiments/before_training.py [--experiment FILE --runs-dir DIR --mixtures N --output FILE]

Wants the experiment's data (`hwsearch data build`). Each variant of the section rounds the base anew and separates the same test
mixtures. Activations have 8 bits, weights those of the row, and depthwise weights at least 8. The loss is the SI-SNR of full
precision less that of the allocation, mean and 95 % interval over mixtures. Each variant is compared with `nearest` by a paired
permutation test; Holm's correction covers the tests of one trunk.

Writes experiments/results/before_training.json and prints a table in Markdown.
"""

import argparse
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scoring_speed import processor

import hwsearch
from hwsearch.data.dataset import load_mixture, manifest_hash, open_dataset
from hwsearch.data.example import Example
from hwsearch.experiment import FLOAT_BITS, Experiment, Split, load_experiment, with_search
from hwsearch.files.reading import digest
from hwsearch.files.writing import atomic_write_json
from hwsearch.metrics.statistics import mean_interval, paired_permutation_test
from hwsearch.process.interrupts import checkpoint
from hwsearch.search.mixture_batches import MixtureBatch, improvements, mixture_batches
from hwsearch.separator.allocation import BitAllocation, uniform
from hwsearch.separator.fast import FastNetwork
from hwsearch.separator.prepare import PreparedBase, prepare_base
from hwsearch.workspace import Workspace

NEAREST = {"rounding": "nearest", "bias_correction": False, "equalise": False, "centre_trunk": False}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "nearest": NEAREST,
    "bias_correction": NEAREST | {"bias_correction": True},
    "second-order": NEAREST | {"rounding": "second-order", "bias_correction": True},
    "equalise": NEAREST | {"equalise": True},
    "centre_trunk": NEAREST | {"bias_correction": True, "centre_trunk": True},
    "all": {"rounding": "second-order", "bias_correction": True, "equalise": True, "centre_trunk": True},
}
TRUNKS = (16, 8)
WEIGHTS = (FLOAT_BITS, 8, 4, 3, 2)
ACTIVATIONS = 8
RESULT = Path(__file__).parent / "results" / "before_training.json"

Scores = NDArray[np.float64]


def allocation(base: PreparedBase, weights: int, activations: int, trunk: int) -> BitAllocation:
    """One width for all weights, but at least 8 bits for depthwise ones; one for all activations, one for the trunk."""
    widths = uniform(base.sites, weights, activations, trunk).by_site
    depthwise = [operation.name for operation in base.graph.operations if getattr(operation, "groups", 1) > 1]
    return BitAllocation.of(widths | {f"{name}.weight": max(weights, 8) for name in depthwise})


def scores(base: PreparedBase, batches: list[list[MixtureBatch]], bits: BitAllocation, network: FastNetwork) -> Scores:
    """SI-SNR improvement of every mixture in dB."""
    mask, found = network.mask_function(bits), []
    for mixture in batches:
        checkpoint()
        found.append(improvements(base.separator, mask, mixture))
    return np.concatenate(found)


def lost_db(experiment: Experiment, runs: Path, examples: list[Example]) -> tuple[dict[int, Scores], dict[str, float]]:
    """Losses by width of the weights, and how long the base took to prepare."""
    workspace = Workspace(runs, experiment)
    trunk = max(experiment.search.trunk_bits or ())
    cache = runs / "before_training" / f"{trunk}-{digest(experiment.quantization.model_dump())[:8]}" / "calibration.json"
    start = time.process_time()
    widths = [bits for bits in WEIGHTS if bits != FLOAT_BITS]
    base = prepare_base(experiment, workspace.base_path, workspace.data_folder, cache, widths)
    seconds = time.process_time() - start
    batches = [mixture_batches(base.separator, [example]) for example in examples]
    network = FastNetwork(base.graph, base.calibration, base.quantization, weights=base.weights)
    full = scores(base, batches, allocation(base, FLOAT_BITS, FLOAT_BITS, FLOAT_BITS), network)
    lost = {bits: full - scores(base, batches, allocation(base, bits, ACTIVATIONS, trunk), network) for bits in WEIGHTS}
    return lost, {"prepared_s": round(seconds, 1), "full_precision_db": float(full.mean())}


def measure(experiment: Experiment, runs: Path, mixtures: int) -> dict[str, Any]:
    """Losses of all variants, and paired tests against `nearest`."""
    data = Workspace(runs, experiment).data_folder
    chosen = open_dataset(data, Split.TEST)[:mixtures]
    examples = [Example(*load_mixture(data, mixture), mixture.target.doa_deg) for mixture in chosen]
    result: dict[str, Any] = {}
    for trunk in TRUNKS:
        lost: dict[str, dict[int, Scores]] = {}
        facts = {}
        for name, section in VARIANTS.items():
            changed = experiment.model_copy(update={"quantization": experiment.quantization.model_copy(update=section)})
            lost[name], facts[name] = lost_db(with_search(changed, {"trunk_bits": [trunk]}), runs, examples)
            print(trunk, name, {bits: round(float(values.mean()), 3) for bits, values in lost[name].items()}, flush=True)
        tests = {
            (name, bits): paired_permutation_test(values, lost["nearest"][bits], experiment.seed).p_value
            for name, row in lost.items()
            for bits, values in row.items()
            if name != "nearest"
        }
        corrected = dict(zip(tests, holm(list(tests.values())), strict=True))
        result[str(trunk)] = {
            name: facts[name]
            | {"lost_db": {str(bits): summary(values) | {"p": corrected.get((name, bits))} for bits, values in row.items()}}
            for name, row in lost.items()
        }
    return {
        "experiment": experiment.name,
        "seed": experiment.seed,
        "data_manifest": manifest_hash(data, Split.TEST),
        "mixtures": len(examples),
        "activation_bits": ACTIVATIONS,
        "by_trunk": result,
        "made_by": {
            "processor": processor(),
            "hwsearch": hwsearch.__version__,
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "date": datetime.now(UTC).date().isoformat(),
        },
    }


def holm(p_values: list[float]) -> list[float]:
    """Correct p values for their number (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    order = np.argsort(p_values)
    steps = np.array(p_values)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in corrected]


def summary(values: Scores) -> dict[str, float | None]:
    """Mean and interval."""
    estimate = mean_interval(values)
    return {"mean": estimate.value, "low": estimate.low, "high": estimate.high}


def table(result: Mapping[str, Any]) -> str:
    """The losses in Markdown; a star marks a significant difference from `nearest`."""
    lines = []
    for trunk, variants in result["by_trunk"].items():
        lines += [f"Trunk of {trunk} bits:", "", f"| weights | {' | '.join(variants)} |", "|---" * (len(variants) + 1) + "|"]
        for bits in WEIGHTS:
            cells = [found["lost_db"][str(bits)] for found in variants.values()]
            shown = (
                f"{cell['mean']:.2f} [{cell['low']:.2f}, {cell['high']:.2f}]{'*' if (cell['p'] or 1) < 0.05 else ''}"
                for cell in cells
            )
            lines.append(f"| {'float' if bits == FLOAT_BITS else bits} | {' | '.join(shown)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, default=Path(__file__).parent / "comparison.toml")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--mixtures", type=int, default=60)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(load_experiment(arguments.experiment), arguments.runs_dir, arguments.mixtures)
    atomic_write_json(arguments.output, result)
    print(table(result))


if __name__ == "__main__":
    main()
