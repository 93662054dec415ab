"""Exported files for QNN: plain integer constants behind dequantizers, fixed shapes, and exactly the network's integers."""

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto

from hwsearch.errors import UserError
from hwsearch.export.description import read_model
from hwsearch.export.qnn_export import export_qnn
from hwsearch.export.runtime import open_session
from hwsearch.export.verify import VerificationError, verify_onnx
from hwsearch.separator.allocation import BitAllocation
from tests.export.other_networks import frames, mixed, rounded_run, subject
from tests.export.small import description, exported_network, raw_features
from tests.export.test_verify import one_bias, tampered
from tests.separator.small import KINDS, RELU, allocations, uniform

FRAMES = 24


def export(folder, network, *, int4=True):
    about = description(network.network.graph, network.network.allocation)
    path = folder / "model.qnn.onnx"
    export_qnn(network, path, about, FRAMES, int4=int4)
    return path


def integer_only(widths):
    return BitAllocation.of({site: min(bits, 8 if site.endswith(".weight") else 16) for site, bits in widths})


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_allocations_are_verified_integer_by_integer(tmp_path, kind):
    config = KINDS[kind]

    @given(allocations(config))
    @settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def check(allocation):
        network = exported_network(config, integer_only(allocation.widths))
        path = export(tmp_path, network)
        report = verify_onnx(path, network, [raw_features(network, FRAMES, seed) for seed in (0, 1)], fused=False)
        assert report.ties <= 2 + 1e-3 * report.quantized_values
        _, found = read_model(path.read_bytes(), "file")
        assert found.allocation == network.network.allocation.to_json()

    check()


@pytest.mark.parametrize("kind", ["unet", "shared", "doubled"])
def test_other_networks_are_computed_as_plainly_rounded_ones(tmp_path, kind):
    found = subject(kind, integer_only(mixed(kind, 1).widths))
    path = tmp_path / "model.qnn.onnx"
    export_qnn(found.exported, path, found.description, FRAMES, int4=True)
    features = frames(FRAMES, seed=3)
    verify_onnx(path, found.exported, [features], fused=False)
    session = open_session(path.read_bytes(), fused=False)
    (mask,) = session.run(None, {"features": features.numpy()})
    wanted = rounded_run(found.truth, found.grids, features).numpy()
    assert float(((mask - wanted) ** 2).sum()) < 1e-2 * float((wanted**2).sum())


@pytest.mark.parametrize(
    ("weight_bits", "int4", "kind"),
    [(2, True, "INT4"), (4, True, "INT4"), (4, False, "INT8"), (5, True, "INT8"), (8, False, "INT8")],
)
def test_layers_read_plain_integers_and_activations_of_fixed_widths(tmp_path, weight_bits, int4, kind):
    widths = uniform(RELU, weight_bits, 8).by_site | {"blocks.0.add.output": 16, "blocks.1.add.output": 6}
    model = onnx.load(export(tmp_path, exported_network(RELU, BitAllocation.of(widths)), int4=int4))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    writers = {node.output[0]: node for node in model.graph.node}
    layers = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(layers) == 8
    for layer in layers:
        parts = [writers[name] for name in layer.input]
        assert {part.op_type for part in parts} == {"DequantizeLinear"}
        stored = [TensorProto.DataType.Name(constants[part.input[0]].data_type) for part in parts[1:]]
        assert stored == [kind, "INT32"]
    zero_points = [constants[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    types = [TensorProto.DataType.Name(tensor.data_type) for tensor in zero_points]
    assert (types.count("UINT8"), types.count("UINT16")) == (10, 1)
    assert [node.op_type for node in model.graph.node].count("Clip") == 1  # the grid of 6 bits
    for end in (model.graph.input[0], model.graph.output[0]):
        assert end.type.tensor_type.shape.dim[2].dim_value == FRAMES


def test_one_wrong_number_in_the_file_fails_verification(tmp_path):
    network = exported_network(RELU, uniform(RELU, 4, 8))
    path = export(tmp_path, network)
    tampered(path, one_bias)
    with pytest.raises(VerificationError, match=r"steps from the exact value$"):
        verify_onnx(path, network, [raw_features(network, FRAMES)], fused=False)


def test_what_qnn_does_not_take_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^'input_proj.weight' has 16 bits; --format qnn-int4 wants weights of at most 8 bits"):
        export(tmp_path, exported_network(RELU, uniform(RELU, 16, 8)))
    with pytest.raises(UserError, match=r"^'features' is in floating point; --format qnn-int4 wants quantized activations"):
        export(tmp_path, exported_network(RELU, uniform(RELU, 8, 32)))
    excited = subject("excited", integer_only(mixed("excited", 0).widths))
    with pytest.raises(UserError, match=r"^'.*' is a mean over frames, which --format qnn does not take"):
        export_qnn(excited.exported, tmp_path / "model.onnx", excited.description, FRAMES, int4=True)
    assert list(tmp_path.iterdir()) == []
