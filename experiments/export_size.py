"""Sizes of exported files by the width of the weights, and what loading them takes.

    python experiments/export_size.py

All weights have one width, activations have 8 bits. Sizes follow from the network and the widths, so no data are needed: grids
come from noise. Loading is timed on one thread, the median of 20 sessions, files taking turns. Writes
experiments/results/export_size.json and prints a table in Markdown.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hwsearch  # before ONNX Runtime, which reports to its makers where nobody has switched that off

# isort: split
import onnxruntime
import torch
from scoring_speed import processor

from hwsearch.experiment import QuantizationConfig
from hwsearch.export.description import ExportDescription
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.onnx_export import export_onnx
from hwsearch.export.packed import pack
from hwsearch.export.runtime import open_session
from hwsearch.files.writing import atomic_write_json
from hwsearch.network.sites import find_sites
from hwsearch.separator.allocation import uniform
from hwsearch.separator.base import EMBEDDED_BASE, load_base
from hwsearch.separator.calibration import calibrate
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.traced import traced

HERE = Path(__file__).parent
BASES = {"embedded base": EMBEDDED_BASE, "real-speech base": HERE / "bases" / "real_speech.safetensors"}
WIDTHS = (8, 7, 6, 5, 4, 3, 2)
FRAMES, SESSIONS = 100, 20


def measured(base: Path) -> list[dict[str, Any]]:
    """The files of a base at each width."""
    separator, _ = load_base(base)
    graph, front_end = traced(separator), separator.front_end
    features = torch.randn(1, front_end.inputs, FRAMES, generator=torch.Generator().manual_seed(0))
    calibration = calibrate(graph, [features])
    files: dict[int, bytes] = {}
    packed: dict[int, int] = {}
    for bits in WIDTHS:
        allocation = uniform(find_sites(graph), bits, 8)
        quantized = build_quantized(graph, allocation, calibration, QuantizationConfig())
        network = ExportedNetwork(quantized, front_end).eval()
        description = ExportDescription.of(quantized.graph, quantized.allocation, front_end, "0" * 64)
        with tempfile.TemporaryDirectory() as folder:
            export_onnx(network, Path(folder) / "model.onnx", description)
            files[bits] = (Path(folder) / "model.onnx").read_bytes()
        packed[bits] = len(pack(network))
    seconds: dict[int, list[float]] = {bits: [] for bits in WIDTHS}
    for bits in WIDTHS * SESSIONS:
        start = time.perf_counter()
        open_session(files[bits])
        seconds[bits].append(time.perf_counter() - start)
    float_bytes = 4 * sum(tensor.numel() for tensor in graph.parameters.values())
    return [
        {
            "bits": bits,
            "model_onnx": len(content),
            "of_8_bits": len(content) / len(files[8]),
            "float32_over_it": float_bytes / len(content),
            "weights_hwq": packed[bits],
            "load_ms": 1e3 * statistics.median(seconds[bits]),
        }
        for bits, content in files.items()
    ]


def markdown(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A table of all bases."""
    lines = [
        "| network | weights | `model.onnx`, kB | of that with 8 bits | times smaller | `weights.hwq`, kB | load, ms |",
        "|---" * 7 + "|",
    ]
    for name, rows in found.items():
        for row in rows:
            sizes = f"{row['model_onnx'] / 1e3:.0f} | {row['of_8_bits']:.2f} | {row['float32_over_it']:.1f}"
            lines.append(f"| {name} | {row['bits']} bits | {sizes} | {row['weights_hwq'] / 1e3:.0f} | {row['load_ms']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "export_size.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: measured(path) for name, path in BASES.items()}
    made_by = {
        "processor": processor(),
        "onnxruntime": onnxruntime.__version__,
        "hwsearch": hwsearch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }
    atomic_write_json(arguments.output, {"bases": found, "made_by": made_by})
    print(markdown(found))


if __name__ == "__main__":
    main()
