"""Sizes of exported files by the width of the weights, what loading them takes, and whether they keep what was foreseen.

    python experiments/export_size.py

All weights have one width, activations have 8 bits. Sizes follow from the network and the widths, so no data are needed: grids
come from noise. Loading is timed on one thread, the median of 20 sessions, files taking turns. Then files of 30 random
allocations of weights and activations are compared with the size known before, and every integer inside with its exact value.
Writes experiments/results/export_size.json and prints a table in Markdown.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, Self

import hwsearch  # before ONNX Runtime, which reports to its makers where nobody has switched that off

# isort: split
import onnxruntime
import torch
from scoring_speed import processor
from torch import Tensor

from hwsearch.experiment import QuantizationConfig
from hwsearch.export.description import ExportDescription
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.onnx_export import export_onnx
from hwsearch.export.onnx_size import onnx_size
from hwsearch.export.packed import pack
from hwsearch.export.runtime import open_session
from hwsearch.export.verify import verify_onnx
from hwsearch.files.writing import atomic_write_json
from hwsearch.network.graph import Graph
from hwsearch.network.sites import find_sites, with_reads
from hwsearch.separator.allocation import BitAllocation, uniform
from hwsearch.separator.base import EMBEDDED_BASE, load_base
from hwsearch.separator.calibration import Calibration, calibrate
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.separator import Separator
from hwsearch.separator.traced import traced

HERE = Path(__file__).parent
BASES = {"embedded base": EMBEDDED_BASE, "real-speech base": HERE / "bases" / "real_speech.safetensors"}
WIDTHS = (8, 7, 6, 5, 4, 3, 2)
FRAMES, SESSIONS = 100, 20


WEIGHT_BITS, ACTIVATION_BITS, ALLOCATIONS = (2, 3, 4, 5, 6, 7, 8, 16, 32), (4, 5, 6, 7, 8, 8, 8, 8, 16, 32), 30


@dataclass(frozen=True, eq=False)
class Subject:
    """A base, and grids for its activations."""

    separator: Separator
    graph: Graph
    calibration: Calibration
    features: Tensor
    """Noise, [1, features, frames]."""

    @classmethod
    def of(cls, base: Path) -> Self:
        separator, _ = load_base(base)
        graph = with_reads(traced(separator))
        features = torch.randn(1, separator.front_end.inputs, FRAMES, generator=torch.Generator().manual_seed(0))
        return cls(separator, graph, calibrate(graph, [features]), features)

    def exported(self, allocation: BitAllocation, path: Path) -> ExportedNetwork:
        """Write the file of an allocation."""
        front_end = self.separator.front_end
        quantized = build_quantized(self.graph, allocation, self.calibration, QuantizationConfig())
        network = ExportedNetwork(quantized, front_end).eval()
        export_onnx(network, path, ExportDescription.of(self.graph, allocation, front_end, "0" * 64))
        return network


def random_allocations(subject: Subject, folder: Path) -> dict[str, Any]:
    """Export random allocations, and compare the files with what was foreseen."""
    random, sites = Random(0), find_sites(subject.graph)  # noqa: S311
    size = onnx_size(subject.graph, subject.separator.front_end, per_channel=True)
    reports, sizes = [], 0
    for _ in range(ALLOCATIONS):
        widths = {site: random.choice(WEIGHT_BITS) for site in sites.weights}
        allocation = BitAllocation.of(widths | {site: random.choice(ACTIVATION_BITS) for site in sites.activations})
        path = folder / "random.onnx"
        network = subject.exported(allocation, path)
        sizes += path.stat().st_size == size.of(allocation.by_site)
        reports.append(verify_onnx(path, network, [subject.features]))
    return {
        "allocations": ALLOCATIONS,
        "sizes_as_foreseen": sizes,
        "integers": sum(report.quantized_values for report in reports),
        "ties": sum(report.ties for report in reports),
        "worst_rounding_steps": max(report.worst_rounding for report in reports),
    }


def measured(subject: Subject, folder: Path) -> list[dict[str, Any]]:
    """The files of a base at each width."""
    graph = subject.graph
    files: dict[int, bytes] = {}
    packed: dict[int, int] = {}
    for bits in WIDTHS:
        path = folder / "model.onnx"
        packed[bits] = len(pack(subject.exported(uniform(find_sites(graph), bits, 8), path)))
        files[bits] = path.read_bytes()
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
    found, checked = {}, {}
    for name, base in BASES.items():
        subject = Subject.of(base)
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measured(subject, Path(folder))
            checked[name] = random_allocations(subject, Path(folder))
    made_by = {
        "processor": processor(),
        "onnxruntime": onnxruntime.__version__,
        "hwsearch": hwsearch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }
    atomic_write_json(arguments.output, {"bases": found, "random_allocations": checked, "made_by": made_by})
    print(markdown(found))
    for name, facts in checked.items():
        print(f"{name}: {facts}")


if __name__ == "__main__":
    main()
