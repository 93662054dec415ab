"""Whole networks against finn-plus's estimates: the FINN export of the embedded base, and of the same network with PReLU.

Each export is verified before finn-plus gets it: no integer differs from the exact one. finn-plus then goes its unmodified way to
its estimate reports, with the folding that the export proposes. `host_nodes` are nodes that it leaves to the host; there must be
none. `hw_models` has no sums above 8 bits, and no signed numbers of 9 bits, which PReLU makes here.
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import finn_plus
import torch

from hwsearch.export.finn.folding import modelled_costs
from hwsearch.export.finn.verify import verify_finn
from hwsearch.network.graph import Graph
from hwsearch.network.operations import Elementwise, Operation, PReLU
from hwsearch.network.sites import with_reads
from hwsearch.separator.allocation import uniform
from hwsearch.separator.base import EMBEDDED_BASE, load_base
from hwsearch.separator.traced import traced

SETTING: Final = "Exported files, at the folding that the export proposes; estimates before synthesis."
REQUIREMENTS, ALONE, INSTALLED_AS = finn_plus.REQUIREMENTS, finn_plus.ALONE, finn_plus.INSTALLED_AS

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
    made = finn_plus.export(separator, graph, lambda sites: uniform(sites, WEIGHTS, ACTIVATIONS, subject.trunk), folder)
    batches = list(made.raw.split(finn_plus.FRAMES, dim=-1))[:BATCHES]
    report = verify_finn(made.path, made.host, made.network, batches)
    costs = modelled_costs(made.network, finn_plus.FRAMES, TARGET)
    modelled = {"lut": costs.lut[0], "bram18": costs.bram18[0], "cycles": costs.interval_cycles[0], "host_nodes": 0}
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
