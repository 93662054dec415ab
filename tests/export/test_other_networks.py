"""Networks that are no TCN, in every format, against the graph run with its tensors rounded plainly."""

from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from torch import Tensor

from hw_models.packed import packed_size_bytes
from hw_models.workload import bits_matrix
from hwsearch.export.onnx_export import export_onnx
from hwsearch.export.packed import pack
from hwsearch.export.qonnx_export import export_qonnx
from hwsearch.export.verify import verify_onnx, verify_qonnx
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.quantizers import QuantizedWeight
from hwsearch.separator.workload import build_workload
from tests.export.other_networks import MODULES, Subject, frames, mixed, rounded_run, subject, traced
from tests.export.unpacked import unpack
from tests.network.modules import CHANNELS

FRAMES = 21


def wanted(made: Subject, x: Tensor) -> Tensor:
    return rounded_run(made.truth, made.grids, x)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("seed", [0, 1])
def test_an_onnx_file_computes_the_graph(tmp_path: Path, kind: str, seed: int) -> None:
    made, path = subject(kind, mixed(kind, seed)), tmp_path / "model.onnx"
    export_onnx(made.exported, path, made.description)
    report = verify_onnx(path, made.exported, [frames(1, 0), frames(FRAMES, 1)])
    assert report.worst_rounding < 0.51
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    for count in (1, FRAMES, 40):
        x = frames(count, seed)
        (found,) = session.run(None, {"features": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), wanted(made, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(8, 8), (32, 8), (16, 8), (8, 32)])
@pytest.mark.parametrize("kind", MODULES)
def test_no_runtime_rounds_by_itself(tmp_path: Path, kind: str, weight_bits: int, activation_bits: int) -> None:
    """Weights in floating point between 8-bit tensors, a softmax between such: ONNX Runtime would have kernels of its own."""
    sites, path = traced(kind)[1], tmp_path / "model.onnx"
    widths = dict.fromkeys(sites.weights, weight_bits) | dict.fromkeys(sites.activations, activation_bits)
    made = subject(kind, BitAllocation.of(widths))
    export_onnx(made.exported, path, made.description)
    report = verify_onnx(path, made.exported, [frames(FRAMES, 2)])
    assert report.quantized_values == 0 or report.worst_rounding < 0.51
    assert report.si_snr_db is not None
    assert report.si_snr_db > 100


@pytest.mark.parametrize("kind", MODULES)
def test_a_qonnx_file_computes_the_graph(tmp_path: Path, kind: str) -> None:
    made, path, x = subject(kind, mixed(kind, 2)), tmp_path / "model.qonnx.onnx", frames(FRAMES, 3)
    export_qonnx(made.exported, path, made.description, FRAMES)
    assert verify_qonnx(path, made.exported, [x]).worst_rounding < 0.51
    model = ModelWrapper(str(path))
    (found,) = execute_onnx(model, {model.graph.input[0].name: x.numpy()}).values()
    torch.testing.assert_close(torch.from_numpy(found), wanted(made, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("seed", [3, 4])
def test_a_packed_file_holds_the_network_and_is_as_long_as_the_cost_model_says(kind: str, seed: int) -> None:
    graph, sites, _ = traced(kind)
    allocation = mixed(kind, seed)
    made = subject(kind, allocation)
    content = pack(made.exported)
    read = unpack(content, graph, CHANNELS)
    assert read.allocation == allocation
    assert read.grids == made.exported.network.activation_grids()
    parameters = dict(graph.parameters) | dict(read.trained)
    assert all(torch.equal(read.trained[name], graph.parameters[name]) for name in read.trained)
    for site, weight in read.weights.items():
        name = site.removesuffix(".weight")
        parameters[site] = weight.value if isinstance(weight, QuantizedWeight) else weight
        assert torch.equal(read.biases[site], graph.parameters[f"{name}.bias"])
        parameters[f"{name}.bias"] = made.truth.parameters[f"{name}.bias"]
    x = frames(FRAMES, seed)
    found = rounded_run(replace(graph, parameters=parameters), made.grids, x)
    torch.testing.assert_close(found, wanted(made, x), rtol=1e-5, atol=1e-6)
    workload = build_workload(graph, sites, {graph.inputs[0]: CHANNELS}, FRAMES, 0.008, kind, per_channel=True)
    assert len(content) == packed_size_bytes(workload, bits_matrix(workload, [allocation.by_site]))[0]


@pytest.mark.parametrize("kind", MODULES)
def test_the_brevitas_network_computes_the_graph(kind: str) -> None:
    made, x = subject(kind, mixed(kind, 5)), frames(FRAMES, 5)
    with torch.no_grad():
        torch.testing.assert_close(made.exported(x), wanted(made, x), rtol=1e-4, atol=1e-5)
    made.exported.train()(x).square().mean().backward()
    parameters = dict(made.exported.named_parameters())
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in parameters.values())


def test_keys_of_modules_are_never_the_same_nor_attributes_of_modules() -> None:
    network = subject("excited", mixed("excited", 0)).exported.network
    assert network.layer("values") is not None  # modules have a method of that name
    names = [*network.graph_sites.activations, *network.graph.by_name]
    assert len({network.key(name) for name in names}) == len(names)
