"""Files of `hwsearch export --format tflite` on `ethos-u55*` targets against Arm's Vela: cycles, weights and peak memory.

Vela must leave no operator to the processor. The network is the base that ships, with weights of one width or of random widths,
and with activations of 8 bits; once with a residual trunk of 16 bits. Grids come from noise: neither cycles nor sizes depend on
them. Wants `pip install 'hwsearch[tflite]'`.
"""

import base64
import tempfile
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
import torch

from hw_models.compile import compile_target
from hw_models.cost import evaluate
from hw_models.target import load_target
from hw_models.workload import bits_matrix
from hwsearch.errors import UserError
from hwsearch.experiment import QuantizationConfig
from hwsearch.export.description import ExportDescription
from hwsearch.export.network import ExportedNetwork
from hwsearch.network.graph import Graph
from hwsearch.network.sites import Sites, find_sites, with_reads
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.base import EMBEDDED_BASE, load_base
from hwsearch.separator.calibration import calibrate
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.separator import Separator
from hwsearch.separator.traced import traced
from hwsearch.separator.untrained import without_numbers

SETTING: Final = "Exported files; cycles optimised for Performance, memory for Size. High_End_Embedded, Shared_Sram."
REQUIREMENTS: tuple[str, ...] = ("ethos-u-vela==5.2.0", "flatbuffers==25.12.19", "tflite==2.18.0")
TARGETS: Final = ("ethos-u55-128", "ethos-u55-256")
FRAMES: Final = 64
FRAME_SECONDS: Final = 0.016
WIDTHS: Final = (2, 3, 4, 5, 6, 8)
UNIFORM: Final = (8, 4, 2)
RANDOM: Final = 3

Case = dict[str, Any]


def cases() -> list[Case]:
    """Every file on every target.

    Raises:
        UserError: the package that writes the files is not installed.
    """
    if find_spec("ai_edge_litert") is None:
        raise UserError("ai-edge-litert is not installed; wanted: pip install 'hwsearch[tflite]'")
    found = []
    for wide in (False, True):
        separator, graph = _network(wide=wide)
        for name, allocation in _allocations(find_sites(graph), wide=wide):
            file = base64.b64encode(_file(separator, graph, allocation)).decode()
            case = {"name": name, "widths": allocation.to_json(), "wide": wide, "file": file}
            found += [{**case, "target": target} for target in TARGETS]
    return found


def predictions(cases: list[Case]) -> list[dict[str, float]]:
    """Cycles, weight bytes and peak memory by the target."""
    results = []
    for case in cases:
        separator, graph = _network(wide=case["wide"])
        network = without_numbers(graph, separator.front_end.inputs)
        workload = network.workload(FRAMES, FRAME_SECONDS, per_channel=True)
        table = compile_target(load_target(case["target"]), workload)
        costs = evaluate(table, bits_matrix(workload, [case["widths"]]))
        results.append(
            {
                "cycles": float(costs.latency_ms[0]) / 1e3 * table.target.clock.clock_hz,
                "weight_bytes": float(costs.weight_bytes[0]),
                "peak_activation_bytes": float(np.max(costs.peak_activation_bytes)),
            }
        )
    return results


def _network(*, wide: bool) -> tuple[Separator, Graph]:
    separator, _ = load_base(EMBEDDED_BASE)
    graph = traced(separator)
    return separator, with_reads(graph) if wide else graph


def _allocations(sites: Sites, *, wide: bool) -> list[tuple[str, BitAllocation]]:
    """Allocations by name; with a trunk of 16 bits, only one."""
    activations = dict.fromkeys(sites.activations, 8) | dict.fromkeys(sites.carried if wide else (), 16)
    if wide:
        return [("8 bits, trunk of 16", BitAllocation.of(dict.fromkeys(sites.weights, 8) | activations))]
    found = [(f"{bits} bits", dict.fromkeys(sites.weights, bits)) for bits in UNIFORM]
    for seed in range(RANDOM):
        random = Random(seed)  # noqa: S311
        found.append((f"random widths {seed}", {site: random.choice(WIDTHS) for site in sites.weights}))
    return [(name, BitAllocation.of(weights | activations)) for name, weights in found]


def _file(separator: Separator, graph: Graph, allocation: BitAllocation) -> bytes:
    """The exported file of an allocation."""
    from hwsearch.export.tflite.export import export_tflite

    features = torch.randn(1, separator.front_end.inputs, FRAMES, generator=torch.Generator().manual_seed(0))
    network = build_quantized(graph, allocation, calibrate(graph, [features]), QuantizationConfig())
    about = ExportDescription.of(graph, allocation, separator.front_end, "0" * 64)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        export_tflite(ExportedNetwork(network, separator.front_end).eval(), path, about, FRAMES, int4=False)
        return path.read_bytes()
