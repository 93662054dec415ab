"""Times the sensitivity methods together, and the exact fronts of their sums, on the reference system's network at six widths.

    python experiments/sensitivity_speed.py [--workers 2] [--methods kl,gradient] [--mixtures 4] [--seconds 8]

The network of `paper.toml` (98 weight and 131 activation sites; the reference system counts 224) has random weights and the
batch-norm statistics that mixtures of noise give it; the mixtures are made here, too, so nothing but this repository is needed.
They are as many and as long as the experiment file says. What is timed is what a search does: one `estimate.ensure` of all
methods, its jobs on Ray workers of one thread each (or in this process, with no workers), results kept on disk.

Wall seconds contain the start of Ray and of its workers. On a busy machine they say little: the processor seconds of the jobs,
summed over workers, stand beside them, by kind of result; kinds that share their passes share the seconds equally. Writes
experiments/results/sensitivity_speed.json and prints a table in Markdown.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import soundfile as sf
import torch
from plane_wave_mixtures import plane_wave_mixture
from scoring_speed import processor
from torch import nn

from hwsearch.data.arrays import microphone_array
from hwsearch.data.dataset import Mixture, Talker, format_mixture, manifest_path
from hwsearch.data.example import Example
from hwsearch.experiment import Experiment, Split, load_experiment
from hwsearch.files.reading import file_digest
from hwsearch.files.writing import atomic_write_json, atomic_write_text
from hwsearch.search.costs import experiment_workload
from hwsearch.search.exact.front import exact_front, front_at, supported_front
from hwsearch.search.exact.problem import AllocationProblem, additive_cost
from hwsearch.sensitivity.cache import JOBS_FILE
from hwsearch.sensitivity.estimate import DEFAULT_METHODS, ensure, parse_methods, sensitivity_folder
from hwsearch.sensitivity.table import SensitivityTable
from hwsearch.separator.allocation import is_weight
from hwsearch.separator.base import BaseDescription, save_base
from hwsearch.separator.prepare import prepare_base
from hwsearch.separator.separator import Separator, build_separator
from hwsearch.separator.untrained import untrained_sites
from hwsearch.workspace import Workspace

WEIGHT_WIDTHS = (2, 3, 4, 5, 6, 8)
ACTIVATION_WIDTHS = (4, 5, 6, 7, 8, 32)
HEAD_STD = 0.02
"""Standard deviation of the mask's random weights. With it the estimate has sound and depends on every layer."""

STATISTICS_MIXTURES = 2
BUDGETS = 8
REPEATS = 3
COST = "bytes"

T = TypeVar("T")


@dataclass(frozen=True)
class KindTime:
    """What results of a kind took.

    Attributes:
        kind: of `hwsearch.sensitivity.jobs.Kind`.
        processor_seconds: of their jobs, summed over workers.
        results: how many: one for each mixture, or for a trace for each site.
    """

    kind: str
    processor_seconds: float
    results: int


def random_separator(experiment: Experiment, examples: Sequence[Example]) -> Separator:
    """A separator whose weights are random and whose statistics are those of the examples."""
    torch.manual_seed(experiment.seed)
    separator = build_separator(experiment.separator, microphone_array(experiment.data.array), experiment.data.sample_rate)
    network = separator.network
    nn.init.normal_(network.mask_head.weight, 0.0, HEAD_STD)
    with torch.no_grad():
        features = torch.cat(
            [
                separator.analyse(torch.from_numpy(one.mixture)[None], torch.tensor([one.doa_deg])).normalised
                for one in examples[:STATISTICS_MIXTURES]
            ]
        )
        separator.front_end.feature_mean.copy_(features.mean(dim=(0, 2)))
        separator.front_end.feature_scale.copy_(1 / features.std(dim=(0, 2)).clamp_min(1e-3))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.momentum = 1.0  # the statistics of this one batch
        network.train()
        network(separator.front_end.normalise(features))
    return separator.eval()


def write_mixtures(folder: Path, experiment: Experiment, examples: Sequence[Example]) -> None:
    """A data set of validation mixtures."""
    array, rate = microphone_array(experiment.data.array), experiment.data.sample_rate
    split = manifest_path(folder, Split.VALIDATION).parent
    split.mkdir(parents=True)
    lines = []
    for number, example in enumerate(examples):
        name = f"validation-{number:05d}"
        paths = [f"{split.name}/{name}-{kind}.wav" for kind in ("mixture", "target")]
        for path, sound in zip(paths, (example.mixture.T, example.target), strict=True):
            sf.write(folder / path, sound, rate, subtype="FLOAT")
        samples = len(example.target)
        talker = Talker("noise", "noise", None, (1.0, 1.0, 1.0), example.doa_deg, 0, samples, whole=True)
        mixture = Mixture(
            id=name,
            made_from="0" * 64,
            sample_rate=rate,
            samples=samples,
            array=array.setting,
            microphones=array.microphones,
            room=0,
            room_size_m=(3.0, 3.0, 3.0),
            array_centre_m=(1.5, 1.5, 1.5),
            t60_s=0.01,
            t60_measured_s=None,
            target=talker,
            interferer=talker,
            angle_deg=0.0,
            overlap_drawn=1.0,
            overlap=1.0,
            sir_db=0.0,
            noise_snr_db=None,
            target_kind="reverberant",
            mixture_path=paths[0],
            mixture_sha256=file_digest(folder / paths[0]),
            target_path=paths[1],
            target_sha256=file_digest(folder / paths[1]),
        )
        lines.append(format_mixture(mixture) + "\n")
    atomic_write_text(manifest_path(folder, Split.VALIDATION), "".join(lines))


def make_workspace(runs: Path, mixtures: int | None, seconds: float | None) -> Workspace:
    """The experiment of `paper.toml` with a random base and mixtures of noise, ready for `ensure`."""
    experiment = load_experiment(Path(__file__).parent / "paper.toml")
    wanted = experiment.sensitivity.mixtures if mixtures is None else mixtures
    sensitivity = experiment.sensitivity.model_copy(update={"mixtures": wanted})
    experiment = experiment.model_copy(update={"base": str(runs / "random.safetensors"), "sensitivity": sensitivity})
    array, rate = microphone_array(experiment.data.array), experiment.data.sample_rate
    length = experiment.data.mixtures.seconds if seconds is None else seconds
    examples = [plane_wave_mixture(length, array, rate, seed) for seed in range(wanted)]
    workspace = Workspace(runs, experiment)
    description = BaseDescription(
        sample_rate=rate, array=experiment.data.array, separator=experiment.separator, made_by={"weights": "random"}
    )
    save_base(workspace.base_path, random_separator(experiment, examples), description)
    write_mixtures(workspace.data_folder, experiment, examples)
    return workspace


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What it returns, and its wall seconds."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def fewest(work: Callable[[], T]) -> tuple[T, float]:
    """What it returns, and the fewest processor seconds that it took of `REPEATS` times."""
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        result = work()
        seconds.append(time.process_time() - start)
    return result, min(seconds)


def time_kinds(workspace: Workspace) -> list[KindTime]:
    """What is in the journal, by kind."""
    path = sensitivity_folder(workspace) / JOBS_FILE
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    seconds: dict[str, list[float]] = {}
    for line in lines:
        seconds.setdefault(line["kind"], []).append(line["seconds"])
    return [KindTime(kind, sum(found), len(found)) for kind, found in seconds.items()]


def print_progress(done: int, total: int) -> None:
    """On one line."""
    print(f"\r{100 * done // max(1, total)}%", end="", file=sys.stderr, flush=True)


def time_front(experiment: Experiment, table: SensitivityTable, activations: tuple[int, ...]) -> dict[str, Any]:
    """Times the exact fronts of a table's sum against the bytes of all weights and activations.

    Args:
        experiment: its network.
        table: the loss.
        activations: the widths that activations may take.
    """
    workload = experiment_workload(experiment)
    values = {f"{layer.name}.weight": layer.weight_count for layer in workload.weight_layers}
    values |= {site: channels * workload.frames for site, channels in workload.site_channels.items()}
    widths = tuple((site, WEIGHT_WIDTHS if is_weight(site) else activations) for site in table.sites)
    charges = {site: {bits: values[site] * bits / 8 for bits in options} for site, options in widths}
    loss = np.zeros((len(widths), max(len(options) for _, options in widths)))
    for row, (_, options) in enumerate(widths):
        loss[row, : len(options)] = table.value[row, [table.widths.index(bits) for bits in options]].clip(min=0.0)
    problem = AllocationProblem(widths, loss, (additive_cost(COST, widths, charges),))
    hull, hull_seconds = fewest(lambda: supported_front(problem, COST))
    budgets = np.geomspace(hull.costs[0], hull.costs[-1], BUDGETS + 2)[1:-1].tolist()
    _, at_seconds = fewest(lambda: front_at(problem, COST, budgets))
    whole, whole_seconds = fewest(lambda: exact_front(problem, COST))
    return {
        "free_sites": sum(len(options) > 1 for _, options in widths),
        "hull_seconds": hull_seconds,
        "hull_allocations": len(hull.costs),
        "budgets_seconds": at_seconds,
        "whole_front_seconds": whole_seconds,
        "whole_front_allocations": len(whole.costs),
    }


def report(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    sites = f"{result['weight_sites']} weight and {result['activation_sites']} activation sites at 6 widths"
    spent = f"{result['wall_seconds']:.0f} s, of jobs {result['processor_seconds']:.0f} processor seconds"
    lines = [
        f"{sites}, {result['mixtures']} mixtures of {result['seconds_per_mixture']:g} s, {result['workers']} workers: {spent}",
        "",
        "| kind | processor seconds, all workers | results |",
        "|---|---|---|",
        *(f"| {row['kind']} | {row['processor_seconds']:.1f} | {row['results']} |" for row in result["kinds"]),
        "",
        f"| front of | free sites | hull | optimum at {BUDGETS} costs | whole front |",
        "|---|---|---|---|---|",
    ]
    for front in result["fronts"]:
        cells = [
            front["method"],
            front["free_sites"],
            f"{front['hull_seconds']:.3f} s, {front['hull_allocations']}",
            f"{front['budgets_seconds']:.3f} s",
            f"{front['whole_front_seconds']:.3f} s, {front['whole_front_allocations']}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Time the methods together, then the fronts of their tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--methods", default=",".join(DEFAULT_METHODS))
    parser.add_argument("--mixtures", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "sensitivity_speed.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    methods = parse_methods(arguments.methods.split(","))
    with tempfile.TemporaryDirectory() as folder:
        workspace = make_workspace(Path(folder), arguments.mixtures, arguments.seconds)
        experiment = workspace.experiment
        candidates = tuple((site, WEIGHT_WIDTHS) for site in untrained_sites(experiment).weights) + tuple(
            (site, ACTIVATION_WIDTHS) for site in untrained_sites(experiment).activations
        )
        cache = workspace.folder / "calibration.json"
        _, calibration_seconds = timed(lambda: prepare_base(experiment, workspace.base_path, workspace.data_folder, cache))
        tables, wall_seconds = timed(
            lambda: ensure(workspace, methods, candidates, workers=arguments.workers, progress=print_progress)
        )
        kinds = time_kinds(workspace)
    length = arguments.seconds or experiment.data.mixtures.seconds
    result = {
        "made_by": {"processor": processor(), "torch": version("torch"), "ray": version("ray")},
        "workers": arguments.workers,
        "mixtures": experiment.sensitivity.mixtures,
        "seconds_per_mixture": length,
        "weight_sites": len(untrained_sites(experiment).weights),
        "activation_sites": len(untrained_sites(experiment).activations),
        "sensitivity": experiment.sensitivity.model_dump(mode="json"),
        "calibration_seconds": calibration_seconds,
        "methods": [str(method) for method in methods],
        "wall_seconds": wall_seconds,
        "processor_seconds": sum(row.processor_seconds for row in kinds),
        "kinds": [vars(row) for row in kinds],
        "fronts": [
            {"method": str(method), **time_front(experiment, table, activations)}
            for method, table in tables.items()
            for activations in ((8,), ACTIVATION_WIDTHS)
        ],
    }
    atomic_write_json(arguments.output, result)
    print(report(result))


if __name__ == "__main__":
    main()
