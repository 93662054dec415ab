"""The contract of export formats, and the built-in formats."""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hwsearch.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from hwsearch.data.example import Example
    from hwsearch.export.description import ExportDescription
    from hwsearch.export.network import ExportedNetwork
    from hwsearch.export.verify import VerificationReport

SOUND_FILE = "separator.onnx"
"""The file from sound to sound beside an ONNX graph."""

FIXED_FRAMES = 64
"""Frames of a graph whose shape is fixed, unless the network needs more; QONNX's executor is slow."""


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
        check: raises a `UserError` if this machine cannot write the format; called before anything is loaded.
    """

    file: str
    write: "Callable[[Path, ExportedNetwork, ExportDescription, Sequence[Example]], Written]"
    others: tuple[str, ...] = ()
    check: Callable[[], None] = lambda: None


def _write_onnx(
    path: Path, network: "ExportedNetwork", description: "ExportDescription", examples: "Sequence[Example]"
) -> Written:
    from hwsearch.export.description import INPUT
    from hwsearch.export.onnx_export import export_onnx, export_sound, integer_kernels
    from hwsearch.export.runtime import open_session
    from hwsearch.export.saturation import kernels_saturate
    from hwsearch.export.sound.verify import verify_sound
    from hwsearch.export.speed import measure_speed
    from hwsearch.export.verify import verify_onnx

    export_onnx(network, path, description)
    batches = [network.raw(example) for example in examples]
    report = verify_onnx(path, network, batches)
    export_sound(path, path.with_name(SOUND_FILE))
    sound = verify_sound(path.with_name(SOUND_FILE), path, network, examples)
    session, features = open_session(path.read_bytes()), batches[0].numpy()
    target = None
    if platform.machine() in {"x86_64", "AMD64"}:
        target = "x86-onnxruntime-avx2" if kernels_saturate() else "x86-onnxruntime"
    speed = measure_speed(lambda: session.run(None, {INPUT: features}), network, batches[0], target)
    return Written(report, {"kernels": integer_kernels(path), "speed": asdict(speed), "separator": asdict(sound)})


def _write_qonnx(
    path: Path, network: "ExportedNetwork", description: "ExportDescription", examples: "Sequence[Example]"
) -> Written:
    from hwsearch.export.qonnx_export import export_qonnx
    from hwsearch.export.verify import verify_qonnx

    batches = [network.raw(example) for example in examples]
    frames = _fixed_frames(network, batches)
    export_qonnx(network, path, description, frames)
    return Written(verify_qonnx(path, network, [batch[..., :frames] for batch in batches]), {})


def _check_litert() -> None:
    """Demand the package that writes and runs TensorFlow Lite.

    Raises:
        UserError: it is missing.
    """
    if find_spec("ai_edge_litert") is None:
        raise UserError(
            "the package ai-edge-litert, which TensorFlow Lite needs, is missing; wanted: pip install 'hwsearch[tflite]'"
        )


def _write_tflite(
    path: Path,
    network: "ExportedNetwork",
    description: "ExportDescription",
    examples: "Sequence[Example]",
    *,
    int4: bool,
) -> Written:
    from hwsearch.export.speed import measure_speed
    from hwsearch.export.tflite.export import export_tflite
    from hwsearch.export.tflite.verify import fast_call, verify_tflite

    windows = _windows(network, [network.raw(example) for example in examples])
    frames = windows[0].shape[-1]
    graph = export_tflite(network, path, description, frames, int4=int4)
    plain, fast = verify_tflite(path, graph, network, windows)
    speed = measure_speed(fast_call(path, graph, network, windows[0]), network, windows[0])
    return Written(plain, {"graph_frames": frames, "xnnpack": asdict(fast), "speed": asdict(speed)})


def _write_qnn(
    path: Path,
    network: "ExportedNetwork",
    description: "ExportDescription",
    examples: "Sequence[Example]",
    *,
    int4: bool,
) -> Written:
    from hwsearch.export.qnn_export import export_qnn
    from hwsearch.export.verify import verify_onnx

    windows = _windows(network, [network.raw(example) for example in examples])
    frames = windows[0].shape[-1]
    export_qnn(network, path, description, frames, int4=int4)
    return Written(verify_onnx(path, network, windows, fused=False), {"graph_frames": frames})


def _write_finn(
    path: Path, network: "ExportedNetwork", description: "ExportDescription", examples: "Sequence[Example]"
) -> Written:
    from hwsearch.export.finn.export import export_finn
    from hwsearch.export.finn.folding import modelled_designs
    from hwsearch.export.finn.verify import verify_finn

    batches = [network.raw(example) for example in examples]
    frames = _fixed_frames(network, batches)
    host = export_finn(network, path, description, frames)
    report = verify_finn(path, host, network, [batch[..., :frames] for batch in batches])
    return Written(report, {"graph_frames": frames, "modelled_designs": modelled_designs(network, frames)})


def _fixed_frames(network: "ExportedNetwork", batches: "Sequence[Tensor]") -> int:
    """Return the number of frames of a graph whose shape is fixed; every batch has as many."""
    return min(network.example_frames(FIXED_FRAMES), *(batch.shape[-1] for batch in batches))


def _windows(network: "ExportedNetwork", batches: "Sequence[Tensor]") -> "list[Tensor]":
    """Cut batches, joined at their ends, into windows of `FIXED_FRAMES` frames, or as many as the network needs."""
    import torch

    joined = torch.cat(tuple(batches), dim=-1)
    frames = _fixed_frames(network, [joined])
    return [joined[..., first : first + frames] for first in range(0, joined.shape[-1] - frames + 1, frames)]


ONNX = Exporter("model.onnx", _write_onnx, (SOUND_FILE,))
QONNX = Exporter("model.qonnx.onnx", _write_qonnx)
TFLITE = Exporter("model.tflite", partial(_write_tflite, int4=False), check=_check_litert)
TFLITE_INT4 = Exporter("model.int4.tflite", partial(_write_tflite, int4=True), check=_check_litert)
QNN = Exporter("model.qnn.onnx", partial(_write_qnn, int4=False))
QNN_INT4 = Exporter("model.qnn-int4.onnx", partial(_write_qnn, int4=True))
FINN = Exporter(
    "model.finn.onnx", _write_finn, ("host.npz", "host.py", "build.py", "folding-finn-pynq-z2.json", "folding-finn-zcu104.json")
)
