"""Times networks without some blocks and channels in ONNX Runtime, beside what the simulator expects of them.

    python experiments/structure_speed.py

One thread. Weights have 8 or 4 bits, activations 8, a trunk 16. Networks take turns in every round, on the features of ten
seconds of noise; a speed-up is the geometric mean over the rounds of the whole network's time divided by a network's, with
Student's 95% interval. The simulator's target is the one with the kernels of this processor. Results with VNNI and without stand
side by side in experiments/results/structure_speed.json and .md, and a run replaces those of its own kind.
"""

import argparse
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import hwsearch  # noqa: F401 - before ONNX Runtime, which reports to its makers where nobody has switched that off

# isort: split
import numpy as np
import onnxruntime
import torch
from scoring_speed import processor
from turns import in_turns

from hw_models.compile import compile_target
from hw_models.cost import evaluate
from hw_models.target import load_target
from hw_models.workload import bits_matrix
from hwsearch.experiment import QuantizationConfig
from hwsearch.export.description import INPUT, ExportDescription
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.onnx_export import export_onnx
from hwsearch.export.runtime import open_session
from hwsearch.export.saturation import kernels_saturate
from hwsearch.files.reading import read_json
from hwsearch.files.writing import atomic_write_json, atomic_write_text
from hwsearch.metrics.statistics import mean_interval
from hwsearch.network.graph import Graph
from hwsearch.network.options import Options, find_options
from hwsearch.network.sites import find_sites, with_reads
from hwsearch.separator.allocation import BitAllocation, uniform
from hwsearch.separator.base import EMBEDDED_BASE, load_base
from hwsearch.separator.calibration import calibrate
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.separator import Separator
from hwsearch.separator.traced import traced
from hwsearch.separator.workload import build_workload

BASES = {"embedded base": EMBEDDED_BASE, "real-speech base": Path(__file__).parent / "bases" / "real_speech.safetensors"}
SECONDS = 10
WEIGHT_BITS = (8, 4)
DRAWN = 4
"""Random structures of each network."""


def structures(options: Options) -> dict[str, dict[str, int]]:
    """The structures to time, by name: of one kind each, and drawn ones."""
    counts = {group.name: len(group.classes) for group in options.groups}
    blocks = [block.name for block in options.blocks]
    found: dict[str, dict[str, int]] = {"everything": {}}
    for quarters in (3, 2, 1):
        found[f"{quarters}/4 of the channels"] = {name: quarters * count // 4 for name, count in counts.items()}
    found["every second block"] = dict.fromkeys(blocks[1::2], 0)
    found["every second block, 1/2 of the channels"] = found["every second block"] | found["2/4 of the channels"]
    random = np.random.default_rng(0)
    for number in range(1, DRAWN + 1):
        kept = {name: int(random.integers(1, 5)) * count // 4 for name, count in counts.items()}
        found[f"drawn {number}"] = kept | {name: int(random.integers(0, 2)) for name in blocks}
    return found


def exported(separator: Separator, graph: Graph, bits: int, path: Path) -> None:
    """Write the ONNX file of a graph, calibrated on noise."""
    noise = torch.randn(1, separator.front_end.inputs, 200, generator=torch.Generator().manual_seed(0))
    allocation = _allocation(graph, bits)
    quantized = build_quantized(graph, allocation, calibrate(graph, [noise]), QuantizationConfig())
    about = ExportDescription.of(graph, allocation, separator.front_end, "0" * 64)
    export_onnx(ExportedNetwork(quantized, separator.front_end).eval(), path, about)


def expected_ms(separator: Separator, graph: Graph, bits: int, frames: int, target: str) -> float:
    """The latency that the simulator charges."""
    front_end = separator.front_end
    channels, hop = {graph.inputs[0]: front_end.inputs}, front_end.frame_samples / front_end.sample_rate
    workload = build_workload(graph, find_sites(graph), channels, frames, hop, "separator", per_channel=True)
    matrix = bits_matrix(workload, [_allocation(graph, bits).by_site])
    return float(evaluate(compile_target(load_target(target), workload), matrix).latency_ms[0])


def _allocation(graph: Graph, bits: int) -> BitAllocation:
    return uniform(find_sites(graph), bits, 8, 16)


def measured(name: str, base: Path, rounds: int, folder: Path, target: str) -> list[dict[str, Any]]:
    """A row of the results for each width and structure of a base."""
    separator, _ = load_base(base)
    separator.eval()
    front_end = separator.front_end
    graph = with_reads(traced(separator), sums=True)
    generator = torch.Generator().manual_seed(0)
    sound = 0.1 * torch.randn(1, front_end.array.microphones, SECONDS * front_end.sample_rate, generator=generator)
    with torch.no_grad():
        raw = front_end.raw(sound, torch.tensor([60.0]))
    features, frames = raw.numpy(), raw.shape[-1]
    options = find_options(graph, {graph.inputs[0]: (front_end.inputs, frames)})
    calls: dict[tuple[int, str], Callable[[], object]] = {}
    expected: dict[tuple[int, str], float] = {}
    for bits in WEIGHT_BITS:
        for label, structure in structures(options).items():
            narrow, path = options.narrowed(graph, structure), folder / "model.onnx"
            exported(separator, narrow, bits, path)
            session = open_session(path.read_bytes())
            calls[bits, label] = partial(session.run, None, {INPUT: features})
            expected[bits, label] = expected_ms(separator, narrow, bits, frames, target)
    seconds = in_turns(calls, rounds)
    found = []
    for (bits, label), own in seconds.items():
        whole = seconds[bits, "everything"]
        ratio = mean_interval(np.log(np.array(whole) / np.array(own)))
        ends = (ratio.value, ratio.low, ratio.high)
        speed_up = [math.nan if value is None else math.exp(value) for value in ends]
        foreseen = expected[bits, "everything"] / expected[bits, label]
        found.append(
            {
                "separator": name,
                "weight_bits": bits,
                "kept": label,
                "median_ms": 1e3 * float(np.median(own)),
                "expected_ms": expected[bits, label],
                "speed_up": speed_up,
                "expected_speed_up": foreseen,
                "error_percent": 100 * (foreseen / speed_up[0] - 1),
            }
        )
    return found


def markdown(results: Mapping[str, Any]) -> str:
    """A table for each kind of kernels."""
    lines: list[str] = []
    for kernels, entry in sorted(results.items()):
        made = entry["made_by"]
        errors = [abs(row["error_percent"]) for row in entry["rows"] if row["kept"] != "everything"]
        setting = (
            f"{made['processor']}, ONNX Runtime {made['onnxruntime']}, one thread, {SECONDS} s of noise, {made['rounds']} rounds"
        )
        loaded = f"load {made['load']:.1f} on {made['cores']} cores, {made['date']}. In brackets: 95% intervals."
        summary = f"of {len(errors)} speed-ups the median error is {np.median(errors):.0f} %, the largest {max(errors):.0f} %."
        lines += [f"### {kernels}", "", f"{setting}; {loaded} Expected by `{entry['target']}`: {summary}", ""]
        lines += ["| separator | weights | kept | ms | expected ms | times as fast | expected | error |", "|---" * 8 + "|"]
        for row in entry["rows"]:
            ratio = "{:.2f} [{:.2f}, {:.2f}]".format(*row["speed_up"])
            times = f"{row['median_ms']:.2f} | {row['expected_ms']:.2f} | {ratio} | {row['expected_speed_up']:.2f}"
            name = f"{row['separator']} | {row['weight_bits']} bits | {row['kept']}"
            lines.append(f"| {name} | {times} | {row['error_percent']:+.0f} % |")
        lines.append("")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Time the embedded base and the real-speech base."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "structure_speed.json")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    saturates = kernels_saturate()
    target = "x86-onnxruntime-avx2" if saturates else "x86-onnxruntime"
    with tempfile.TemporaryDirectory() as name:
        rows = [row for base, path in BASES.items() for row in measured(base, path, given.rounds, Path(name), target)]
    made_by = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "rounds": given.rounds,
        "onnxruntime": onnxruntime.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }
    results = read_json(given.output, "results") if given.output.is_file() else {}
    results["AVX2 kernels" if saturates else "VNNI kernels"] = {"made_by": made_by, "target": target, "rows": rows}
    atomic_write_json(given.output, results)
    atomic_write_text(given.output.with_suffix(".md"), markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
