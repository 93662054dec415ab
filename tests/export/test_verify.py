"""Verification finds a single wrong number, and lets ties pass."""

import re

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from hwsearch.errors import UserError
from hwsearch.export.verify import VerificationError, verify_onnx
from tests.export.small import exported, exported_network, raw_features
from tests.separator.small import RELU, uniform


def tampered(path, change):
    """Change the initializers of a file one by one until `change` says it has."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor).copy()
        if change(value):
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
            onnx.save(model, path)
            return
    raise AssertionError("nothing to tamper with")


def one_weight(value):
    if value.dtype == np.int8 and value.ndim == 3:
        value.flat[0] += 1 if value.flat[0] < 3 else -1
        return True
    return False


def one_scale(value):
    if value.dtype.name == "bfloat16" and value.ndim == 1 and len(value) > 1:
        value[0] *= 2
        return True
    return False


def one_zero_point(value):
    if value.dtype == np.uint8 and value.ndim == 0 and value > 127:  # no bound of a narrower grid
        value += 1
        return True
    return False


def one_bias(value):
    if value.dtype == np.int32 and value.ndim == 1 and np.abs(value).max() > 1000:
        value[np.abs(value).argmax()] *= -1
        return True
    return False


@pytest.mark.parametrize("change", [one_weight, one_scale, one_zero_point, one_bias])
def test_one_wrong_number_in_the_file_fails_verification(tmp_path, change):
    path, network = exported(tmp_path, RELU, uniform(RELU, 4, 8))
    batches = [raw_features(network, 40)]
    verify_onnx(path, network, batches)
    tampered(path, change)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: .* steps from the exact value$") as caught:
        verify_onnx(path, network, batches)
    assert isinstance(caught.value, VerificationError)


def test_a_wrong_weight_fails_verification_without_any_quantized_activation(tmp_path):
    path, network = exported(tmp_path, RELU, uniform(RELU, 4, 32))
    tampered(path, one_weight)
    with pytest.raises(VerificationError, match="the mask is off by"):
        verify_onnx(path, network, [raw_features(network, 40)])


def test_the_file_of_another_allocation_fails_verification(tmp_path):
    path, _ = exported(tmp_path, RELU, uniform(RELU, 4, 8))
    other = exported_network(RELU, uniform(RELU, 3, 8))
    with pytest.raises(VerificationError):
        verify_onnx(path, other, [raw_features(other, 40)])
    floating = exported_network(RELU, uniform(RELU, 4, 32))
    with pytest.raises(VerificationError, match="quantizes 11 activations; the allocation has 0"):
        verify_onnx(path, floating, [raw_features(floating, 40)])


def test_a_report_counts_frames_and_integers(tmp_path):
    path, network = exported(tmp_path, RELU, uniform(RELU, 4, 8))
    report = verify_onnx(path, network, [raw_features(network, 11)])
    assert report.frames == 11
    assert report.runtime.startswith("onnxruntime ")
    # 11 frames through 11 sites: the input, 2 blocks of two trunk-wide and two hidden tensors, mask input and masks.
    assert report.quantized_values == 11 * (network.features + 2 * (8 + 16 + 16 + 8) + 8 + 130)
