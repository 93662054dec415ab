"""Exported ONNX files: integer inside, self-contained, and verified integer by integer."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from onnx import numpy_helper

from hwsearch.data.arrays import ARRAYS
from hwsearch.experiment import ConvTasNetConfig
from hwsearch.export.description import read_model
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.onnx_export import export_onnx, integer_kernels
from hwsearch.export.runtime import OnnxSeparator
from hwsearch.export.verify import verify_onnx
from hwsearch.network.sites import find_sites
from hwsearch.separator import allocation
from hwsearch.separator.calibration import calibrate
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.separator import build_separator
from hwsearch.separator.traced import traced
from tests.export.small import QUANTIZATION, description, exported, exported_network, raw_features
from tests.export.stored import stored
from tests.separator.small import CAUSAL, KINDS, PRELU, RELU, allocations, normalised_features, small_network, uniform


@pytest.mark.parametrize("config", [RELU, CAUSAL])
@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(8, 8), (4, 8), (2, 5)])
def test_every_layer_runs_on_integer_kernels(tmp_path, config, weight_bits, activation_bits):
    path, _ = exported(tmp_path, config, uniform(config, weight_bits, activation_bits))
    assert integer_kernels(path) == {
        "integer_convolutions": 8,
        "float_convolutions": 0,
        "integer_adds": 2,
        "float_adds": 0,
    }


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(32, 32), (4, 32), (32, 8), (16, 8)])
def test_floating_point_sites_stay_floating_point(tmp_path, weight_bits, activation_bits):
    """With 32 bits for weights between 8-bit activations in particular: ONNX Runtime would quantize such weights by itself."""
    path, network = exported(tmp_path, RELU, uniform(RELU, weight_bits, activation_bits))
    assert integer_kernels(path)["integer_convolutions"] == 0
    report = verify_onnx(path, network, [raw_features(network, 30)])
    assert report.si_snr_db > 100
    model = onnx.load(path)
    constants, writers = stored(model), {node.output[0]: node for node in model.graph.node}
    read = [writers.get(node.input[1]) for node in model.graph.node if node.op_type == "Conv"]
    kinds = {np.dtype(np.float32) if node is None else constants[node.input[0]].dtype for node in read}
    assert kinds == {np.dtype(np.int8 if weight_bits < 16 else np.float32)}


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_allocations_are_verified_integer_by_integer(tmp_path, kind):
    config = KINDS[kind]

    @given(allocations(config))
    @settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def check(allocation):
        path, network = exported(tmp_path, config, allocation)
        report = verify_onnx(path, network, [raw_features(network, frames, frames) for frames in (1, 7, 40)])
        assert report.frames == 48
        assert report.worst_rounding <= 0.51  # 16-bit steps are fine beside the last bit of a float
        assert report.ties <= 1 + 1e-3 * report.quantized_values
        assert OnnxSeparator(path).description.bit_allocation("file") == allocation

    check()


def test_weights_in_the_file_are_the_quantizers_integers(tmp_path):
    path, network = exported(tmp_path, RELU, uniform(RELU, 3, 8))
    found = [value for value in stored(onnx.load(path)).values() if value.dtype == np.int8 and value.ndim == 3]
    wanted = [weight.integers.numpy() for weight in network.network.quantized_weights().values()]
    for integers in wanted:
        assert any(integers.shape == other.shape and np.array_equal(integers, other) for other in found)


def test_the_runtime_folds_the_weights_when_it_loads_the_file(tmp_path):
    path, network = exported(tmp_path, RELU, uniform(RELU, 3, 8))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "folded.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    constants = [numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "folded.onnx").graph.initializer]
    found = [value for value in constants if value.dtype == np.int8 and value.ndim == 3]
    wanted = [weight.integers.numpy() for weight in network.network.quantized_weights().values()]
    assert sorted(value.tolist() for value in found) == sorted(value.tolist() for value in wanted)


def test_the_file_is_self_contained_and_says_what_it_is(tmp_path):
    allocation = uniform(RELU, 4, 8)
    path, network = exported(tmp_path, RELU, allocation)
    model, found = read_model(path.read_bytes(), "file")
    assert found == description(network.network.graph, allocation)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert {opset.domain for opset in model.opset_import} <= {"", "ai.onnx"}
    (features,), (mask,) = model.graph.input, model.graph.output
    assert features.type.tensor_type.shape.dim[1].dim_value == network.features
    assert features.type.tensor_type.shape.dim[2].dim_param == "frames"
    assert mask.type.tensor_type.shape.dim[1].dim_value == 2 * 65


def test_exporting_leaves_the_network_as_it_was(tmp_path):
    allocation = uniform(RELU, 4, 8)
    network = exported_network(RELU, allocation)
    features = raw_features(network, 20)
    with torch.no_grad():
        before = network(features)
        for name in ("a.onnx", "b.onnx"):
            export_onnx(network, tmp_path / name, description(network.network.graph, allocation))
        assert torch.equal(network(features), before)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_large_biases_survive_export(tmp_path):
    """The integers of a bias may be far beyond float32's 24 bits of mantissa."""
    separator, graph, calibration = small_network(RELU)
    network = build_quantized(graph, uniform(RELU, 16, 8), calibration, QUANTIZATION)
    with torch.no_grad():
        network.layer("mask_head").bias.mul_(300)
    louder = ExportedNetwork(network, separator.front_end).eval()
    path = tmp_path / "model.onnx"
    export_onnx(louder, path, description(graph, network.allocation))
    assert verify_onnx(path, louder, [raw_features(louder, 20)]).worst_rounding < 0.51


def test_prelu_costs_the_integer_kernels_of_the_layers_before_it(tmp_path):
    """ONNX Runtime has no integer PReLU, and a convolution is integer only when a quantizer follows it directly."""
    path, _ = exported(tmp_path, PRELU, uniform(PRELU, 8, 8))
    kernels = integer_kernels(path)
    assert (kernels["integer_convolutions"], kernels["float_convolutions"]) == (4, 4)


@pytest.mark.parametrize(("activation", "floating"), [("relu", 0), ("prelu", 4)])
def test_conv_tasnet_with_relu_leaves_only_masks_and_decoder_in_floating_point(tmp_path, activation, floating):
    """ONNX Runtime fuses the sigmoid into the masks' convolution and has no integer kernel for a transposed one."""
    config = ConvTasNetConfig(network="conv-tasnet", N=16, B=8, H=16, Sc=8, X=2, R=1, activation=activation)
    separator = build_separator(config, ARRAYS["linear4"], 8000).eval()
    graph = traced(separator)
    bits = allocation.uniform(find_sites(graph), 8, 8)
    quantized = build_quantized(graph, bits, calibrate(graph, [normalised_features(separator)]), QUANTIZATION)
    network = ExportedNetwork(quantized, separator.front_end).eval()
    about = description(graph, bits).model_copy(update={"spectral": None})
    path = tmp_path / "model.onnx"
    export_onnx(network, path, about)
    verify_onnx(path, network, [raw_features(network, 500)])
    kernels = integer_kernels(path)
    convolutions = 2 + 4 * 2 - 1 + 2  # encoder and bottleneck; blocks, of which the last has no residual; masks and decoder
    assert kernels["integer_convolutions"] == convolutions - floating - 2
    assert kernels["float_convolutions"] == floating + 2


def test_the_graph_runs_in_onnx_runtime_at_any_optimization_level(tmp_path):
    path, network = exported(tmp_path, RELU, uniform(RELU, 4, 6))
    features = raw_features(network, 25).numpy()
    masks = []
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        masks.append(session.run(None, {"features": features})[0])
    for mask in masks[1:]:
        assert (mask != masks[0]).mean() < 0.2
