"""What 8-bit activations lose before any training, by the width of the residual trunk.

    OMP_NUM_THREADS=2 python experiments/trunk_bits.py [--experiment FILE --runs-dir DIR --mixtures N --rounds N --output FILE]

Needs the experiment's data (`hwsearch data build`). Every allocation separates the same test mixtures, without training. The loss
is the SI-SNR of full precision minus that of the allocation: its mean and 95% interval over the mixtures. A paired permutation
test compares two trunks.

The allocation with 8-bit weights is also exported to ONNX with a trunk of 8 and of 16 bits, and verified. ONNX Runtime runs the
two files in turns on one thread and one test mixture. Times are those of the thread's clock.

Writes experiments/results/trunk_bits.json and prints a table in Markdown.
"""

import argparse
import os
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import hwsearch  # before ONNX Runtime, which reports to its makers where nobody has switched that off

# isort: split
import numpy as np
import onnxruntime
import torch
from before_training import NEAREST
from numpy.typing import NDArray
from scipy import stats
from scoring_speed import processor
from turns import in_turns

from hwsearch.data.dataset import load_mixture, manifest_hash, open_dataset
from hwsearch.data.example import Example
from hwsearch.experiment import FLOAT_BITS, Experiment, Split, load_experiment, with_search
from hwsearch.export.candidate import export_candidate
from hwsearch.export.description import INPUT
from hwsearch.export.folder import VERIFICATION_FILE, graph_file
from hwsearch.export.runtime import open_session
from hwsearch.files.reading import read_json
from hwsearch.files.writing import atomic_write_json
from hwsearch.metrics.statistics import mean_interval, paired_permutation_test
from hwsearch.process.interrupts import checkpoint
from hwsearch.search.mixture_batches import improvements, mixture_batches
from hwsearch.separator.allocation import BitAllocation, uniform
from hwsearch.separator.fast import FastNetwork
from hwsearch.separator.prepare import PreparedBase, prepare_base
from hwsearch.workspace import Workspace

TRUNKS = (8, 16, FLOAT_BITS)
WEIGHTS = (FLOAT_BITS, 8, 4)
ACTIVATIONS = 8
EXPORTED_WEIGHTS, EXPORTED_TRUNKS = 8, (8, 16)
VERIFICATION_MIXTURES = 4
RESULT = Path(__file__).parent / "results" / "trunk_bits.json"

Scores = NDArray[np.float64]


def scores(base: PreparedBase, examples: list[Example], bits: BitAllocation) -> Scores:
    """SI-SNR improvement of every mixture in dB."""
    network = FastNetwork(base.graph, base.calibration, base.quantization, weights=base.weights).mask_function(bits)
    found = []
    for example in examples:
        checkpoint()
        found.append(improvements(base.separator, network, mixture_batches(base.separator, [example])))
    return np.concatenate(found)


def prepared(experiment: Experiment, runs: Path, trunk: int) -> PreparedBase:
    """The experiment's base, its trunk carried in so many bits, and its weights rounded to the nearest integers."""
    workspace = Workspace(runs, experiment)
    cache = runs / "trunk_bits" / f"calibration-{trunk}.json"
    quantization = experiment.quantization.model_copy(update=NEAREST)
    changed = with_search(experiment.model_copy(update={"quantization": quantization}), {"trunk_bits": [trunk]})
    return prepare_base(changed, workspace.base_path, workspace.data_folder, cache)


def measure(experiment: Experiment, runs: Path, mixtures: int) -> dict[str, Any]:
    """Losses by weight width and trunk, and the paired tests between trunks."""
    data = Workspace(runs, experiment).data_folder
    examples = [
        Example(*load_mixture(data, mixture), mixture.target.doa_deg) for mixture in open_dataset(data, Split.TEST)[:mixtures]
    ]
    lost: dict[int, dict[int, Scores]] = {weights: {} for weights in WEIGHTS}
    for trunk in TRUNKS:
        base = prepared(experiment, runs, trunk)
        full = scores(base, examples, uniform(base.sites, FLOAT_BITS))
        for weights in WEIGHTS:
            lost[weights][trunk] = full - scores(base, examples, uniform(base.sites, weights, ACTIVATIONS, trunk))
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


def measure_exports(experiment: Experiment, runs: Path, rounds: int) -> dict[str, Any]:
    """Verification and milliseconds of one inference of the exported files, by trunk."""
    data = Workspace(runs, experiment).data_folder
    examples = [
        Example(*load_mixture(data, mixture), mixture.target.doa_deg)
        for mixture in open_dataset(data, Split.TEST)[:VERIFICATION_MIXTURES]
    ]
    verified, sessions = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for trunk in EXPORTED_TRUNKS:
            base, output = prepared(experiment, runs, trunk), Path(folder) / str(trunk)
            bits = uniform(base.sites, EXPORTED_WEIGHTS, ACTIVATIONS, trunk)
            export_candidate(base, bits, examples, output, "onnx")
            verified[trunk] = read_json(output / VERIFICATION_FILE, "a verification")
            sessions[trunk] = open_session((output / graph_file("onnx")).read_bytes())
    first = examples[0]
    with torch.no_grad():
        features = base.separator.front_end.raw(torch.from_numpy(first.mixture)[None], torch.tensor([first.doa_deg])).numpy()
    load = os.getloadavg()[0]
    calls = {trunk: partial(session.run, None, {INPUT: features}) for trunk, session in sessions.items()}
    milliseconds = {trunk: 1e3 * np.array(seconds) for trunk, seconds in in_turns(calls, rounds).items()}
    return {
        "weight_bits": EXPORTED_WEIGHTS,
        "by_trunk": {
            str(trunk): {"verification": verified[trunk], "ms": _median(milliseconds[trunk])} for trunk in EXPORTED_TRUNKS
        },
        "times_as_long_with_16": _median(milliseconds[16] / milliseconds[8]),
        "frames": features.shape[-1],
        "rounds": rounds,
        "made_by": {
            "processor": processor(),
            "hwsearch": hwsearch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "threads": 1,
            "load": load,
            "cores": os.cpu_count(),
            "date": datetime.now(UTC).date().isoformat(),
        },
    }


def _median(values: Scores) -> dict[str, float]:
    """The median and its 95% interval, by order statistics."""
    ordered = np.sort(values)
    left_out = max(int(stats.binom.ppf(0.025, len(values), 0.5)) - 1, 0)
    return {"median": float(np.median(values)), "low": float(ordered[left_out]), "high": float(ordered[-1 - left_out])}


def _summary(values: Scores) -> dict[str, float | None]:
    estimate = mean_interval(values)
    return {"mean": estimate.value, "low": estimate.low, "high": estimate.high}


def table(result: Mapping[str, Any]) -> str:
    """The losses in Markdown."""
    lines = [f"| weights | {' | '.join(f'trunk {trunk}' for trunk in TRUNKS)} |", "|---" * (len(TRUNKS) + 1) + "|"]
    for weights, row in result["lost_db"].items():
        cells = (f"{cell['mean']:.2f} [{cell['low']:.2f}, {cell['high']:.2f}]" for cell in row.values())
        lines.append(f"| {weights} | {' | '.join(cells)} |")
    export = result["export"]
    lines += [
        "",
        "| trunk of the file | integer convolutions | float convolutions | SI-SNR to Brevitas, dB | ms |",
        "|---" * 5 + "|",
    ]
    for trunk, found in export["by_trunk"].items():
        kernels, ms = found["verification"]["kernels"], found["ms"]
        counts = f"{kernels['integer_convolutions']} | {kernels['float_convolutions']}"
        lines.append(f"| {trunk} | {counts} | {found['verification']['si_snr_db']:.1f} | {_bracketed(ms)} |")
    lines += ["", f"Times as long with 16 bits: {_bracketed(export['times_as_long_with_16'])}"]
    return "\n".join(lines)


def _bracketed(found: Mapping[str, float]) -> str:
    return f"{found['median']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def main() -> None:
    """Parse, measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, default=Path(__file__).parent / "comparison.toml")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--mixtures", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    experiment = load_experiment(arguments.experiment)
    export = measure_exports(experiment, arguments.runs_dir, arguments.rounds)
    result = measure(experiment, arguments.runs_dir, arguments.mixtures) | {"export": export}
    atomic_write_json(arguments.output, result)
    print(table(result))


if __name__ == "__main__":
    main()
