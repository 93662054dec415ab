"""The contract of export formats, and those that ship."""

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
"""Frames of a QONNX graph, whose shape is fixed and whose executor is slow; more where the network wants more."""


@dataclass(frozen=True)
class Written:
    """What came of writing a file.

    Attributes:
        report: how the file compares with the network.
        facts: what else the proof says, as JSON by name.
    """

    report: "VerificationReport"
    facts: Mapping[str, object]


@dataclass(frozen=True)
class Exporter:
    """One format.

    Attributes:
        file: name of its graph in an export's folder, no other format's.
        write: writes the graph to a path and holds it to the network on batches of raw inputs [1, channels, frames]. Raises
            `VerificationError` where the two differ.
    """

    file: str
    write: "Callable[[Path, ExportedNetwork, ExportDescription, Sequence[Tensor]], Written]"


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

    frames = min(network.example_frames(QONNX_FRAMES), *(batch.shape[-1] for batch in batches))
    export_qonnx(network, path, description, frames)
    return Written(verify_qonnx(path, network, [batch[..., :frames] for batch in batches]), {})


ONNX = Exporter("model.onnx", _write_onnx)
QONNX = Exporter("model.qonnx.onnx", _write_qonnx)
