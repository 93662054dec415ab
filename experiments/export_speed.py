"""Times exported files in ONNX Runtime by the form of their weights: what weights that are exact on every processor cost.

    python experiments/export_speed.py

One thread. The forms of a network or layer take turns in every round, and a ratio is that of two calls of one round. Its
geometric mean over rounds is reported, with Student's 95% interval: other work on the machine widens it. The kernels are those
that ONNX Runtime takes on this machine. Results with VNNI and without stand side by side in
experiments/results/export_speed.json and .md, and a run replaces those of its own kind.
"""

import argparse
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import hwsearch  # noqa: F401 - before ONNX Runtime, which reports to its makers where nobody has switched that off

# isort: split
import numpy as np
import onnx
import onnxruntime
import torch
from hardware_validation.onnxruntime_measured import graph
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper
from scoring_speed import processor
from turns import in_turns

from hw_models.workload import FLOAT_BITS, Layer, LayerKind, Workload
from hwsearch.data.arrays import ARRAYS
from hwsearch.experiment import QuantizationConfig, SeparatorConfig
from hwsearch.export.description import ExportDescription
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.onnx_export import export_onnx
from hwsearch.export.runtime import open_session
from hwsearch.export.saturation import kernels_saturate
from hwsearch.export.verify import VerificationError, verify_onnx
from hwsearch.files.reading import read_json
from hwsearch.files.writing import atomic_write_json, atomic_write_text
from hwsearch.metrics.statistics import mean_interval
from hwsearch.network.sites import find_sites
from hwsearch.separator.allocation import uniform
from hwsearch.separator.base import EMBEDDED_BASE, load_base
from hwsearch.separator.calibration import calibrate
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.separator import Separator, build_separator
from hwsearch.separator.traced import traced

FRAMES = 250
FLOAT, SIGNED, UNSIGNED, NARROW = "float32", "8 bits as int8", "8 bits as exported", "7 bits as exported"
LAYERS = (
    (LayerKind.CONV, 64, 128),
    (LayerKind.CONV, 128, 64),
    (LayerKind.CONV, 256, 512),
    (LayerKind.CONV, 512, 256),
    (LayerKind.CONV, 128, 774),
    (LayerKind.DEPTHWISE, 128, 128),
    (LayerKind.DEPTHWISE, 512, 512),
)


@dataclass(frozen=True, eq=False)
class Subject:
    """A network or layer in every form.

    Attributes:
        sessions: by form.
        inputs: by form.
        exact: by form of 8-bit weights, what is known of its results.
    """

    name: str
    sessions: Mapping[str, onnxruntime.InferenceSession]
    inputs: Mapping[str, dict[str, NDArray[Any]]]
    exact: Mapping[str, str]
    seconds: dict[str, list[float]] = field(default_factory=dict)


def signed(model: ModelProto) -> ModelProto:
    """Store all integer weights as int8. Such a file is not exact on every processor."""
    changed = ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.data_type == TensorProto.UINT8 and tensor.dims:
            value = (numpy_helper.to_array(tensor).astype(np.int16) - 128).astype(np.int8)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return changed


def network_subject(name: str, separator: Separator) -> Subject:
    """A separator's mask network, its weights in every form."""
    graph, front_end = traced(separator), separator.front_end
    noise = torch.Generator().manual_seed(0)
    features = torch.randn(1, front_end.inputs, FRAMES, generator=noise)
    calibration = calibrate(graph, [features])
    raw = features / front_end.feature_scale[:, None] + front_end.feature_mean[:, None]
    models, exact = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        for form, bits in ((FLOAT, FLOAT_BITS), (UNSIGNED, 8), (NARROW, 7)):
            allocation = uniform(find_sites(graph), bits, FLOAT_BITS if bits == FLOAT_BITS else 8)
            quantized = build_quantized(graph, allocation, calibration, QuantizationConfig())
            network = ExportedNetwork(quantized, front_end).eval()
            description = ExportDescription.of(quantized.graph, quantized.allocation, front_end, "0" * 64)
            export_onnx(network, path, description)
            models[form] = onnx.load(path)
            if form == UNSIGNED:
                exact[form] = _verified(path, network, raw)
                models[SIGNED] = signed(models[form])
                onnx.save(models[SIGNED], path)
                exact[SIGNED] = _verified(path, network, raw)
    given = {"features": raw.numpy()}
    return Subject(name, _sessions(models), dict.fromkeys(models, given), exact)


def _verified(path: Path, network: ExportedNetwork, raw: torch.Tensor) -> str:
    try:
        verify_onnx(path, network, [raw])
    except VerificationError as error:
        return str(error).partition(": ")[2]
    return "exact"


def layer_subject(kind: LayerKind, inputs: int, outputs: int) -> Subject:
    """One layer, its weights in every form."""
    layer = Layer("layer", kind, inputs, outputs, 1 if kind is LayerKind.CONV else 3, 1, "weight", ("x",), "y", bias=True)
    workload = Workload("layer", (layer,), FRAMES, 0.016, per_channel_scales=True, site_channels={"x": inputs, "y": outputs})
    widths = {FLOAT: FLOAT_BITS, UNSIGNED: 8, NARROW: 7}
    models = {form: onnx.load_from_string(graph(workload, bits)) for form, bits in widths.items()}
    models[SIGNED] = signed(models[UNSIGNED])
    integers = np.random.default_rng(0).integers(0, 256, (1, inputs, FRAMES)).astype(np.uint8)
    given = {form: {"x": integers.astype(np.float32) if form == FLOAT else integers} for form in models}
    sessions = _sessions(models)
    found = {form: sessions[form].run(None, given[form])[0].astype(int) for form in (SIGNED, UNSIGNED)}
    wrong = float((found[SIGNED] != found[UNSIGNED]).mean())
    exact = {UNSIGNED: "exact", SIGNED: "exact" if wrong == 0 else f"{wrong:.0%} of the results are wrong"}
    return Subject(f"{kind.value} {inputs} to {outputs}", sessions, given, exact)


def _sessions(models: Mapping[str, ModelProto]) -> dict[str, onnxruntime.InferenceSession]:
    return {form: open_session(model.SerializeToString()) for form, model in models.items()}


def time_all(subjects: Sequence[Subject], rounds: int) -> None:
    """Time every form of every subject once a round."""
    calls = {
        (number, form): partial(session.run, None, subject.inputs[form])
        for number, subject in enumerate(subjects)
        for form, session in sorted(subject.sessions.items())
    }
    for (number, form), seconds in in_turns(calls, rounds).items():
        subjects[number].seconds[form] = seconds


def rows(subject: Subject) -> list[dict[str, Any]]:
    """A row of the results for each form."""
    found = []
    for form in (FLOAT, SIGNED, UNSIGNED, NARROW):
        own = np.array(subject.seconds[form])
        row = {"what": subject.name, "form": form, "median_ms": 1e3 * float(np.median(own)), "exact": subject.exact.get(form)}
        for other in (FLOAT, SIGNED):
            if other != form:
                ratio = mean_interval(np.log(np.array(subject.seconds[other]) / own))
                row[f"times as fast as {other}"] = [float(np.exp(value)) for value in (ratio.value, ratio.low, ratio.high)]
        found.append(row)
    return found


def markdown(results: Mapping[str, Any]) -> str:
    """A table for each kind of kernels."""
    lines = []
    for kernels, entry in sorted(results.items()):
        made = entry["made_by"]
        setting = f"{made['processor']}, ONNX Runtime {made['onnxruntime']}, one thread, {FRAMES} frames, {made['rounds']} rounds"
        busy = f"load {made['load']:.1f} on {made['cores']} cores, {made['date']}"
        headings = f"| what | weights | ms | times as fast as {FLOAT} | times as fast as {SIGNED} | results |"
        lines += [f"### {kernels}", "", f"{setting}; {busy}. In brackets: 95% intervals.", "", headings, "|---" * 6 + "|"]
        for row in entry["rows"]:
            ratios = [_interval(row.get(f"times as fast as {other}")) for other in (FLOAT, SIGNED)]
            lines.append(
                f"| {row['what']} | {row['form']} | {row['median_ms']:.3f} | {' | '.join(ratios)} | {row['exact'] or ''} |"
            )
        lines.append("")
    return "\n".join(lines)


def _interval(ratio: Sequence[float] | None) -> str:
    return "" if ratio is None else f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]"


def main() -> None:
    """Time the embedded base, the paper's network with ReLU, and single layers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "export_speed.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    paper = SeparatorConfig(n_fft=512, hop_length=256, ipd="angle", beam=False, B=256, H=512, X=8, R=4)
    subjects = [
        network_subject("embedded base", load_base(EMBEDDED_BASE)[0]),
        network_subject("the paper's network, with ReLU and untrained", build_separator(paper, ARRAYS["linear4"], 16000).eval()),
        *(layer_subject(*layer) for layer in LAYERS),
    ]
    time_all(subjects, arguments.rounds)
    kernels = "AVX2 kernels" if kernels_saturate() else "VNNI kernels"
    made_by = {
        "processor": processor(),
        "onnxruntime": onnxruntime.__version__,
        "rounds": arguments.rounds,
        "load": os.getloadavg()[0],
        "cores": os.cpu_count(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    results = read_json(arguments.output, "results of this benchmark") if arguments.output.is_file() else {}
    results[kernels] = {"made_by": made_by, "rows": [row for subject in subjects for row in rows(subject)]}
    atomic_write_json(arguments.output, results)
    atomic_write_text(arguments.output.with_suffix(".md"), markdown(results))
    print(markdown({kernels: results[kernels]}))


if __name__ == "__main__":
    main()
