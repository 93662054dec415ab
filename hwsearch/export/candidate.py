"""Export of one candidate: a folder with the graph, the packed weights, the allocation and the proof."""

import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from hwsearch.errors import UserError
from hwsearch.experiment import Fidelity, QuantizationConfig
from hwsearch.export.description import ExportDescription
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.onnx_export import export_onnx, integer_kernels
from hwsearch.export.packed import write_packed
from hwsearch.export.qonnx_export import export_qonnx
from hwsearch.export.verify import VerificationReport, verify_onnx, verify_qonnx
from hwsearch.files import atomic_write_json
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.calibration import Calibration
from hwsearch.separator.features import features
from hwsearch.separator.folding import fold
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.quantized import QuantizedMaskNetwork, build_quantized
from hwsearch.separator.separator import Separator
from hwsearch.separator.stft import stft
from hwsearch.separator.trained import TrainedState, trained_network

Format = Literal["onnx", "qonnx"]

GRAPH_FILES: dict[Format, str] = {"onnx": "model.onnx", "qonnx": "model.qonnx.onnx"}
WEIGHTS_FILE = "weights.hwq"
ALLOCATION_FILE = "allocation.json"
VERIFICATION_FILE = "verification.json"

QONNX_FRAMES = 64
"""Frames of a QONNX graph, whose shape is fixed and whose executor is slow."""

Mixture = tuple[Tensor, float]
"""Waveforms [mics, samples] and the target's direction in degrees."""


def export_candidate(
    separator: Separator,
    allocation: BitAllocation,
    calibration: Calibration,
    config: QuantizationConfig,
    mixtures: Sequence[Mixture],
    output: Path,
    graph_format: Format,
    base_digest: str,
) -> VerificationReport:
    """Export what an allocation makes of the base without training; see `export_network`."""
    network = build_quantized(fold(separator.network), allocation, calibration, config)
    return export_network(separator, network, mixtures, output, graph_format, base_digest)


def export_trained(
    base: PreparedBase,
    state: TrainedState,
    fidelity: Fidelity,
    mixtures: Sequence[Mixture],
    output: Path,
    graph_format: Format,
) -> VerificationReport:
    """Export what quantization-aware training has made of the base at an allocation; see `export_network`."""
    network, digest = trained_network(base, state), base.base_sha256
    return export_network(
        base.separator, network, mixtures, output, graph_format, digest, fidelity=fidelity, training_steps=state.steps
    )


def export_network(
    separator: Separator,
    network: QuantizedMaskNetwork,
    mixtures: Sequence[Mixture],
    output: Path,
    graph_format: Format,
    base_digest: str,
    *,
    fidelity: Fidelity = Fidelity.POST_TRAINING,
    training_steps: int = 0,
) -> VerificationReport:
    """Export a quantized network, trained or not, to a folder, verified before it appears there.

    The folder is written beside `output` under another name and renamed when all is proven; an earlier export
    at `output` is replaced by it.

    Args:
        separator: the base, for its front end.
        network: the quantized network.
        mixtures: what the file is verified on, at least one.
        output: the folder to be.
        graph_format: `onnx` for ONNX Runtime, `qonnx` for FPGA tools.
        base_digest: SHA-256 of the base file.
        fidelity: how far the network was trained, for the graph's description and the proof.
        training_steps: steps of that training.

    Raises:
        UserError: something that is no export is at `output`.
        VerificationError: the file does not compute what the network does; nothing is left behind.
    """
    _refuse_foreign(output)
    exported = ExportedNetwork(network, separator.network).eval()
    description = ExportDescription.model_validate(
        {
            "sample_rate": separator.sample_rate,
            "array": separator.array.name,
            "separator": separator.config,
            "allocation": network.allocation.to_json(),
            "base_digest": base_digest,
            "fidelity": fidelity,
            "training_steps": training_steps,
            "hwsearch_version": _version(),
        }
    )
    batches = [_raw_features(separator, *mixture) for mixture in mixtures]
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        graph = temporary / GRAPH_FILES[graph_format]
        verification: dict[str, object] = {"fidelity": fidelity.value, "training_steps": training_steps}
        if graph_format == "onnx":
            export_onnx(exported, graph, description)
            report = verify_onnx(graph, exported, batches)
            verification["kernels"] = integer_kernels(graph)
        else:
            frames = min(QONNX_FRAMES, *(batch.shape[-1] for batch in batches))
            export_qonnx(exported, graph, description, frames)
            report = verify_qonnx(graph, exported, [batch[..., :frames] for batch in batches])
        write_packed(temporary / WEIGHTS_FILE, exported)
        atomic_write_json(temporary / ALLOCATION_FILE, network.allocation.to_json())
        atomic_write_json(temporary / VERIFICATION_FILE, report.to_json() | verification)
        temporary.chmod(0o755)
        _replace(output, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return report


def _raw_features(separator: Separator, mixture: Tensor, doa_deg: float) -> Tensor:
    """Raw features [1, features, frames] of one mixture."""
    config = separator.config
    with torch.no_grad():
        spectrum = stft(mixture[None].float(), config.n_fft, config.hop_length)
        direction = torch.tensor([doa_deg])
        return features(spectrum, direction, separator.array, separator.sample_rate, config.ipd, beam=config.beam)


def _refuse_foreign(output: Path) -> None:
    """Only an earlier export may be replaced, and not the folder that we stand in."""
    if output.resolve() == Path.cwd():
        raise UserError(f"{output}: is the current folder; wanted another one to write")
    known = {*GRAPH_FILES.values(), WEIGHTS_FILE, ALLOCATION_FILE, VERIFICATION_FILE}
    if output.exists() and not (output.is_dir() and {path.name for path in output.iterdir()} <= known):
        raise UserError(f"{output}: holds something that is no export; wanted a new folder or an earlier export")


def _replace(output: Path, finished: Path) -> None:
    """Put the finished folder in place; an earlier one steps aside first."""
    if output.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
        output.rename(aside / "earlier")
        finished.rename(output)
        shutil.rmtree(aside)
    else:
        finished.rename(output)


def _version() -> str:
    try:
        return version("hwsearch")
    except PackageNotFoundError:
        return "uninstalled"
