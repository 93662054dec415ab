"""What the validations against finn-plus share: its packages, and exports of separators for it to build."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hwsearch.experiment import QuantizationConfig
from hwsearch.export.description import ExportDescription
from hwsearch.export.exporter import FINN, FIXED_FRAMES
from hwsearch.export.finn.export import export_finn
from hwsearch.export.finn.host import Host
from hwsearch.export.network import ExportedNetwork
from hwsearch.network.graph import Graph
from hwsearch.network.sites import Sites, find_sites, tied
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.calibration import calibrate
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.separator import Separator

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

INSTALLED_AS = "finn_plus"
"""Name of the environment that these validations have in common."""

FRAMES = FIXED_FRAMES
"""Frames of an exported network."""


@dataclass(frozen=True)
class Export:
    """An export in its folder."""

    network: ExportedNetwork
    path: Path
    host: Host
    raw: Tensor


def export(separator: Separator, graph: Graph, widths: Callable[[Sites], BitAllocation], folder: Path) -> Export:
    """Export a separator for FINN.

    Args:
        separator: with the front end.
        graph: its network, possibly changed.
        widths: makes the allocation.
        folder: to write into; it is made.
    """
    sites, front_end = tied(graph, find_sites(graph)), separator.front_end
    noise = torch.randn(1, front_end.inputs, 4 * FRAMES, generator=torch.Generator().manual_seed(0))
    allocation = widths(sites)
    calibration = calibrate(graph, [noise], sites.ties)
    quantized = build_quantized(graph, allocation, calibration, QuantizationConfig(tied_adds=True))
    network = ExportedNetwork(quantized, front_end).eval()
    folder.mkdir(parents=True)
    path = folder / FINN.file
    host = export_finn(network, path, ExportDescription.of(graph, allocation, front_end, "0" * 64), FRAMES)
    return Export(network, path, host, noise / network.scale + network.mean)
