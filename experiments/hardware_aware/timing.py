"""The x86 winners in ONNX Runtime on this machine, beside the whole network at 8 bits and what the simulator expects."""

import math
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import hwsearch  # noqa: F401 - before ONNX Runtime, which reports to its makers where nobody has switched that off

# isort: split
import numpy as np
import onnxruntime
import torch
from bench import BITS, WHOLE_BITS, Bench
from searching import winners
from turns import in_turns

from hw_models.compile import compile_target
from hw_models.cost import evaluate
from hw_models.target import load_target
from hw_models.workload import bits_matrix
from hwsearch.data.dataset import load_mixture
from hwsearch.data.example import Example
from hwsearch.experiment import with_search
from hwsearch.export.description import INPUT, ExportDescription
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.onnx_export import export_onnx
from hwsearch.export.runtime import open_session
from hwsearch.export.saturation import kernels_saturate
from hwsearch.metrics.statistics import mean_interval
from hwsearch.search.costs import experiment_workload
from hwsearch.search.space import uniform_weights
from hwsearch.separator.configuration import Configuration
from hwsearch.separator.trained import trained_network

SIMULATED = "x86-onnxruntime"
"""The chip whose winners are timed."""


def timed(bench: Bench, seed: int, rounds: int) -> dict[str, Any]:
    """Time the winners of a seed, each once a round, in turns with the uniform 8-bit whole network."""
    whole = Configuration(uniform_weights(bench.space(BITS))[WHOLE_BITS])
    chosen = {"whole, 8 bits": (BITS, whole)}
    for mode in ("bits", "structure", "both"):
        for winner in winners(bench, mode, SIMULATED, seed):
            chosen[f"{mode}, {winner.level:g} dB"] = (mode, winner.configuration)
    target = "x86-onnxruntime-avx2" if kernels_saturate() else "x86-onnxruntime"
    with tempfile.TemporaryDirectory() as folder:
        calls = {name: _call(bench, *each, Path(folder)) for name, each in chosen.items()}
    seconds = in_turns(calls, rounds)
    expected = {name: _expected_ms(bench, *each, target) for name, each in chosen.items()}
    first, rows = next(iter(chosen)), []
    for name, own in seconds.items():
        ratio = mean_interval(np.log(np.array(seconds[first]) / np.array(own)))
        ends = (ratio.value, ratio.low, ratio.high)
        speed_up = [math.nan if value is None else math.exp(value) for value in ends]
        foreseen = expected[first] / expected[name]
        rows.append(
            {
                "name": name,
                "median_ms": 1e3 * float(np.median(own)),
                "expected_ms": expected[name],
                "speed_up": speed_up,
                "expected_speed_up": foreseen,
                "error_percent": 100 * (foreseen / speed_up[0] - 1),
            }
        )
    return {"seed": seed, "rounds": rounds, "target": target, "onnxruntime": onnxruntime.__version__, "rows": rows}


def markdown(found: Mapping[str, Any]) -> str:
    """Write the table."""
    lines = [
        f"**ONNX Runtime {found['onnxruntime']}, one thread, {found['rounds']} rounds; expected by `{found['target']}`**\n",
        "| network | ms | expected ms | times as fast as the whole at 8 bits | expected | error |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        ratio = "{:.2f} [{:.2f}, {:.2f}]".format(*row["speed_up"])
        lines.append(
            f"| {row['name']} | {row['median_ms']:.2f} | {row['expected_ms']:.2f} | {ratio} | {row['expected_speed_up']:.2f} | "
            f"{row['error_percent']:+.0f} % |"
        )
    return "\n".join(lines) + "\n"


def _call(bench: Bench, mode: str, configuration: Configuration, folder: Path) -> Callable[[], object]:
    """Export a configuration with the weights of the shared network, which do not matter, and return what runs the file."""
    kept = bench.networks(mode).at(configuration.kept)
    if kept.shared is None:
        raise ValueError("wanted a shared network")
    network, front_end = trained_network(kept.base, kept.shared.at(configuration.allocation)), kept.base.separator.front_end
    exported = ExportedNetwork(network, front_end).eval()
    description = ExportDescription.of(network.graph, network.allocation, front_end, kept.base.base_sha256)
    path, mixture = folder / "model.onnx", bench.test[0]
    export_onnx(exported, path, description)
    sound = load_mixture(bench.workspace(mode).data_folder, mixture)
    with torch.no_grad():
        features = exported.raw(Example(*sound, mixture.target.doa_deg)).numpy()
    return partial(open_session(path.read_bytes()).run, None, {INPUT: features})


def _expected_ms(bench: Bench, mode: str, configuration: Configuration, target: str) -> float:
    experiment = bench.workspace(mode).experiment
    experiment = with_search(experiment, {"utterance_seconds": experiment.data.mixtures.seconds})
    workload = experiment_workload(experiment, configuration.kept or None)
    bits = bits_matrix(workload, [configuration.allocation.by_site])
    return float(evaluate(compile_target(load_target(target), workload), bits).latency_ms[0])
