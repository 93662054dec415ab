"""The contract of export formats, and the three built-in formats."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from hwsearch.export.description import ExportDescription
    from hwsearch.export.network import ExportedNetwork
    from hwsearch.export.verify import VerificationReport

QONNX_FRAMES = 64
"""Frames of a QONNX or FINN graph, unless the network needs more. The shape is fixed, and QONNX's executor is slow."""


@dataclass(frozen=True)
class Written:
    """The result of writing a file.

    Attributes:
        report: comparison of the file with the network.
        facts: further entries of the proof, JSON values by name.
    """

    report: "VerificationReport"
    facts: Mapping[str, object]


@dataclass(frozen=True)
class Exporter:
    """An export format.

    Attributes:
        file: name of the graph in an export's folder; each format has its own.
        write: writes the graph to a path and compares it with the network on batches of raw inputs [1, channels, frames]. Raises
            `VerificationError` if the two differ.
        further: names of the files that it writes beside the graph.
    """

    file: str
    write: "Callable[[Path, ExportedNetwork, ExportDescription, Sequence[Tensor]], Written]"
    further: tuple[str, ...] = ()


def _write_onnx(path: Path, network: "ExportedNetwork", description: "ExportDescription", batches: "Sequence[Tensor]") -> Written:
    from hwsearch.export.onnx_export import export_onnx, integer_kernels
    from hwsearch.export.verify import verify_onnx

    export_onnx(network, path, description)
    return Written(verify_onnx(path, network, batches), {"kernels": integer_kernels(path)})


def _write_qonnx(
    path: Path, network: "ExportedNetwork", description: "ExportDescription", batches: "Sequence[Tensor]"
) -> Written:
    from hwsearch.export.qonnx_export import export_qonnx
    from hwsearch.export.verify import verify_qonnx

    frames = _fixed_frames(network, batches)
    export_qonnx(network, path, description, frames)
    return Written(verify_qonnx(path, network, [batch[..., :frames] for batch in batches]), {})


def _write_finn(path: Path, network: "ExportedNetwork", description: "ExportDescription", batches: "Sequence[Tensor]") -> Written:
    from hwsearch.export.finn_export import export_finn
    from hwsearch.export.finn_folding import modelled_designs
    from hwsearch.export.finn_verify import verify_finn

    frames = _fixed_frames(network, batches)
    host = export_finn(network, path, description, frames)
    report = verify_finn(path, host, network, [batch[..., :frames] for batch in batches])
    facts = {"differing_integers": 0, "graph_frames": frames, "modelled_designs": modelled_designs(network, frames)}
    return Written(report, facts)


def _fixed_frames(network: "ExportedNetwork", batches: "Sequence[Tensor]") -> int:
    """Return the number of frames of a graph whose shape is fixed; every batch has as many."""
    return min(network.example_frames(QONNX_FRAMES), *(batch.shape[-1] for batch in batches))


ONNX = Exporter("model.onnx", _write_onnx)
QONNX = Exporter("model.qonnx.onnx", _write_qonnx)
FINN = Exporter(
    "model.finn.onnx", _write_finn, ("host.npz", "host.py", "build.py", "folding-finn-pynq-z2.json", "folding-finn-zcu104.json")
)
