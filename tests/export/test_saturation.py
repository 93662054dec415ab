"""An exported file is exact also where 8-bit kernels add pairs of products in saturating 16 bits.

The machine that runs the tests may have kernels that do not saturate, so those are emulated.
"""

from dataclasses import dataclass, replace

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from hwsearch.experiment import SeparatorConfig
from hwsearch.export.saturation import could_saturate
from hwsearch.network import operations
from tests.export.small import exported_network, onnx_file, raw_features
from tests.export.stored import stored
from tests.separator.small import CAUSAL, KINDS, RELU, uniform

FRAMES = 40


@dataclass(frozen=True)
class Convolution:
    """A convolution between integers, as a file holds it."""

    weights: NDArray[np.int64]
    """[out, in / groups, kernel], as stored."""
    weight_zero: int
    signed: bool
    input_zero: int
    groups: int
    dilation: int
    pads: tuple[int, int]


def integer_convolutions(model: ModelProto) -> list[Convolution]:
    """Every convolution of a file whose input and weights are integers."""
    constants = stored(model)
    writers = {output: node for node in model.graph.node for output in node.output}
    found = []
    for node in model.graph.node:
        if node.op_type != "Conv" or {writers[name].op_type for name in node.input[:2]} != {"DequantizeLinear"}:
            continue
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        read, weight = (writers[name] for name in node.input[:2])
        integers = constants[weight.input[0]]
        (weight_zero,) = set(constants[weight.input[2]].ravel().tolist()) if len(weight.input) > 2 else {0}
        found.append(
            Convolution(
                integers.astype(np.int64),
                weight_zero,
                integers.dtype == np.int8,
                int(constants[read.input[2]]),
                attributes["group"],
                attributes["dilations"][0],
                tuple(attributes["pads"]),
            )
        )
    return found


def shifted(layer: Convolution, x: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """What each tap of the kernel reads, [in, frames]; frames outside are zero, which is the input's zero point."""
    padded = np.pad(x, ((0, 0), layer.pads), constant_values=layer.input_zero)
    frames = padded.shape[1] - layer.dilation * (layer.weights.shape[2] - 1)
    return [padded[:, tap * layer.dilation :][:, :frames] for tap in range(layer.weights.shape[2])]


def exact(layer: Convolution, x: NDArray[np.int64]) -> NDArray[np.int64]:
    """The integers that the convolution means, [out, frames]."""
    weights, taps = layer.weights - layer.weight_zero, [tap - layer.input_zero for tap in shifted(layer, x)]
    if layer.groups > 1:
        return sum(weights[:, :1, index] * tap for index, tap in enumerate(taps))
    return sum(weights[:, :, index] @ tap for index, tap in enumerate(taps))


def saturating(layer: Convolution, x: NDArray[np.int64]) -> NDArray[np.int64]:
    """What kernels without VNNI make of it.

    The instruction multiplies unsigned by signed bytes and adds each product to its neighbour's in saturating 16 bits; the sums
    are added in 32 bits, and the input's zero point is taken off at the end. Depthwise kernels, and those for two unsigned
    operands, multiply in 16 and add in 32 bits.
    """
    if layer.groups > 1 or not layer.signed:
        return exact(layer, x)
    assert layer.weight_zero == 0
    total = np.zeros(1, np.int64)
    for index, tap in enumerate(shifted(layer, x)):
        products = layer.weights[:, :, index, None] * tap[None]
        products = np.pad(products, ((0, 0), (0, products.shape[1] % 2), (0, 0)))
        pairs = products[:, 0::2] + products[:, 1::2]
        total = total + pairs.clip(-(2**15), 2**15 - 1).sum(axis=1)
    return total - layer.input_zero * layer.weights.sum(axis=(1, 2))[:, None]


def inputs_of(layer: Convolution, levels: int, seed: int = 0) -> NDArray[np.int64]:
    """Random integers on a grid, and in some frames those that make a channel of the output largest or smallest."""
    channels = layer.weights.shape[1] * layer.groups
    x = np.random.default_rng(seed).integers(0, levels + 1, (channels, FRAMES))
    if layer.groups == 1:
        for frame in range(0, FRAMES, 2):
            positive = layer.weights[frame % len(layer.weights), :, 0] > layer.weight_zero
            x[:, frame] = levels * (positive if frame % 4 else ~positive)
    return x


def signed(layer: Convolution) -> Convolution:
    """The same convolution with its weights stored as int8."""
    return replace(layer, weights=layer.weights - layer.weight_zero, weight_zero=0, signed=True)


def exported_layers(config: SeparatorConfig, weight_bits: int, activation_bits: int) -> list[Convolution]:
    model = ModelProto.FromString(onnx_file(config, uniform(config, weight_bits, activation_bits)))
    return integer_convolutions(model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(8, 8), (7, 8), (8, 7), (8, 4), (2, 8)])
def test_no_convolution_of_a_file_saturates(kind: str, weight_bits: int, activation_bits: int) -> None:
    layers = exported_layers(KINDS[kind], weight_bits, activation_bits)
    assert len(layers) == 8
    for layer in layers:
        x = inputs_of(layer, 2**activation_bits - 1)
        np.testing.assert_array_equal(saturating(layer, x), exact(layer, x))


def test_eight_bit_weights_would_saturate_as_int8() -> None:
    """So that the test above can fail."""
    layers = exported_layers(CAUSAL, 8, 8)
    wrong = []
    for layer in map(signed, layers):
        x = inputs_of(layer, 255)
        np.testing.assert_array_equal(exact(layer, x), exact(layers[len(wrong)], x))
        wrong.append(bool((saturating(layer, x) != exact(layer, x)).any()))
    assert wrong == [layer.groups == 1 for layer in layers]


@pytest.mark.parametrize("groups", [1, 32])
def test_the_kernels_of_this_machine_are_exact_or_those_emulated(groups: int) -> None:
    weights = np.random.default_rng(1).integers(-127, 128, (32, 32 // groups, 3))
    layer = Convolution(weights, 0, True, 100, groups, 2, (2, 2))
    x = inputs_of(layer, 255)
    step = 4096 if groups == 1 else 256
    wanted, other = ((np.rint(kernel(layer, x) / step) + 128).clip(0, 255) for kernel in (exact, saturating))
    assert np.array_equal(wanted, other) == (groups > 1)
    found = run_convolution(layer, x, step)
    assert np.array_equal(found, wanted) or np.array_equal(found, other)
    unsigned = replace(layer, weights=weights + 128, weight_zero=128, signed=False)
    np.testing.assert_array_equal(run_convolution(unsigned, x, step), wanted)


def run_convolution(layer: Convolution, x: NDArray[np.int64], step: int) -> NDArray[np.uint8]:
    """What ONNX Runtime's kernel gives, in steps above 128."""
    kind = np.int8 if layer.signed else np.uint8
    values = {
        "x_scale": np.float32(1.0),
        "x_zero": np.uint8(layer.input_zero),
        "weights": layer.weights.astype(kind),
        "weight_scale": np.float32(1.0),
        "weight_zero": np.array(layer.weight_zero, kind),
        "y_scale": np.float32(step),
        "y_zero": np.uint8(128),
    }
    node = helper.make_node("QLinearConv", ["x", *values], ["y"], group=layer.groups, pads=layer.pads, dilations=[layer.dilation])
    graph = helper.make_graph(
        [node],
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, *x.shape])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x[None].astype(np.uint8)})[0][0]


def test_a_session_that_makes_weights_unsigned_itself_gives_the_same() -> None:
    """An option of ONNX Runtime for processors without VNNI, which fails where layers share a zero point that it changes."""
    allocation = uniform(RELU, 8, 8)
    features = {"features": raw_features(exported_network(RELU, allocation), 30).numpy()}
    masks = []
    for precise in ("0", "1"):
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.x64quantprecision", precise)
        session = onnxruntime.InferenceSession(onnx_file(RELU, allocation), options, providers=["CPUExecutionProvider"])
        masks.append(session.run(None, features)[0])
    np.testing.assert_array_equal(*masks)


def test_only_weights_that_could_saturate_are_unsigned() -> None:
    """Kernels for signed weights are up to two and a half times as fast."""
    for weight_bits, activation_bits, unsigned in ((8, 8, 6), (7, 8, 0), (8, 7, 0)):
        layers = exported_layers(RELU, weight_bits, activation_bits)
        assert sum(not layer.signed for layer in layers) == unsigned
        assert all(layer.weight_zero == (0 if layer.signed else 128) for layer in layers)


@pytest.mark.parametrize(
    ("layer", "weight", "activation_bits", "unsigned"),
    [
        (operations.Convolution("a", ("x",), stride=2), (8, 4, 3), 8, True),
        (operations.Convolution("a", ("x",), groups=2), (8, 2, 3), 8, True),  # computed as two layers are
        (operations.Convolution("a", ("x",), groups=8), (8, 1, 3), 8, False),
        (operations.Convolution("a", ("x",), groups=4), (8, 1, 3), 8, True),
        (operations.TransposedConvolution("a", ("x",)), (8, 4, 3), 8, False),  # in floating point
        (operations.Linear("a", ("x",)), (8, 4), 8, True),
        (operations.Linear("a", ("x",)), (8, 4), 16, False),  # in floating point
    ],
)
def test_every_kind_of_layer_that_could_saturate_is_known(
    layer: operations.Operation, weight: tuple[int, ...], activation_bits: int, unsigned: bool
) -> None:
    assert could_saturate(layer, weight, 8, activation_bits) == unsigned
