"""Export of one candidate: a folder with the graph, the packed weights, the allocation and the verification report."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from hwsearch.data.example import Example
from hwsearch.errors import UserError
from hwsearch.experiment import Fidelity
from hwsearch.export.description import ExportDescription, Processors
from hwsearch.export.folder import ALLOCATION_FILE, STRUCTURE_FILE, VERIFICATION_FILE, WEIGHTS_FILE, check_output
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.packed import pack
from hwsearch.export.saturation import kernels_saturate
from hwsearch.export.verify import VerificationError, VerificationReport
from hwsearch.extensions import EXPORTERS
from hwsearch.files.writing import atomic_write_bytes, atomic_write_folder, atomic_write_json
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.trained import TrainedState, trained_network


def export_candidate(
    base: PreparedBase,
    candidate: BitAllocation | TrainedState,
    examples: Sequence[Example],
    output: Path,
    graph_format: str,
    fidelity: Fidelity = Fidelity.POST_TRAINING,
    processors: Processors = "any",
    structure: Mapping[str, int] | None = None,
) -> VerificationReport:
    """Export a candidate to a folder, which is written only if verification passes. It then replaces an earlier export.

    Args:
        base: the base of the candidate, without what the candidate leaves out.
        candidate: an allocation to apply without training, or the state after training.
        examples: at least one mixture to verify the file on.
        output: the folder to write.
        graph_format: name of an exporter, such as `onnx`.
        fidelity: how far the candidate was trained. The graph's description and the verification report repeat it.
        processors: the processors on which an ONNX file must be exact.
        structure: what the candidate keeps of what it does not keep whole. A file in the folder repeats it.

    Raises:
        UserError: `output` exists and is not an export, a package of the format is missing, or this processor cannot verify a
            file for `processors`.
        VerificationError: the file does not compute what the network does. `output` stays as it was.
    """
    check_output(output)
    exporter = EXPORTERS.load(graph_format)
    exporter.check()
    if processors == "vnni" and kernels_saturate():
        raise UserError("--for vnni: this processor has no VNNI, so it cannot verify the file; wanted --for any")
    if isinstance(candidate, TrainedState):
        network, steps = trained_network(base, candidate), candidate.steps
    else:
        network, steps = build_quantized(base.graph, candidate, base.calibration, base.quantization, base.weights), 0
    front_end, sha256 = base.separator.front_end, base.base_sha256
    exported = ExportedNetwork(network, front_end).eval()
    description = ExportDescription.of(network.graph, network.allocation, front_end, sha256, fidelity, steps, processors)
    reports: list[VerificationReport] = []

    def write(folder: Path) -> None:
        written = exporter.write(folder / exporter.file, exported, description, examples)
        atomic_write_bytes(folder / WEIGHTS_FILE, pack(exported))
        atomic_write_json(folder / ALLOCATION_FILE, network.allocation.to_json())
        if structure:
            atomic_write_json(folder / STRUCTURE_FILE, dict(structure))
        names = exporter.file, *exporter.others, WEIGHTS_FILE
        sizes = {name: (folder / name).stat().st_size for name in names}
        made = {"fidelity": fidelity.value, "training_steps": steps, "mixtures": len(examples), "bytes": sizes}
        facts = {**made, **written.facts}
        atomic_write_json(folder / VERIFICATION_FILE, {**asdict(written.report), **facts})
        reports.append(written.report)

    try:
        atomic_write_folder(output, write)
    except VerificationError as error:
        raise VerificationError(f"{output} was not written: {error}") from None
    return reports[0]
