"""QONNX files hold one Quant node per site, of the allocation's width, and compute the network in QONNX's own executor."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from qonnx.core.modelwrapper import ModelWrapper

from hwsearch.export.description import read_model
from hwsearch.export.qonnx_export import export_qonnx
from hwsearch.export.verify import VerificationError, verify_qonnx
from tests.export.small import description, exported_network, raw_features
from tests.separator.small import KINDS, RELU, activation_sites, allocations, uniform, weight_sites

FRAMES = 12


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_allocations_compute_the_network(tmp_path, kind):
    config = KINDS[kind]

    @given(allocations(config))
    @settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def check(allocation):
        network = exported_network(config, allocation)
        path = tmp_path / "model.qonnx.onnx"
        export_qonnx(network, path, description(network.network.graph, allocation), FRAMES)
        report = verify_qonnx(path, network, [raw_features(network, FRAMES)])
        assert report.worst_rounding <= 0.51  # 16-bit steps are fine beside the last bit of a float
        assert report.runtime.startswith("qonnx ")

    check()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A QONNX file of 3 and 5 bits, its network and its allocation."""
    allocation = uniform(RELU, 3, 5)
    network = exported_network(RELU, allocation)
    path = tmp_path_factory.mktemp("qonnx") / "model.qonnx.onnx"
    export_qonnx(network, path, description(network.network.graph, allocation), FRAMES)
    return path, network, allocation


def test_every_site_is_one_quant_node_of_its_width(exported):
    path, network, allocation = exported
    model = ModelWrapper(str(path))
    widths = [int(model.get_initializer(node.input[3])) for node in model.get_nodes_by_op_type("Quant")]
    weights, activations = len(weight_sites(RELU)), len(activation_sites(RELU))
    assert sorted(widths) == [3] * weights + [5] * activations + [32] * weights  # 32: the biases
    assert model.get_tensor_shape(model.graph.input[0].name) == [1, network.features, FRAMES]
    assert read_model(path.read_bytes(), "file")[1].bit_allocation("file") == allocation


def test_a_wrong_weight_fails_verification(exported, tmp_path):
    path, network, _ = exported
    model = ModelWrapper(str(path))
    name = next(t.name for t in model.graph.initializer if len(t.dims) == 3 and t.dims[2] == 1)
    weights = model.get_initializer(name).copy()
    weights.flat[np.abs(weights).argmax()] *= -1
    model.set_initializer(name, weights)
    model.save(str(tmp_path / "wrong.onnx"))
    with pytest.raises(VerificationError, match="steps from the exact value"):
        verify_qonnx(tmp_path / "wrong.onnx", network, [raw_features(network, FRAMES)])
