"""Export of one candidate: a folder with the graph, the packed weights, the allocation and the proof."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from hwsearch.experiment import Fidelity
from hwsearch.export.description import ExportDescription, NetworkStructure
from hwsearch.export.folder import (
    ALLOCATION_FILE,
    VERIFICATION_FILE,
    WEIGHTS_FILE,
    check_output,
    graph_file,
)
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.packed import write_packed
from hwsearch.export.verify import VerificationError, VerificationReport
from hwsearch.extensions import EXPORTERS
from hwsearch.files.writing import atomic_write_folder, atomic_write_json
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.front_end import FrontEnd
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.quantized import QuantizedNetwork, build_quantized
from hwsearch.separator.separator import Separator
from hwsearch.separator.trained import TrainedState, trained_network

Mixture = tuple[Tensor, float]
"""Waveforms [mics, samples] and the target's direction in degrees."""


def export_candidate(
    base: PreparedBase, allocation: BitAllocation, mixtures: Sequence[Mixture], output: Path, graph_format: str
) -> VerificationReport:
    """Export what an allocation makes of the base without training; see `export_network`."""
    network = build_quantized(base.graph, allocation, base.calibration, base.quantization)
    return export_network(base.separator, network, mixtures, output, graph_format, base.base_sha256)


def export_trained(
    base: PreparedBase,
    state: TrainedState,
    fidelity: Fidelity,
    mixtures: Sequence[Mixture],
    output: Path,
    graph_format: str,
) -> VerificationReport:
    """Export what quantization-aware training has made of the base at an allocation; see `export_network`."""
    network, digest = trained_network(base, state), base.base_sha256
    return export_network(
        base.separator, network, mixtures, output, graph_format, digest, fidelity=fidelity, training_steps=state.steps
    )


def export_network(
    separator: Separator,
    network: QuantizedNetwork,
    mixtures: Sequence[Mixture],
    output: Path,
    graph_format: str,
    base_digest: str,
    *,
    fidelity: Fidelity = Fidelity.POST_TRAINING,
    training_steps: int = 0,
) -> VerificationReport:
    """Export a quantized network, trained or not, to a folder, verified before it appears there.

    The folder appears at `output` when all is proven, and replaces an earlier export there.

    Args:
        separator: the base, for its front end.
        network: the quantized network.
        mixtures: what the file is verified on, at least one.
        output: the folder to be.
        graph_format: name of an exporter, such as `onnx`.
        base_digest: SHA-256 of the base file.
        fidelity: how far the network was trained, for the graph's description and the proof.
        training_steps: steps of that training.

    Raises:
        UserError: something that is no export is at `output`.
        VerificationError: the file does not compute what the network does; nothing is left behind.
    """
    check_output(output)
    front_end = separator.front_end
    exported = ExportedNetwork(network, front_end).eval()
    description = ExportDescription.model_validate(
        {
            "sample_rate": front_end.sample_rate,
            "array": front_end.array.name,
            "spectral": front_end.spectral,
            "network": NetworkStructure.of(network.graph),
            "allocation": network.allocation.to_json(),
            "base_digest": base_digest,
            "fidelity": fidelity,
            "training_steps": training_steps,
            "hwsearch_version": _version(),
        }
    )
    batches = [_raw_input(front_end, *mixture) for mixture in mixtures]
    reports: list[VerificationReport] = []

    def write(folder: Path) -> None:
        reports.append(_write_verified(folder, graph_format, exported, description, batches))

    try:
        atomic_write_folder(output, write)
    except VerificationError as error:
        raise VerificationError(f"{output}: was not written: {error}") from None
    return reports[0]


def _write_verified(
    folder: Path,
    graph_format: str,
    exported: ExportedNetwork,
    description: ExportDescription,
    batches: Sequence[Tensor],
) -> VerificationReport:
    """Write all files of an export into a folder, and hold the graph to the network."""
    written = EXPORTERS.load(graph_format).write(folder / graph_file(graph_format), exported, description, batches)
    made_by = {"fidelity": description.fidelity.value, "training_steps": description.training_steps}
    write_packed(folder / WEIGHTS_FILE, exported)
    atomic_write_json(folder / ALLOCATION_FILE, exported.network.allocation.to_json())
    atomic_write_json(folder / VERIFICATION_FILE, {**written.report.to_json(), **made_by, **written.facts})
    return written.report


def _raw_input(front_end: FrontEnd, mixture: Tensor, doa_deg: float) -> Tensor:
    """What the file takes for one mixture, [1, channels, frames]."""
    with torch.no_grad():
        return front_end.raw(mixture[None].float(), torch.tensor([doa_deg]))


def _version() -> str:
    try:
        return version("hwsearch")
    except PackageNotFoundError:
        return "uninstalled"
