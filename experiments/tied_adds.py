"""What tied scales cost before any training: what each sum adds shares one scale (`quantization.tied_adds`).

    OMP_NUM_THREADS=1 python experiments/tied_adds.py [--experiment FILE --runs-dir DIR --output FILE]

Wants the experiment's data (`hwsearch data build`). Weights and activations have 8 bits, the trunk 16 or 8. With and without
ties, the base is calibrated anew and separates all test mixtures. The cost is the SI-SNR without ties less that with them: mean,
95 % interval and paired permutation test over mixtures.

Writes experiments/results/tied_adds.json and prints a table in Markdown.
"""

import argparse
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from before_training import scores, summary
from numpy.typing import NDArray
from scoring_speed import processor

import hwsearch
from hwsearch.data.dataset import load_mixture, manifest_hash, open_dataset
from hwsearch.experiment import FLOAT_BITS, Experiment, Split, load_experiment, with_search
from hwsearch.files.writing import atomic_write_json
from hwsearch.metrics.statistics import paired_permutation_test
from hwsearch.search.mixture_batches import Example, mixture_batches
from hwsearch.separator.allocation import BitAllocation, uniform
from hwsearch.separator.fast import FastNetwork
from hwsearch.separator.prepare import PreparedBase, prepare_base
from hwsearch.workspace import Workspace

TRUNKS = (16, 8)
WEIGHTS = ACTIVATIONS = 8
RESULT = Path(__file__).parent / "results" / "tied_adds.json"

Scores = NDArray[np.float64]


def improvements(experiment: Experiment, runs: Path, examples: list[Example], trunk: int, *, tied: bool) -> Scores:
    """SI-SNR improvement of every mixture in dB, [full precision, quantized]."""
    workspace = Workspace(runs, experiment)
    quantization = experiment.quantization.model_copy(update={"tied_adds": tied})
    changed = with_search(experiment.model_copy(update={"quantization": quantization}), {"trunk_bits": [trunk]})
    cache = runs / "tied_adds" / f"calibration-{trunk}-{'tied' if tied else 'untied'}.json"
    base: PreparedBase = prepare_base(changed, workspace.base_path, workspace.data_folder, cache, [WEIGHTS])
    network = FastNetwork(base.graph, base.calibration, base.quantization, weights=base.weights)
    batches = [mixture_batches(base.separator, [example]) for example in examples]
    widths: tuple[BitAllocation, ...] = (uniform(base.sites, FLOAT_BITS), uniform(base.sites, WEIGHTS, ACTIVATIONS, trunk))
    return np.stack([scores(base, batches, bits, network) for bits in widths])


def measure(experiment: Experiment, runs: Path) -> dict[str, Any]:
    """The cost of ties for each trunk."""
    data = Workspace(runs, experiment).data_folder
    examples = [Example(*load_mixture(data, mixture), mixture.target.doa_deg) for mixture in open_dataset(data, Split.TEST)]
    by_trunk = {}
    for trunk in TRUNKS:
        full, untied = improvements(experiment, runs, examples, trunk, tied=False)
        _, tied = improvements(experiment, runs, examples, trunk, tied=True)
        by_trunk[str(trunk)] = {
            "lost_db_untied": summary(full - untied),
            "lost_db_tied": summary(full - tied),
            "cost_db": summary(untied - tied),
            "p": paired_permutation_test(untied, tied, experiment.seed).p_value,
        }
    return {
        "experiment": experiment.name,
        "seed": experiment.seed,
        "data_manifest": manifest_hash(data, Split.TEST),
        "mixtures": len(examples),
        "weight_bits": WEIGHTS,
        "activation_bits": ACTIVATIONS,
        "by_trunk": by_trunk,
        "made_by": {
            "processor": processor(),
            "hwsearch": hwsearch.__version__,
            "threads": torch.get_num_threads(),
            "date": datetime.now(UTC).date().isoformat(),
        },
    }


def table(result: Mapping[str, Any]) -> str:
    """The losses against full precision and the cost of ties, in Markdown."""
    names = ("lost_db_untied", "lost_db_tied", "cost_db")
    lines = ["| trunk | lost without ties, dB | lost with ties, dB | cost of ties, dB | p |", "|---" * 5 + "|"]
    for trunk, found in result["by_trunk"].items():
        cells = (f"{cell['mean']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]" for cell in (found[name] for name in names))
        lines.append(f"| {trunk} | {' | '.join(cells)} | {found['p']:.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, default=Path(__file__).parent / "quickstart.toml")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(load_experiment(arguments.experiment), arguments.runs_dir)
    atomic_write_json(arguments.output, result)
    print(table(result))


if __name__ == "__main__":
    main()
