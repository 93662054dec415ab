"""What the choices of section `[qat]` win in quantization-aware training, and where training should start.

    OMP_NUM_THREADS=1 python experiments/training_recipe.py [--experiment FILE --runs-dir DIR --weights N ... --steps N]

Wants the experiment's data (`hwsearch data build`). One width for all weights (depthwise ones 8), activations of 8 bits, a trunk
of 16. Each variant changes one key, or what training starts from, and separates the same validation mixtures after training:

- `lost`: SI-SNR of full precision less that of the variant in dB, mean and 95 % interval over mixtures;
- `distance`: SI-SNR of the variant's estimates to those of full precision, in dB, the mean: less noisy than `lost`.

Differences of both to the defaults are tested by a paired permutation test; Holm's correction covers all variants of a width.
Rows are kept in the runs folder, so that an interrupted run goes on. Writes experiments/results/training_recipe.json and prints
a table in Markdown.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from before_training import allocation, holm, summary
from numpy.typing import NDArray
from scoring_speed import processor

import hwsearch
from hwsearch.data.dataset import load_mixture, manifest_hash, open_dataset
from hwsearch.data.example import Example
from hwsearch.experiment import FLOAT_BITS, Experiment, Split, load_experiment
from hwsearch.files.reading import digest, read_json
from hwsearch.files.writing import atomic_write_json
from hwsearch.metrics.si_snr import si_snr
from hwsearch.metrics.statistics import paired_permutation_test
from hwsearch.process.interrupts import interrupts_heard
from hwsearch.search.mixture_batches import MixtureBatch, improvements, mixture_batches
from hwsearch.separator.fast import KeptInput
from hwsearch.separator.prepare import PreparedBase, prepare_base
from hwsearch.separator.trained import TrainedState, initial_state, trained_mask_function
from hwsearch.training.pool import build_pool, load_pool
from hwsearch.training.qat import train_quantized
from hwsearch.workspace import Workspace

ACTIVATIONS, TRUNK = 8, 16
DEFAULTS = "defaults"
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    DEFAULTS: {},
    "examples 256": {"examples": 256},
    "examples 1024": {"examples": 1024},
    "half the learning rate": {"learning_rate": 0.5},
    "twice the learning rate": {"learning_rate": 2.0},
    "a tenth of the scales' rate": {"scale_learning_rate": 0.1},
    "three times the scales' rate": {"scale_learning_rate": 3.0},
    "start: second-order": {"start": {"rounding": "second-order", "bias_correction": True}},
    "start: centred": {"start": {"bias_correction": True, "centre_trunk": True}},
    "start: not equalised": {"start": {"equalise": False}},
    "target alone": {"distillation": 0.0},
    "teacher alone": {"distillation": 1.0},
    "block outputs": {"block_distillation": 1.0},
}
"""Changes to `[qat]`, with rates as factors of the defaults, or (`start`) to the `[quantization]` that training starts from."""
RATES = ("learning_rate", "scale_learning_rate")
START = {"rounding": "nearest", "bias_correction": False, "centre_trunk": False}
UNTRAINED = "untrained"
WEIGHTS = (3, 4, 2)
RESULT = Path(__file__).parent / "results" / "training_recipe.json"

Scores = NDArray[np.float64]


class Bench:
    """A base, its validation mixtures, and what full precision makes of them."""

    def __init__(self, experiment: Experiment, runs: Path, mixtures: int) -> None:
        self.experiment = experiment
        self.workspace = Workspace(runs, experiment)
        self.folder = runs / "training-recipe"
        self.folder.mkdir(parents=True, exist_ok=True)
        data = self.workspace.data_folder
        self.base = self._prepared({})
        chosen = open_dataset(data, Split.VALIDATION)[-mixtures:]
        examples = [Example(*load_mixture(data, mixture), mixture.target.doa_deg) for mixture in chosen]
        self.batches: list[MixtureBatch] = [batch for one in examples for batch in mixture_batches(self.base.separator, [one])]
        self.mixtures = len(examples)
        full = initial_state(self.base, allocation(self.base, FLOAT_BITS, FLOAT_BITS, FLOAT_BITS))
        self.full, self.estimates = self.separate(full)

    def _prepared(self, change: Mapping[str, Any]) -> PreparedBase:
        """The base with changes to `[quantization]`."""
        quantization = self.experiment.quantization.model_copy(update=change)
        experiment = self.experiment.model_copy(update={"quantization": quantization})
        cache = self.folder / f"calibration-{digest(dict(change))[:8]}.json"
        return prepare_base(experiment, self.workspace.base_path, self.workspace.data_folder, cache, WEIGHTS)

    def separate(self, state: TrainedState) -> tuple[Scores, list[NDArray[np.float32]]]:
        """SI-SNR improvement of every mixture, and its estimate."""
        function, estimates = trained_mask_function(self.base, state), list[NDArray[np.float32]]()

        def mask(kept: KeptInput) -> torch.Tensor:
            return function(kept.normalised)

        def heard(_: int, estimate: NDArray[np.float32]) -> None:
            estimates.append(estimate)

        scores = [improvements(self.base.separator, mask, [batch], heard) for batch in self.batches]
        return np.concatenate(scores), estimates

    def figures(self, variant: str, weights: int, steps: int) -> dict[str, Any]:
        """What a variant loses at a width, measured once."""
        change = dict(VARIANTS.get(variant, {}))
        start = change.pop("start", None)
        rates = {key: getattr(self.experiment.qat, key) * change.pop(key, 1.0) for key in RATES}
        qat = self.experiment.qat.model_copy(update=change | rates)
        name = digest({"variant": variant, "weights": weights, "steps": steps, "qat": qat.model_dump(), "n": self.mixtures})
        path = self.folder / f"{name[:16]}.json"
        if not path.is_file():
            state = initial_state(self.base, allocation(self.base, weights, ACTIVATIONS, TRUNK))
            if variant != UNTRAINED:
                workspace = Workspace(self.workspace.runs, self.experiment.model_copy(update={"qat": qat}))
                pool = load_pool(build_pool(workspace, 1, lambda _done, _total: None))
                # Without `to_train`, a base is trained as it is.
                base = self.base if start is None else replace(self._prepared(START | start), untrained=None)
                state = train_quantized(base, state.allocation, pool, qat, steps, self.experiment.seed)
            scores, estimates = self.separate(state)
            distance = [float(np.mean(si_snr(*pair))) for pair in zip(estimates, self.estimates, strict=True)]
            atomic_write_json(path, {"lost_db": (self.full - scores).tolist(), "distance_db": distance})
        return read_json(path, "figures of a variant")


def measure(bench: Bench, widths: Sequence[int], steps: int) -> dict[str, Any]:
    """The figures of all variants, and paired tests against the defaults."""
    by_width: dict[str, Any] = {}
    for weights in widths:
        found = {}
        for variant in (UNTRAINED, *VARIANTS):
            found[variant] = bench.figures(variant, weights, steps)
            means = {name: round(float(np.mean(values)), 3) for name, values in found[variant].items()}
            print(weights, variant, means, flush=True)
        others = [variant for variant in found if variant != DEFAULTS]
        rows: dict[str, dict[str, Any]] = {
            variant: {"lost_db": summary(np.array(row["lost_db"]))} for variant, row in found.items()
        }
        for metric in ("lost_db", "distance_db"):
            test = partial(paired_permutation_test, second=np.array(found[DEFAULTS][metric]), seed=bench.experiment.seed)
            p_values = holm([test(np.array(found[variant][metric])).p_value for variant in others])
            for variant, p in zip(others, p_values, strict=True):
                rows[variant][f"p_{metric}"] = p
        for variant, row in found.items():
            rows[variant]["distance_db"] = float(np.mean(row["distance_db"]))
        by_width[str(weights)] = rows
    return by_width


def table(by_width: Mapping[str, Any]) -> str:
    """Losses and distances in Markdown; a star marks a significant difference from the defaults."""
    lines = [f"| variant | {' | '.join(f'{width} bits: lost | distance' for width in by_width)} |"]
    lines.append("|---" * (2 * len(by_width) + 1) + "|")
    for variant in (UNTRAINED, *VARIANTS):
        cells = []
        for rows in by_width.values():
            row = rows[variant]
            lost, marks = row["lost_db"], ["*" if row.get(f"p_{each}", 1) < 0.05 else "" for each in ("lost_db", "distance_db")]
            cells += [f"{lost['mean']:.2f} [{lost['low']:.2f}, {lost['high']:.2f}]{marks[0]}"]
            cells += [f"{row['distance_db']:.2f}{marks[1]}"]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, default=Path(__file__).parent / "comparison.toml")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--weights", type=int, nargs="+", default=WEIGHTS, choices=WEIGHTS, help="widths in bits")
    parser.add_argument("--mixtures", type=int, default=96, help="validation mixtures, the last ones")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with interrupts_heard():
        bench = Bench(load_experiment(arguments.experiment), arguments.runs_dir, arguments.mixtures)
        by_width = measure(bench, arguments.weights, arguments.steps)
    made_by = {
        "processor": processor(),
        "hwsearch": hwsearch.__version__,
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    content = {
        "experiment": bench.experiment.name,
        "seed": bench.experiment.seed,
        "data_manifest": manifest_hash(bench.workspace.data_folder, Split.VALIDATION),
        "mixtures": bench.mixtures,
        "steps": arguments.steps,
        "qat": bench.experiment.qat.model_dump(mode="json"),
        "by_width": by_width,
        "made_by": made_by,
    }
    atomic_write_json(arguments.output, content)
    print(table(by_width))


if __name__ == "__main__":
    main()
