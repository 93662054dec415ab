"""An export is a whole, proven folder, or nothing."""

import json

import pytest
import torch

from hwsearch.errors import UserError
from hwsearch.experiment import QuantizationConfig
from hwsearch.export import candidate
from hwsearch.export.candidate import export_candidate, export_network
from hwsearch.export.packed import read_packed
from hwsearch.export.runtime import OnnxSeparator
from hwsearch.export.verify import VerificationError
from hwsearch.separator.allocation import BitAllocation, uniform
from hwsearch.separator.quantized import build_quantized
from tests.separator.small import RELU, noise_mixture, small_network

CONFIG = QuantizationConfig()
MIXTURES = [(noise_mixture(2000, 1), 30.0), (noise_mixture(1500, 2), 120.0)]
ALLOCATION = uniform(RELU, 4, 8)


def export(output, graph_format="onnx", allocation=ALLOCATION):
    separator, _, calibration = small_network(RELU)
    return export_candidate(separator, allocation, calibration, CONFIG, MIXTURES, output, graph_format, "a" * 64)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_onnx_export_holds_graph_weights_allocation_and_proof(tmp_path):
    report = export(tmp_path / "exports" / "small")
    folder = tmp_path / "exports" / "small"
    assert names(folder) == ["allocation.json", "model.onnx", "verification.json", "weights.hwq"]
    assert names(folder.parent) == ["small"]
    allocation = BitAllocation.from_json(json.loads((folder / "allocation.json").read_text()), RELU, "file")
    assert allocation == ALLOCATION == read_packed(folder / "weights.hwq", RELU).allocation
    proof = json.loads((folder / "verification.json").read_text())
    assert proof["quantized_values"] == report.quantized_values > 0
    assert proof["kernels"]["integer_convolutions"] == 8
    description = OnnxSeparator(folder / "model.onnx").description
    assert description.base_digest == "a" * 64
    assert description.bit_allocation("file") == ALLOCATION


def test_a_qonnx_export_holds_a_qonnx_graph(tmp_path):
    report = export(tmp_path / "small", "qonnx")
    assert names(tmp_path / "small") == ["allocation.json", "model.qonnx.onnx", "verification.json", "weights.hwq"]
    assert report.frames == 2 * 25  # the shorter mixture's frames, for both


def test_the_exported_file_sounds_like_the_quantized_network(tmp_path):
    separator, folded, calibration = small_network(RELU)
    export(tmp_path / "small")
    mixture, doa = MIXTURES[0]
    network = build_quantized(folded, ALLOCATION, calibration, CONFIG)
    with torch.no_grad():
        wanted = separator.separate(mixture[None], torch.tensor([doa]), network)[0]
    found = torch.from_numpy(OnnxSeparator(tmp_path / "small" / "model.onnx").separate(mixture.numpy(), doa))
    assert float((found - wanted).square().sum()) < 1e-4 * float(wanted.square().sum())


def test_a_trained_network_is_exported_with_its_trained_scales(tmp_path):
    separator, folded, calibration = small_network(RELU)
    network = build_quantized(folded, ALLOCATION, calibration, CONFIG)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.05)
    export_network(separator, network, MIXTURES, tmp_path / "small", "onnx", "a" * 64)
    scale = read_packed(tmp_path / "small" / "weights.hwq", RELU).grids["features"].scale
    assert scale == pytest.approx(1.05 * calibration.grids["features"][8].scale)


def test_an_earlier_export_is_replaced(tmp_path):
    export(tmp_path / "small")
    export(tmp_path / "small", allocation=uniform(RELU, 2, 8))
    assert names(tmp_path) == ["small"]
    assert read_packed(tmp_path / "small" / "weights.hwq", RELU).allocation == uniform(RELU, 2, 8)


def test_what_is_no_export_is_never_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match="holds something that is no export"):
        export(tmp_path / "mine")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="holds something that is no export"):
        export(tmp_path / "file")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years"


@pytest.mark.parametrize("before", [False, True])
def test_a_failed_proof_leaves_nothing_behind(tmp_path, monkeypatch, before):
    if before:
        export(tmp_path / "small")
    kept = names(tmp_path)

    def fail(*_):
        raise VerificationError("an integer is 1.000 steps from the exact value")

    monkeypatch.setattr(candidate, "verify_onnx", fail)
    with pytest.raises(VerificationError):
        export(tmp_path / "small", allocation=uniform(RELU, 2, 8))
    assert names(tmp_path) == kept
    if before:
        assert read_packed(tmp_path / "small" / "weights.hwq", RELU).allocation == ALLOCATION
