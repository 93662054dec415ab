"""Conv-TasNet through every step, from speech to a verified file and its figures on test mixtures.

    OMP_NUM_THREADS=2 python experiments/conv_tasnet.py [--runs-dir DIR --mixtures N --output FILE]

Runs the commands of experiments/conv_tasnet.toml: data, base, sensitivities, search, front and export, then the evaluation of
base and exported file with a paired test, and a separation. Each goes on where it stopped.

What is evaluated has a data section of its own, because every mixture depends on the whole section: more test mixtures in the
experiment would be other training data. The test speakers and their sentences are those of the experiment, the rooms are others.

Writes experiments/results/conv_tasnet.json and prints a table in Markdown.
"""

import argparse
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import soundfile
from scoring_speed import processor

from hwsearch.cli import commands
from hwsearch.data.dataset import load_mixture, manifest_hash, open_dataset
from hwsearch.experiment import Experiment, Split, load_experiment
from hwsearch.export.folder import EXPORT_FOLDER, VERIFICATION_FILE, WEIGHTS_FILE, graph_file
from hwsearch.files.reading import read_json
from hwsearch.files.writing import atomic_write_json
from hwsearch.metrics.si_snr import si_snr
from hwsearch.results.query import query, to_json
from hwsearch.search.record import versions_here
from hwsearch.separator.base import base_digest
from hwsearch.workflow.choose import chosen_candidate
from hwsearch.workflow.runs import read_run
from hwsearch.workspace import Workspace

EXPERIMENT = Path(__file__).parent / "conv_tasnet.toml"
RESULT = Path(__file__).parent / "results" / "conv_tasnet.json"
MIXTURES_PER_ROOM = 2


def command(*arguments: object) -> None:
    """A command of `hwsearch`."""
    commands([str(argument) for argument in arguments], prog_name="hwsearch", standalone_mode=False)


def testing(workspace: Workspace, mixtures: int) -> Workspace:
    """An experiment with so many test mixtures and no others, whose base is that of the run."""
    experiment = workspace.experiment
    counts = {"rooms": -(-mixtures // MIXTURES_PER_ROOM), "mixtures": mixtures}
    parts = {name: getattr(experiment.data, name).model_copy(update={"count": {Split.TEST: n}}) for name, n in counts.items()}
    changes = {
        "name": f"{experiment.name}-test",
        "base": str(workspace.base_path.resolve()),
        "data": experiment.data.model_copy(update=parts),
    }
    tested = Workspace(workspace.runs, experiment.model_copy(update=changes))
    tested.describe()
    return tested


def evaluated(tested: Workspace, model: Path) -> dict[str, Any]:
    """Figures of the base and of an exported file on the test mixtures, the latter with paired tests against the base."""
    figures = {name: tested.folder / f"{name}.json" for name in ("base", "exported")}
    command("evaluate", tested.folder, "--output", figures["base"])
    command("evaluate", tested.folder, "--model", model, "--output", figures["exported"], "--against", figures["base"])
    found = {name: read_json(path, "figures") for name, path in figures.items()}
    return {name: {key: content[key] for key in ("made_by", "summaries")} for name, content in found.items()}


def separated(tested: Workspace, model: Path) -> dict[str, Any]:
    """The first test mixture, separated from one file into another."""
    mixture, output = open_dataset(tested.data_folder, Split.TEST)[0], tested.folder / "separated.wav"
    command("separate", model, "--input", tested.data_folder / mixture.mixture_path, "--output", output)
    sound, target = load_mixture(tested.data_folder, mixture)
    speakers = soundfile.read(output, dtype="float32", always_2d=True)[0].T
    best = max(float(si_snr(speaker, target)) for speaker in speakers)
    improvement = best - float(si_snr(sound[0], target))
    return {"mixture": mixture.id, "speakers": len(speakers), "si_snr_improvement_db": improvement}


def measure(experiment: Experiment, runs: Path, mixtures: int) -> dict[str, Any]:
    """All that is written down."""
    workspace = Workspace(runs, experiment)
    command("run", EXPERIMENT, "--runs-dir", runs, "--workers", 0)
    run, export = read_run(workspace.folder), workspace.folder / EXPORT_FOLDER
    tested, model = testing(workspace, mixtures), export / graph_file("onnx")
    figures = evaluated(tested, model)
    return {
        "experiment": experiment.name,
        "experiment_digest": experiment.digest(),
        "seed": experiment.seed,
        "base_sha256": base_digest(workspace.base_path),
        "data_manifest": {
            "validation": manifest_hash(workspace.data_folder, Split.VALIDATION),
            "test": manifest_hash(tested.data_folder, Split.TEST),
        },
        "versions": versions_here() | {"onnxruntime": version("onnxruntime")},
        "processor": processor(),
        "n": mixtures,
        "on_test": figures,
        "candidate": chosen_candidate(run),
        "packed_bytes": (export / WEIGHTS_FILE).stat().st_size,
        "verification": read_json(export / VERIFICATION_FILE, "a verification"),
        "separated": separated(tested, model),
        "front": [
            {key: value for key, value in row.items() if not key.startswith("bits[")}
            for row in json.loads(to_json(query(run.table)))
        ],
    }


def table(result: Mapping[str, Any]) -> str:
    """The figures on all test mixtures, in Markdown."""
    lines = [f"| on {result['n']} test mixtures | SI-SNR improvement, dB | against the base, dB |", "|---|---|---|"]
    for name, found in result["on_test"].items():
        figure = found["summaries"][-1]["figures"]["si_snr_improvement_db"]
        test = found["made_by"]["against"].get("si_snr_improvement_db")
        against = "" if test is None else f"{test['difference']:+.2f} (p = {test['p_value']:.2g})"
        lines.append(f"| {name} | {figure['value']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}] | {against} |")
    kernels = result["verification"]["kernels"]
    counts = f"{kernels['integer_convolutions']} integer and {kernels['float_convolutions']} float convolutions"
    return "\n".join([*lines, "", f"Candidate {result['candidate']}: {result['packed_bytes']} bytes; {counts}."])


def main() -> None:
    """Parse, run, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--mixtures", type=int, default=100)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    result = measure(load_experiment(EXPERIMENT), arguments.runs_dir, arguments.mixtures)
    atomic_write_json(arguments.output, result)
    print(table(result))


if __name__ == "__main__":
    main()
