"""Exported TensorFlow Lite files: integers only, the same in three sets of kernels up to counted roundings, and verified."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hwsearch.errors import UserError
from hwsearch.experiment import QuantizationConfig
from hwsearch.export.network import ExportedNetwork
from hwsearch.network.sites import find_sites, with_reads
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.calibration import calibrate
from hwsearch.separator.quantized import build_quantized
from tests.export.other_networks import mixed, subject
from tests.export.small import description, exported_network
from tests.separator.small import (
    CAUSAL,
    KINDS,
    PRELU,
    RELU,
    allocations,
    noise_mixture,
    normalised_features,
    small_network,
    uniform,
)

interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")

from ai_edge_litert import schema_py_generated as schema  # noqa: E402

from hwsearch.export.tflite.export import export_tflite, read_tflite  # noqa: E402
from hwsearch.export.tflite.verify import verify_tflite  # noqa: E402
from hwsearch.export.verify import VerificationError  # noqa: E402

FRAMES = 24
TYPES = {value: name for name, value in vars(schema.TensorType).items() if name.isupper()}
CODES = {value: name for name, value in vars(schema.BuiltinOperator).items() if name.isupper()}


def heard(network, frames=FRAMES):
    """Raw features of noise, as the network was calibrated on, in windows [1, features, frames]."""
    separator, _, _ = small_network(RELU)
    with torch.no_grad():
        raw = separator.front_end.raw(noise_mixture(4000, 1)[None], torch.tensor([60.0]))
    return [raw[..., first : first + frames] for first in range(0, raw.shape[-1] - frames + 1, frames)]


def export(folder, network, *, int4=False):
    about = description(network.network.graph, network.network.allocation)
    path = folder / "model.tflite"
    return path, export_tflite(network, path, about, FRAMES, int4=int4)


def parsed(path):
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    (graph,) = model.subgraphs
    codes = [CODES[model.operatorCodes[operator.opcodeIndex].builtinCode] for operator in graph.operators]
    return model, graph, codes


def constant(model, tensor, kind):
    return np.frombuffer(model.buffers[tensor.buffer].data.tobytes(), kind).reshape(tensor.shape)


def in_reference(content, stored):
    """The output of LiteRT's plain kernels."""
    run = interpreter.Interpreter(model_content=content, experimental_op_resolver_type=interpreter.OpResolverType.BUILTIN_REF)
    run.allocate_tensors()
    run.set_tensor(run.get_input_details()[0]["index"], stored)
    run.invoke()
    return run.get_tensor(run.get_output_details()[0]["index"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("weight_bits", "activation_bits", "int4"), [(8, 8, False), (4, 8, True), (2, 5, False), (2, 5, True), (6, 16, False)]
)
def test_every_layer_gives_the_nearest_integers_up_to_the_second_rounding(tmp_path, kind, weight_bits, activation_bits, int4):
    config = KINDS[kind]
    network = exported_network(config, uniform(config, weight_bits, activation_bits))
    path, graph = export(tmp_path, network, int4=int4)
    plain, fast = verify_tflite(path, graph, network, heard(network))
    assert plain.quantized_values == fast.quantized_values > 0
    assert plain.worst_rounding <= (0.77 if activation_bits <= 8 else 4.5)  # 16-bit steps are fine
    assert min(plain.si_snr_db, fast.si_snr_db) > 20


def test_8_bit_networks_are_almost_exact(tmp_path):
    """XNNPACK rounds once, so only ties are left."""
    network = exported_network(RELU, uniform(RELU, 8, 8))
    path, graph = export(tmp_path, network)
    plain, fast = verify_tflite(path, graph, network, heard(network))
    assert fast.ties <= 2
    assert plain.ties < 0.01 * plain.quantized_values


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_allocations_are_verified_integer_by_integer(tmp_path, kind):
    config = KINDS[kind]

    @given(allocations(config))
    @settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def check(allocation):
        widths = {site: min(bits, 8) if site.endswith(".weight") else min(bits, 16) for site, bits in allocation.widths}
        network = exported_network(config, BitAllocation.of(widths))
        path, graph = export(tmp_path, network, int4=True)
        verify_tflite(path, graph, network, heard(network))
        found, _ = read_tflite(path.read_bytes(), "file")
        assert found.allocation == widths

    check()


def test_a_trunk_of_16_bits_is_summed_in_int16_and_read_in_int8(tmp_path):
    separator, graph, _ = small_network(RELU)
    wide = with_reads(graph)
    calibration = calibrate(wide, [normalised_features(separator, 3000, mixture) for mixture in (1, 2)])
    sites = find_sites(wide)
    widths = dict.fromkeys(sites.weights, 8) | dict.fromkeys(sites.activations, 8) | dict.fromkeys(sites.carried, 16)
    network = ExportedNetwork(
        build_quantized(wide, BitAllocation.of(widths), calibration, QuantizationConfig()), separator.front_end
    ).eval()
    path, written = export(tmp_path, network)
    plain, fast = verify_tflite(path, written, network, heard(network))
    assert min(plain.si_snr_db, fast.si_snr_db) > 30
    _, file, codes = parsed(path)
    read = [TYPES[file.tensors[operator.inputs[0]].type] for operator in file.operators]
    kinds = set(zip(codes, read, strict=True))
    assert {kind for kind in kinds if kind[0] in ("ADD", "CONV_2D", "DEPTHWISE_CONV_2D")} == {
        ("ADD", "INT16"),
        ("CONV_2D", "INT8"),
        ("DEPTHWISE_CONV_2D", "INT8"),
    }


@pytest.mark.parametrize("int4", [True, False])
def test_weights_are_the_quantizers_integers_in_the_narrowest_type(tmp_path, int4):
    allocation = uniform(RELU, 3, 8)
    network = exported_network(RELU, allocation)
    path, _ = export(tmp_path, network, int4=int4)
    model, file, _ = parsed(path)
    tensors = {tensor.name.decode(): tensor for tensor in file.tensors}
    for site, weight in network.network.quantized_weights().items():
        tensor, wanted = tensors[site], weight.integers.numpy()
        depthwise = wanted.shape[1] == 1 and "depthwise" in site
        narrow = int4 and not depthwise
        assert TYPES[tensor.type] == ("INT4" if narrow else "INT8")
        if narrow:
            pairs = model.buffers[tensor.buffer].data.view(np.int8)
            found = np.stack([pairs << 4 >> 4, pairs >> 4], axis=1).ravel()[: wanted.size].reshape(tensor.shape)
        else:
            found = constant(model, tensor, np.int8)
        found = found[0].transpose(2, 0, 1) if depthwise else found[:, 0].transpose(0, 2, 1)
        scale = np.array(tensor.quantization.scale)
        assert np.array_equal(found * scale[:, None, None], wanted * weight.scale.numpy())
        assert np.abs(found).max() <= (7 if narrow else 127)


def test_buffers_are_aligned_for_microcontrollers(tmp_path):
    path, _ = export(tmp_path, exported_network(RELU, uniform(RELU, 4, 16)))
    content = np.frombuffer(path.read_bytes(), np.uint8)
    model = schema.Model.GetRootAs(content.tobytes(), 0)
    places = [model.Buffers(number) for number in range(model.BuffersLength())]
    starts = [each._tab.Vector(each._tab.Offset(4)) for each in places if each.DataLength()]
    assert len(starts) > 16
    assert {start % 16 for start in starts} == {0}


@pytest.mark.parametrize(
    ("kind", "weight_bits", "activation_bits"),
    [("relu", 8, 8), ("relu", 3, 6), ("causal", 4, 8), ("prelu", 8, 8), ("relu", 8, 16)],
)
def test_tensorflow_lite_micro_gives_the_same_integers(tmp_path, kind, weight_bits, activation_bits):
    runtime = pytest.importorskip("tflite_micro.python.tflite_micro.runtime", reason="tflite-micro is not installed")
    config = KINDS[kind]
    network = exported_network(config, uniform(config, weight_bits, activation_bits))
    path, graph = export(tmp_path, network, int4=weight_bits < 8)
    micro = runtime.Interpreter.from_bytes(path.read_bytes())
    for features in heard(network):
        stored = graph.stored_input(network.normalise(features))
        micro.set_input(stored, 0)
        micro.invoke()
        assert np.array_equal(micro.get_output(0), in_reference(path.read_bytes(), stored))


@pytest.mark.parametrize("weight_bits", [4, 8])
def test_one_scale_for_all_weights_of_a_layer(tmp_path, weight_bits):
    separator, graph, calibration = small_network(RELU)
    config = QuantizationConfig(weight_scale="per_tensor")
    network = ExportedNetwork(
        build_quantized(graph, uniform(RELU, weight_bits, 8), calibration, config), separator.front_end
    ).eval()
    path, written = export(tmp_path, network, int4=True)
    plain, fast = verify_tflite(path, written, network, heard(network))
    assert max(plain.worst_rounding, fast.worst_rounding) <= 0.77


def test_the_file_says_what_it_is_and_how_its_features_are_normalised(tmp_path):
    network = exported_network(RELU, uniform(RELU, 4, 6))
    path, graph = export(tmp_path, network)
    found, (mean, scale) = read_tflite(path.read_bytes(), "file")
    assert found == description(network.network.graph, network.network.allocation)
    _, file, _ = parsed(path)
    tensor = file.tensors[file.inputs[0]]
    assert list(tensor.shape) == [1, 1, FRAMES, network.features]
    (step,), (zero,) = tensor.quantization.scale, tensor.quantization.zeroPoint
    (features, *_) = heard(network)
    # What the page tells hosts to compute.
    normal = (features.numpy()[0].T - mean) * scale
    stored = np.clip(np.round(normal / step) + zero, 127 - (2**6 - 1), 127).astype(np.int8)
    assert np.array_equal(stored[None, None], graph.stored_input(network.normalise(features)))


def test_equal_networks_give_equal_files(tmp_path):
    network = exported_network(RELU, uniform(RELU, 4, 8))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert export(tmp_path / "a", network)[0].read_bytes() == export(tmp_path / "b", network)[0].read_bytes()


def test_a_changed_or_foreign_file_is_refused(tmp_path):
    path, _ = export(tmp_path, exported_network(RELU, uniform(RELU, 4, 8)))
    content = path.read_bytes()
    for foreign in (b"", b"no file", bytes(2000), content[:1000]):
        with pytest.raises(UserError, match=r"^file: .*; wanted one made by 'hwsearch export'$"):
            read_tflite(foreign, "file")

    @given(st.integers(0, len(content) - 1), st.integers(1, 255))
    @settings(max_examples=200, deadline=None)
    def check(place, change):
        changed = content[:place] + bytes([content[place] ^ change]) + content[place + 1 :]
        with pytest.raises(UserError, match=r"^file: "):
            read_tflite(changed, "file")

    check()


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("hwsearch", None),
        ("hwsearch", b"no description"),
        ("hwsearch_features", None),
        ("hwsearch_features", bytes(7)),
        ("hwsearch_features", bytes(4 * 3)),
        ("hwsearch_features", bytes(4 * 4)),
    ],
)
def test_a_sealed_file_with_other_metadata_is_refused(tmp_path, entry, value):
    network = exported_network(RELU, uniform(RELU, 4, 8))
    path, graph = export(tmp_path, network)
    model, _, _ = parsed(path)
    metadata = {each.name.decode(): model.buffers[each.buffer].data.tobytes() for each in model.metadata}
    zeros = {"hwsearch_sha256": b"sha256:" + b"0" * 64}

    def sealed(entries):
        content = graph.content(entries | zeros)
        return content.replace(zeros["hwsearch_sha256"], b"sha256:" + hashlib.sha256(content).hexdigest().encode())

    assert sealed(metadata) == path.read_bytes()
    changed = {name: found for name, found in metadata.items() if name != entry} | ({} if value is None else {entry: value})
    with pytest.raises(UserError, match=r"^file: its description, or mean .* of another version; export it again$"):
        read_tflite(sealed(changed), "file")


def test_a_file_that_makes_another_site_than_its_output_fails_verification(tmp_path):
    network = exported_network(RELU, uniform(RELU, 4, 8))
    path, graph = export(tmp_path, network)
    other = next(iter(graph.sites.values()))
    path.write_bytes(replace(graph, output=other).content())
    with pytest.raises(VerificationError, match="its output changes when inner tensors are read"):
        verify_tflite(path, replace(graph, output=other), network, heard(network))


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_one_wrong_number_in_the_file_fails_verification(tmp_path, part):
    network = exported_network(RELU, uniform(RELU, 8, 8))
    path, graph = export(tmp_path, network)
    (tensor,) = (each for each in graph.writer._tensors if each.name == f"blocks.1.project.{part}")
    buffer = graph.writer._buffers[tensor.buffer]
    values = np.frombuffer(buffer._content, "int8" if part == "weight" else "int32").copy()
    place = np.abs(values.astype(int)).argmax()
    values[place] = -values[place]
    buffer._content = values.tobytes()
    path.write_bytes(graph.content())
    with pytest.raises(VerificationError, match=r"at 'blocks.1.project.output' an integer is .* steps from the exact value$"):
        verify_tflite(path, graph, network, heard(network))


@pytest.mark.parametrize(
    ("weight_bits", "activation_bits", "said"),
    [
        (16, 8, "'input_proj.weight' has 16 bits; --format tflite wants weights of at most 8 bits (search.weight_bits)"),
        (
            32,
            8,
            "'input_proj.weight' is in floating point; --format tflite wants weights of at most 8 bits (search.weight_bits)",
        ),
        (8, 32, "'features' is in floating point; --format tflite wants quantized activations (search.activation_bits)"),
    ],
)
def test_widths_that_no_integer_kernel_takes_are_refused(tmp_path, weight_bits, activation_bits, said):
    with pytest.raises(UserError) as caught:
        export(tmp_path, exported_network(RELU, uniform(RELU, weight_bits, activation_bits)))
    assert str(caught.value) == said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["unet", "excited", "shared"])
def test_operations_without_a_kernel_are_refused(tmp_path, kind):
    widths = {site: min(bits, 8) for site, bits in mixed(kind, 0).widths}
    network = subject(kind, BitAllocation.of(widths)).exported
    with pytest.raises(UserError, match=r"^'.*' is a .* that --format tflite does not take; wanted convolutions, "):
        export(tmp_path, network)
    assert list(tmp_path.iterdir()) == []


def test_leaky_relus_of_any_one_positive_slope(tmp_path):
    network = exported_network(PRELU, uniform(PRELU, 8, 8))
    _, _, codes = parsed(export(tmp_path, network)[0])
    assert codes.count("LEAKY_RELU") == 4
    _, _, codes = parsed(export(tmp_path, exported_network(CAUSAL, uniform(CAUSAL, 8, 8)))[0])
    assert codes.count("PAD") == 2
