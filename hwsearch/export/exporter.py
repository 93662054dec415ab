"""The contract of export formats, and the two built-in formats."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hwsearch.data.example import Example
    from hwsearch.export.description import ExportDescription
    from hwsearch.export.network import ExportedNetwork
    from hwsearch.export.verify import VerificationReport

SOUND_FILE = "separator.onnx"
"""The file from sound to sound beside an ONNX graph."""

QONNX_FRAMES = 64
"""Frames of a QONNX graph, unless the network needs more. The shape is fixed, and QONNX's executor is slow."""


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
        write: writes the graph to a path and compares it with the network on examples. Raises `VerificationError` if they differ.
        others: names of further files that it writes beside the graph.
    """

    file: str
    write: "Callable[[Path, ExportedNetwork, ExportDescription, Sequence[Example]], Written]"
    others: tuple[str, ...] = ()


def _write_onnx(
    path: Path, network: "ExportedNetwork", description: "ExportDescription", examples: "Sequence[Example]"
) -> Written:
    from hwsearch.export.onnx_export import export_onnx, export_sound, integer_kernels
    from hwsearch.export.verify import verify_onnx
    from hwsearch.export.verify_sound import verify_sound

    export_onnx(network, path, description)
    report = verify_onnx(path, network, [network.raw(example) for example in examples])
    export_sound(path, path.with_name(SOUND_FILE))
    sound = verify_sound(path.with_name(SOUND_FILE), path, network, examples)
    return Written(report, {"kernels": integer_kernels(path), "separator": asdict(sound)})


def _write_qonnx(
    path: Path, network: "ExportedNetwork", description: "ExportDescription", examples: "Sequence[Example]"
) -> Written:
    from hwsearch.export.qonnx_export import export_qonnx
    from hwsearch.export.verify import verify_qonnx

    batches = [network.raw(example) for example in examples]
    frames = min(network.example_frames(QONNX_FRAMES), *(batch.shape[-1] for batch in batches))
    export_qonnx(network, path, description, frames)
    return Written(verify_qonnx(path, network, [batch[..., :frames] for batch in batches]), {})


ONNX = Exporter("model.onnx", _write_onnx, (SOUND_FILE,))
QONNX = Exporter("model.qonnx.onnx", _write_qonnx)
