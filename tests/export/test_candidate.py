"""An export is a whole, proven folder, or nothing."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from hwsearch.data.example import Example
from hwsearch.errors import UserError
from hwsearch.experiment import Fidelity, QatConfig, QuantizationConfig
from hwsearch.export import candidate, exporter, runtime
from hwsearch.export.candidate import export_candidate
from hwsearch.export.description import read_model
from hwsearch.export.folder import graph_file
from hwsearch.export.onnx_export import export_onnx
from hwsearch.export.runtime import OnnxSeparator
from hwsearch.export.saturation import kernels_saturate
from hwsearch.export.verify import VerificationError
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.trained import trained_network
from hwsearch.training.qat import train_quantized
from hwsearch.workflow import export as workflow
from tests.export.small import description
from tests.export.small import exported as exported_file
from tests.export.unpacked import unpack
from tests.separator.small import RELU, noise_mixture, sites_of, small_network, uniform
from tests.training.pools import small_base, small_pool

CONFIG = QuantizationConfig()
EXAMPLES = [
    Example(sound.numpy(), 0.5 * sound[0].numpy(), doa_deg)
    for sound, doa_deg in ((noise_mixture(2000, 1), 30.0), (noise_mixture(1500, 2), 120.0))
]
ALLOCATION = uniform(RELU, 4, 8)


def export(output, graph_format="onnx", allocation=ALLOCATION):
    return export_candidate(small_base(), allocation, EXAMPLES, output, graph_format)


def read_weights(folder):
    separator, graph, _ = small_network(RELU)
    return unpack((folder / "weights.hwq").read_bytes(), graph, separator.front_end.inputs)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of an ONNX export, and the report."""
    folder = tmp_path_factory.mktemp("export") / "exports" / "small"
    return folder, export(folder)


def test_an_onnx_export_holds_graph_weights_allocation_and_proof(exported):
    folder, report = exported
    assert names(folder) == ["allocation.json", "model.onnx", "separator.onnx", "verification.json", "weights.hwq"]
    assert names(folder.parent) == ["small"]
    allocation = BitAllocation.from_json(json.loads((folder / "allocation.json").read_text()), sites_of(RELU), "file")
    assert allocation == ALLOCATION == read_weights(folder).allocation
    proof = json.loads((folder / "verification.json").read_text())
    assert proof["quantized_values"] == report.quantized_values > 0
    assert proof["bytes"] == {name: (folder / name).stat().st_size for name in ("model.onnx", "separator.onnx", "weights.hwq")}
    assert proof["mixtures"] == len(EXAMPLES)
    assert proof["kernels"]["integer_convolutions"] == 8
    assert proof["speed"]["modelled_target"] in {"x86-onnxruntime", "x86-onnxruntime-avx2"}
    description = OnnxSeparator(folder / "model.onnx").description
    assert description.base_digest == "a" * 64
    assert (description.fidelity, description.training_steps) == (Fidelity.POST_TRAINING, 0)
    assert description.bit_allocation("file") == ALLOCATION


def test_a_qonnx_export_holds_a_qonnx_graph(tmp_path):
    report = export(tmp_path / "small", "qonnx")
    assert names(tmp_path / "small") == ["allocation.json", "model.qonnx.onnx", "verification.json", "weights.hwq"]
    assert report.frames == 2 * 25  # the shorter mixture's frames, for both


@pytest.mark.parametrize("graph_format", ["qnn", "qnn-int4"])
def test_a_qnn_export_holds_a_qnn_graph(tmp_path, graph_format):
    report = export(tmp_path / "small", graph_format)
    assert names(tmp_path / "small") == ["allocation.json", f"model.{graph_format}.onnx", "verification.json", "weights.hwq"]
    assert report.frames == 33 + 25  # both mixtures', joined: fewer than 64
    assert report.differing_fraction < 0.01


@pytest.mark.parametrize("graph_format", ["tflite", "tflite-int4"])
def test_tensorflow_lite_wants_a_package_that_is_no_requirement(tmp_path, monkeypatch, graph_format):
    monkeypatch.setattr(exporter, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"wanted: pip install 'hwsearch\[tflite\]'$"):
        export(tmp_path / "small", graph_format)
    with pytest.raises(UserError, match=r"wanted: pip install 'hwsearch\[tflite\]'$"):
        workflow.export(object(), 1, graph_format, tmp_path / "small")  # no run: nothing is loaded before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("graph_format", ["tflite", "tflite-int4"])
def test_a_tensorflow_lite_export_is_verified_on_two_kinds_of_kernels(tmp_path, graph_format):
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    report = export(tmp_path / "small", graph_format)
    graph = graph_file(graph_format)
    assert names(tmp_path / "small") == sorted(["allocation.json", graph, "verification.json", "weights.hwq"])
    proof = json.loads((tmp_path / "small" / "verification.json").read_text())
    assert proof["runtime"].endswith("plain kernels")
    assert proof["xnnpack"]["quantized_values"] == report.quantized_values > 0
    assert proof["speed"]["frames"] == proof["graph_frames"]
    assert proof["speed"]["modelled_target"] is None
    assert proof["bytes"][graph] == (tmp_path / "small" / graph).stat().st_size


def test_the_exported_file_sounds_like_the_quantized_network(exported):
    separator, graph, calibration = small_network(RELU)
    mixture, doa = torch.from_numpy(EXAMPLES[0].mixture), EXAMPLES[0].doa_deg
    network = build_quantized(graph, ALLOCATION, calibration, CONFIG)
    with torch.no_grad():
        wanted = separator.separate(mixture[None], torch.tensor([doa]), network)[0]
    found = torch.from_numpy(OnnxSeparator(exported[0] / "model.onnx").separate(mixture.numpy(), doa))
    assert float((found - wanted).square().sum()) < 1e-4 * float(wanted.square().sum())


@pytest.mark.parametrize("allocation", [ALLOCATION, uniform(RELU, 2, 4), uniform(RELU, 3, 32)])
def test_the_file_of_a_trained_candidate_is_the_brevitas_network_in_its_trained_state(tmp_path, allocation):
    """That the file computes what the network does is proven by the export itself; here, that the network is the trained one."""
    base = small_base()
    state = train_quantized(base, allocation, small_pool(), QatConfig(batch_size=2), 4, 0)
    report = export_candidate(base, state, EXAMPLES, tmp_path / "small", "onnx", Fidelity.SHORT_QAT)
    assert report.frames > 0
    mixture, doa = torch.from_numpy(EXAMPLES[0].mixture), EXAMPLES[0].doa_deg
    network = trained_network(base, state)
    with torch.no_grad():
        wanted = base.separator.separate(mixture[None], torch.tensor([doa]), network)[0]
        untrained = base.separator.separate(
            mixture[None], torch.tensor([doa]), build_quantized(base.graph, allocation, base.calibration, CONFIG)
        )[0]
    exported = OnnxSeparator(tmp_path / "small" / "model.onnx")
    found = torch.from_numpy(exported.separate(mixture.numpy(), doa))
    error = float((found - wanted).square().sum())
    assert error < 1e-4 * float(wanted.square().sum())
    assert error < 0.05 * float((untrained - wanted).square().sum())
    packed = read_weights(tmp_path / "small")
    assert packed.allocation == allocation
    assert packed.grids == network.activation_grids()
    weights = network.quantized_weights()["mask_head.weight"]
    assert torch.equal(packed.weights["mask_head.weight"].integers, weights.integers)
    assert torch.equal(packed.weights["mask_head.weight"].scale, weights.scale)


@pytest.mark.parametrize("graph_format", ["onnx", "qonnx"])
def test_an_export_says_how_far_it_was_trained(tmp_path, graph_format):
    base = small_base()
    state = train_quantized(base, ALLOCATION, small_pool(), QatConfig(batch_size=2), 2, 0)
    export_candidate(base, state, EXAMPLES, tmp_path / "small", graph_format, Fidelity.SHORT_QAT)
    graph = (tmp_path / "small" / graph_file(graph_format)).read_bytes()
    description = read_model(graph, "file")[1]
    assert (description.fidelity, description.training_steps) == (Fidelity.SHORT_QAT, 2)
    assert description.base_digest == base.base_sha256
    proof = json.loads((tmp_path / "small" / "verification.json").read_text())
    assert (proof["fidelity"], proof["training_steps"]) == ("short-qat", 2)


def test_an_earlier_export_is_replaced(exported, tmp_path):
    shutil.copytree(exported[0], tmp_path / "small")
    export(tmp_path / "small", allocation=uniform(RELU, 2, 8))
    assert names(tmp_path) == ["small"]
    assert read_weights(tmp_path / "small").allocation == uniform(RELU, 2, 8)


def test_what_is_no_export_is_never_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match="holds something that is no export"):
        export(tmp_path / "mine")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="holds something that is no export"):
        export(tmp_path / "file")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years"


def test_an_output_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "here").mkdir()
    (tmp_path / "closed").mkdir(mode=0o500)
    monkeypatch.chdir(tmp_path / "here")
    refusals = {
        tmp_path / "loop": "cannot be written (Too many levels of symbolic links); wanted a new folder or an earlier export",
        tmp_path / "loop" / "out": "cannot be written (Too many levels of symbolic links); wanted a new folder",
        Path("/dev/null/out"): "cannot be written (Not a directory); wanted a new folder or an earlier export",
        Path("/proc/new/out"): "cannot be written",
        Path(): "is the current folder; wanted another one to write",
        tmp_path / "here": "is the current folder",
    }
    if os.geteuid() != 0:
        refusals[tmp_path / "closed" / "new" / "out"] = "cannot be written (Permission denied)"
    for output, wanted in refusals.items():
        with pytest.raises(UserError, match=f"^{re.escape(str(output))}: {re.escape(wanted)}") as refused:
            export(output)
        assert "\n" not in str(refused.value)
    assert names(tmp_path) == ["closed", "here", "loop"]
    assert names(tmp_path / "here") == names(tmp_path / "closed") == []


@pytest.mark.parametrize("before", [False, True])
def test_a_failed_proof_leaves_nothing_behind(exported, tmp_path, monkeypatch, before):
    if before:
        shutil.copytree(exported[0], tmp_path / "small")
    kept = names(tmp_path)

    def fail(*_):
        raise VerificationError("an integer is 1.000 steps from the exact value")

    monkeypatch.setattr("hwsearch.export.verify.verify_onnx", fail)
    with pytest.raises(VerificationError, match=f"^{re.escape(str(tmp_path / 'small'))} was not written: an integer is"):
        export(tmp_path / "small", allocation=uniform(RELU, 2, 8))
    assert names(tmp_path) == kept
    if before:
        assert read_weights(tmp_path / "small").allocation == ALLOCATION


@pytest.mark.skipif(kernels_saturate(), reason="this processor has no VNNI")
def test_a_file_for_vnni_holds_signed_weights_and_separates_alike(tmp_path):
    estimates = []
    for processors, unsigned in (("any", 6), ("vnni", 0)):
        folder = tmp_path / processors
        export_candidate(small_base(), uniform(RELU, 8, 8), EXAMPLES, folder, "onnx", processors=processors)
        weights = [tensor for tensor in onnx.load(folder / "model.onnx").graph.initializer if len(tensor.dims) == 3]
        assert sum(tensor.data_type == TensorProto.UINT8 for tensor in weights) == unsigned
        estimates.append(OnnxSeparator(folder / "model.onnx").separate(EXAMPLES[0].mixture, 30.0))
    np.testing.assert_array_equal(*estimates)


def test_without_vnni_a_file_for_it_is_neither_made_nor_run(tmp_path, monkeypatch):
    for module in (candidate, runtime):
        monkeypatch.setattr(module, "kernels_saturate", lambda: True)
    with pytest.raises(UserError, match=r"--for vnni: this processor has no VNNI, so .*; wanted --for any"):
        export_candidate(small_base(), ALLOCATION, EXAMPLES, tmp_path / "small", "onnx", processors="vnni")
    assert not (tmp_path / "small").exists()
    path, network = exported_file(tmp_path, RELU, uniform(RELU, 8, 8))
    about = description(network.network.graph, uniform(RELU, 8, 8)).model_copy(update={"processors": "vnni"})
    export_onnx(network, path, about)
    with pytest.raises(UserError, match="for processors with VNNI, and this one has none; export it with --for any"):
        OnnxSeparator(path)
