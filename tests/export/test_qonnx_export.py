"""QONNX files hold one Quant node per site, of the allocation's width, and compute the network in QONNX's own executor."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.util.inference_cost import inference_cost

from hw_models.bops import bit_operations
from hw_models.packed import average_weight_bits
from hw_models.workload import bits_matrix
from hwsearch.export.description import read_model
from hwsearch.export.qonnx_export import export_qonnx
from hwsearch.export.verify import VerificationError, verify_qonnx
from tests.export.small import description, exported_network, raw_features
from tests.separator.small import CAUSAL, KINDS, PRELU, RELU, activation_sites, allocations, small_shapes, uniform, weight_sites

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


def test_tensors_have_the_names_of_their_sites(exported):
    path, _, _ = exported
    made = {node.output[0] for node in ModelWrapper(str(path)).get_nodes_by_op_type("Quant")}
    assert made >= {*weight_sites(RELU), *activation_sites(RELU)}


@pytest.mark.parametrize("config", [RELU, CAUSAL, PRELU])
@pytest.mark.parametrize("widths", [(3, 5), (4, 8), (8, 4), (8, 16)])
def test_qonnx_counts_what_the_cost_model_counts(tmp_path, config, widths):
    """The file's own count: multiplications, their bit operations, and the bits of the weights."""
    allocation = uniform(config, *widths)
    network, path = exported_network(config, allocation), tmp_path / "model.qonnx.onnx"
    export_qonnx(network, path, description(network.network.graph, allocation), FRAMES)
    model = ModelWrapper(str(path))
    assert not model.get_nodes_by_op_type("Pad")
    found = inference_cost(model, discount_sparsity=False)["total_cost"]
    workload = small_shapes(config, network.features).workload(FRAMES, 0.008, per_channel=True)
    bits = bits_matrix(workload, [allocation.by_site])
    weights = sum(layer.weight_count for layer in workload.weight_layers)
    assert found["total_macs"] == workload.macs
    assert found["total_bops"] == bit_operations(workload, bits)[0]
    assert found["total_mem_w_bits"] == round(average_weight_bits(workload, bits)[0] * weights)


@pytest.mark.parametrize("config", [PRELU, CAUSAL.model_copy(update={"activation": "prelu"})])
def test_no_zero_points_are_left_and_padding_is_made_up_for(tmp_path, config):
    """With PReLU, the zeros around a depthwise convolution's input are not its lowest value."""
    allocation = uniform(config, 4, 8)
    network, path = exported_network(config, allocation), tmp_path / "model.qonnx.onnx"
    export_qonnx(network, path, description(network.network.graph, allocation), FRAMES)
    model = ModelWrapper(str(path))
    quantizers = model.get_nodes_by_op_type("Quant")
    assert not any(model.get_initializer(node.input[2]).any() for node in quantizers)
    added = [model.get_initializer(name) for node in model.get_nodes_by_op_type("Add") for name in node.input]
    padding = [constant for constant in added if constant is not None and constant.shape == (1, config.H, FRAMES)]
    assert len(padding) == config.X  # one for each block
    assert all(constant[..., 0].any() and not constant[..., FRAMES // 2].any() for constant in padding)
    assert verify_qonnx(path, network, [raw_features(network, FRAMES)]).worst_rounding <= 0.51


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
