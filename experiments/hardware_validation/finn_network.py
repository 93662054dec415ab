"""Whole networks against finn-plus's estimates: the FINN export of the embedded base, and of the same network with PReLU.

Each export is verified before finn-plus gets it: no integer differs from the exact one. finn-plus then goes its unmodified way to
its estimate reports, with the folding that the export proposes. `host_nodes` are nodes that it leaves to the host; there must be
none. `lut` has all thresholds in logic, as `hw_models` does; `reported_lut` is FINN's own report, which leaves out those of
matrix engines. `hw_models` has no sums above 8 bits, and no signed numbers of 9 bits, which PReLU makes here.
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hwsearch.experiment import QuantizationConfig
from hwsearch.export.description import ExportDescription
from hwsearch.export.exporter import FINN, FIXED_FRAMES
from hwsearch.export.finn.export import export_finn
from hwsearch.export.finn.folding import modelled_costs
from hwsearch.export.finn.verify import verify_finn
from hwsearch.export.network import ExportedNetwork
from hwsearch.network.graph import Graph
from hwsearch.network.operations import Elementwise, Operation, PReLU
from hwsearch.network.sites import find_sites, tied, with_reads
from hwsearch.separator.allocation import uniform
from hwsearch.separator.base import EMBEDDED_BASE, load_base
from hwsearch.separator.calibration import calibrate
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.traced import traced

REQUIREMENTS: tuple[str, ...] = (
    "qonnx==1.0.0",
    "onnx==1.21.0",
    "onnxruntime==1.25.1",
    "onnxscript",
    "numpy<2.5",
    "rich<14",
    "mashumaro[yaml]<4",
    "pydantic",
    "pandas<2.4",
    "scipy<1.18",
    "scikit-learn<1.8",
    "matplotlib<3.11",
    "termcolor",
    "psutil",
    "click",
    "cffi",
    "networkx",
    "jinja2",
)
ALONE = ("finn-plus==1.6.1", "onnx-passes==0.4.1", "mip==1.17.0")
"""Packages whose own requirements exclude one another, or are not needed for estimates."""

TARGET = "finn-zcu104"
WEIGHTS, ACTIVATIONS = 4, 8
SLOPE = 0.25
BATCHES = 2


@dataclass(frozen=True)
class Subject:
    """A network to export: its function, and the width of its trunk."""

    function: str
    trunk: int

    @property
    def name(self) -> str:
        return f"{self.function}, trunk of {self.trunk} bits"


SUBJECTS = tuple(Subject(function, trunk) for function in ("ReLU", "PReLU") for trunk in (8, 16))


def cases() -> list[dict[str, Any]]:
    """Export the networks, with what `hw_models` says of them."""
    folder = Path(tempfile.mkdtemp(prefix="finn-network-"))
    return [_case(subject, folder / f"{number}") for number, subject in enumerate(SUBJECTS)]


def predictions(cases: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Logic, memory and cycles of `hw_models`."""
    return [case["modelled"] for case in cases]


def _case(subject: Subject, folder: Path) -> dict[str, Any]:
    separator, _ = load_base(EMBEDDED_BASE)
    graph = traced(separator)
    graph = _with_slopes(graph) if subject.function == "PReLU" else graph
    graph = with_reads(graph) if subject.trunk > ACTIVATIONS else graph
    sites, front_end = tied(graph, find_sites(graph)), separator.front_end
    noise = torch.randn(1, front_end.inputs, 4 * FIXED_FRAMES, generator=torch.Generator().manual_seed(0))
    allocation = uniform(sites, WEIGHTS, ACTIVATIONS, subject.trunk)
    calibration = calibrate(graph, [noise], sites.ties)
    quantized = build_quantized(graph, allocation, calibration, QuantizationConfig(tied_adds=True))
    network = ExportedNetwork(quantized, front_end).eval()
    raw = noise / network.scale + network.mean
    folder.mkdir()
    description = ExportDescription.of(graph, allocation, front_end, "0" * 64)
    batches = list(raw.split(FIXED_FRAMES, dim=-1))[:BATCHES]
    path = folder / FINN.file
    report = verify_finn(path, export_finn(network, path, description, FIXED_FRAMES), network, batches)
    costs = modelled_costs(network, FIXED_FRAMES, TARGET)
    modelled = {
        "lut": costs.lut[0],
        "reported_lut": costs.lut[0],
        "bram18": costs.bram18[0],
        "cycles": costs.interval_cycles[0],
        "host_nodes": 0,
    }
    return {
        "name": subject.name,
        "target": TARGET,
        "folder": str(folder),
        "integers": report.quantized_values,
        "modelled": {name: float(value) for name, value in modelled.items()},
    }


def _with_slopes(graph: Graph) -> Graph:
    """The network with a PReLU in place of each ReLU."""

    def changed(operation: Operation) -> Operation:
        return PReLU(operation.name, operation.inputs) if isinstance(operation, Elementwise) else operation

    operations = tuple(map(changed, graph.operations))
    slopes = {f"{each.name}.slope": torch.tensor([SLOPE]) for each in operations if isinstance(each, PReLU)}
    return replace(graph, operations=operations, parameters={**graph.parameters, **slopes})
