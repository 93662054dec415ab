"""What 8-bit activations lose before any training, by the width in which the residual trunk is carried.

    OMP_NUM_THREADS=2 python experiments/trunk_bits.py [--experiment FILE --runs-dir DIR --mixtures N]

Wants the experiment's data (`hwsearch data build`). Every allocation separates the same test mixtures with nothing trained. The
loss is the SI-SNR of full precision less that of the allocation, mean and 95% interval over mixtures. Two trunks are compared by
a paired permutation test. Writes experiments/results/trunk_bits.json and prints a table in Markdown.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsearch.data.dataset import load_mixture, manifest_hash, open_dataset
from hwsearch.experiment import FLOAT_BITS, Experiment, Split, load_experiment, with_search
from hwsearch.files import atomic_write_json
from hwsearch.interrupts import checkpoint
from hwsearch.metrics.statistics import mean_interval, paired_permutation_test
from hwsearch.network.sites import Sites
from hwsearch.search.mixture_batches import Example, improvements, mixture_batches
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.fast import FastNetwork
from hwsearch.separator.prepare import PreparedBase, prepare_base
from hwsearch.workspace import Workspace

TRUNKS = (8, 16, FLOAT_BITS)
WEIGHTS = (FLOAT_BITS, 8, 4)
ACTIVATIONS = 8
RESULT = Path(__file__).parent / "results" / "trunk_bits.json"

Scores = NDArray[np.float64]


def allocation(sites: Sites, weights: int, activations: int, trunk: int) -> BitAllocation:
    """One width for all weights, one for what is carried on, one for all other activations."""
    widths = dict.fromkeys(sites.weights, weights) | dict.fromkeys(sites.activations, activations)
    return BitAllocation.of(widths | dict.fromkeys(sites.carried, trunk))


def scores(base: PreparedBase, examples: list[Example], bits: BitAllocation) -> Scores:
    """SI-SNR improvement of every mixture in dB."""
    network = FastNetwork(base.graph, base.calibration, base.quantization, scales=base.scales).mask_function(bits)
    found = []
    for example in examples:
        checkpoint()
        found.append(improvements(base.separator, network, mixture_batches(base.separator, [example])))
    return np.concatenate(found)


def measure(experiment: Experiment, runs: Path, mixtures: int) -> dict[str, Any]:
    """Losses by weight width and trunk, and the paired tests between trunks."""
    data = Workspace(runs, experiment).data_folder
    examples = [
        Example(*load_mixture(data, mixture), mixture.target.doa_deg) for mixture in open_dataset(data, Split.TEST)[:mixtures]
    ]
    lost: dict[int, dict[int, Scores]] = {weights: {} for weights in WEIGHTS}
    for trunk in TRUNKS:
        tried = with_search(experiment, {"trunk_bits": [trunk]})
        cache = runs / "trunk_bits" / f"calibration-{trunk}.json"
        base = prepare_base(tried, Workspace(runs, experiment).base_path, data, cache)
        full = scores(base, examples, allocation(base.sites, FLOAT_BITS, FLOAT_BITS, FLOAT_BITS))
        for weights in WEIGHTS:
            lost[weights][trunk] = full - scores(base, examples, allocation(base.sites, weights, ACTIVATIONS, trunk))
            print(f"weights {weights}, trunk {trunk}: {lost[weights][trunk].mean():.3f} dB", flush=True)
    return {
        "experiment": experiment.name,
        "seed": experiment.seed,
        "base_sha256": base.base_sha256,
        "data_manifest": manifest_hash(data, Split.TEST),
        "mixtures": len(examples),
        "activation_bits": ACTIVATIONS,
        "lost_db": {str(weights): {str(trunk): _summary(of) for trunk, of in row.items()} for weights, row in lost.items()},
        "p_16_against_8": {
            str(weights): paired_permutation_test(row[16], row[8], experiment.seed).p_value for weights, row in lost.items()
        },
    }


def _summary(values: Scores) -> dict[str, float | None]:
    estimate = mean_interval(values)
    return {"mean": estimate.value, "low": estimate.low, "high": estimate.high}


def table(result: Mapping[str, Any]) -> str:
    """The losses in Markdown."""
    lines = [f"| weights | {' | '.join(f'trunk {trunk}' for trunk in TRUNKS)} |", "|---" * (len(TRUNKS) + 1) + "|"]
    for weights, row in result["lost_db"].items():
        cells = (f"{cell['mean']:.2f} [{cell['low']:.2f}, {cell['high']:.2f}]" for cell in row.values())
        lines.append(f"| {weights} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, default=Path(__file__).parent / "comparison.toml")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--mixtures", type=int, default=60)
    arguments = parser.parse_args()
    result = measure(load_experiment(arguments.experiment), arguments.runs_dir, arguments.mixtures)
    atomic_write_json(RESULT, result)
    print(table(result))


if __name__ == "__main__":
    main()
