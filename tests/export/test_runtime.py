"""An exported file separates recordings of any length, and a bad file or recording gets one clear line."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from hwsearch.errors import UserError
from hwsearch.export.description import decoded, encoded
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.onnx_export import export_onnx
from hwsearch.export.qonnx_export import export_qonnx
from hwsearch.export.runtime import OnnxSeparator
from hwsearch.network.context import context
from hwsearch.network.sites import find_sites
from hwsearch.network.trace import trace
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.calibration import calibrate
from hwsearch.separator.features import apply_mask, features, starting_mask
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.stft import istft, stft
from tests.export.other_networks import MODULES
from tests.export.small import QUANTIZATION, description, exported, exported_network
from tests.fuzz.models import sealed
from tests.network.modules import CHANNELS, UNet, settle
from tests.separator.small import CAUSAL, KINDS, PRELU, RELU, noise_mixture, small_network, small_separator, uniform


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One exported file of each kind, at 8 bits; and one in floating point, where nothing can tip at a tie."""
    return {
        f"{kind}{ending}": exported(tmp_path_factory.mktemp("files"), config, uniform(config, bits, bits))[0]
        for kind, config in KINDS.items()
        for ending, bits in (("", 8), ("-float", 32))
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("samples", [1, 63, 64, 128, 1000, 3001])
def test_the_file_separates_as_the_separator_does(files, kind, samples):
    mixture = noise_mixture(samples)
    separator = small_separator(KINDS[kind])
    with torch.no_grad():
        wanted = separator(mixture[None], torch.tensor([40.0]))[0].numpy()
    found = OnnxSeparator(files[f"{kind}-float"], threads=1).separate(mixture.numpy(), 40.0)
    assert found.shape == (samples,)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * max(np.abs(wanted).max(), 1e-3))


@pytest.mark.parametrize("kind", KINDS)
@given(samples=st.integers(1, 6000), chunk=st.integers(1, 60))
@settings(max_examples=12, deadline=None)
def test_chunks_give_the_result_of_the_whole(files, kind, samples, chunk):
    mixture = noise_mixture(samples, seed=samples).numpy()
    separator = OnnxSeparator(files[f"{kind}-float"], threads=1)
    whole = separator.separate(mixture, 100.0, chunk_frames=10_000)
    np.testing.assert_allclose(
        separator.separate(mixture, 100.0, chunk_frames=chunk), whole, atol=1e-5 * max(np.abs(whole).max(), 1e-3)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_integer_files_agree_in_chunks_but_for_ties(files, kind):
    mixture = noise_mixture(40_000).numpy()
    separator = OnnxSeparator(files[kind], threads=1)
    whole = separator.separate(mixture, 100.0, chunk_frames=10_000)
    chunked = separator.separate(mixture, 100.0, chunk_frames=100)
    assert np.square(chunked - whole).sum() < 1e-4 * np.square(whole).sum()


def export_module(path, module, bits=32):
    """A file of a module between features and mask; the separator around it."""
    separator = small_separator(RELU)
    features = separator.front_end.inputs
    graph = trace(settle(module, seed=0), [torch.randn(1, features, 20)])
    sites = find_sites(graph)
    allocation = BitAllocation.of(dict.fromkeys(sites.all, bits))
    network = build_quantized(graph, allocation, calibrate(graph, [torch.randn(1, features, 20)]), QUANTIZATION)
    export_onnx(ExportedNetwork(network, separator.front_end).eval(), path, description(graph, allocation))
    return separator


@pytest.mark.parametrize(("kind", "channels"), [("unet", CHANNELS), ("excited", CHANNELS), ("shared", 3 * CHANNELS)])
def test_files_of_other_networks_are_accepted(tmp_path, kind, channels):
    path = tmp_path / "model.onnx"
    module = nn.Sequential(nn.Conv1d(260, CHANNELS, 1), MODULES[kind](), nn.Conv1d(channels, 130, 1))
    export_module(path, module, bits=8)
    assert np.isfinite(OnnxSeparator(path).separate(noise_mixture(900).numpy(), 10.0)).all()


@given(samples=st.integers(1, 6000), chunk=st.integers(1, 60))
@settings(max_examples=10, deadline=None)
def test_a_network_with_strides_gives_in_chunks_the_result_of_the_whole(unet, samples, chunk):
    mixture = noise_mixture(samples, seed=samples).numpy()
    whole = unet.separate(mixture, 100.0, chunk_frames=10_000)
    found = unet.separate(mixture, 100.0, chunk_frames=chunk)
    np.testing.assert_allclose(found, whole, atol=1e-5 * max(np.abs(whole).max(), 1e-3))


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    """A separator whose network is a UNet, from its file."""
    path = tmp_path_factory.mktemp("unet") / "model.onnx"
    export_module(path, nn.Sequential(nn.Conv1d(260, CHANNELS, 1), UNet(), nn.Conv1d(CHANNELS, 130, 1)))
    return OnnxSeparator(path, threads=1)


def test_a_network_that_looks_at_all_frames_gets_them_at_once(tmp_path):
    """A norm over all frames."""
    module = nn.Sequential(nn.Conv1d(260, 4, 1), nn.GroupNorm(1, 4), nn.Conv1d(4, 130, 1))
    separator = export_module(tmp_path / "model.onnx", module)
    mixture = noise_mixture(5000)
    spectrum = stft(mixture[None], RELU.n_fft, RELU.hop_length)
    raw = features(spectrum, torch.tensor([30.0]), separator.front_end.array, 8000, RELU.ipd, beam=RELU.beam)
    with torch.no_grad():
        mask = module(separator.front_end.normalise(raw))
    wanted = apply_mask(spectrum[:, 0], mask, starting_mask(raw, spectrum.shape[-2], beam=RELU.beam))
    wanted = istft(wanted, RELU.n_fft, RELU.hop_length, 5000)[0].numpy()
    found = OnnxSeparator(tmp_path / "model.onnx", threads=1).separate(mixture.numpy(), 30.0, chunk_frames=7)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("config", [PRELU, CAUSAL])
def test_a_mask_depends_on_its_context_and_on_nothing_else(config):
    separator = small_separator(config)
    reach = context(small_network(config)[1])
    random = torch.Generator().manual_seed(0)
    features = torch.randn(1, separator.front_end.inputs, 40, generator=random).requires_grad_()
    separator.network(features)[..., 20].sum().backward()
    frames = features.grad.abs().sum(dim=(0, 1)).nonzero().flatten()
    assert (int(frames.min()), int(frames.max())) == (20 - reach.before, 20 + reach.after)


def test_silence_stays_silence(files):
    assert not OnnxSeparator(files["relu"]).separate(np.zeros((4, 2000), np.float32), 0.0).any()


@pytest.mark.parametrize(
    ("mixture", "doa", "wanted"),
    [
        (np.zeros((3, 100), np.float32), 0.0, r"wanted \[4, samples\] for the array 'linear4'"),
        (np.zeros(100, np.float32), 0.0, r"shape \(100,\)"),
        (np.zeros((4, 0), np.float32), 0.0, r"shape \(4, 0\)"),
        (np.full((4, 100), np.nan, np.float32), 0.0, "not finite"),
        (np.full((4, 100), -np.inf, np.float32), 0.0, "not finite"),
        (np.full((4, 100), 1e19, np.float32), 0.0, r"beyond 2.14748e\+09; full scale is 1"),
        (np.full((4, 100), -1e300), 0.0, "beyond"),
        (np.ones((4, 100), np.complex64), 0.0, "type complex64; wanted float32"),
        (np.ones((4, 100), bool), 0.0, "type bool"),
        (np.full((4, 100), "1"), 0.0, "type <U1"),
        (np.zeros((4, 100), np.float32), -1.0, "direction -1.0 degrees; wanted 0 to 180"),
        (np.zeros((4, 100), np.float32), 181.0, "wanted 0 to 180"),
        (np.zeros((4, 100), np.float32), float("nan"), "direction nan"),
    ],
)
def test_bad_recordings_and_directions_are_one_clear_line(files, mixture, doa, wanted):
    with pytest.raises(UserError, match=wanted) as caught:
        OnnxSeparator(files["relu"]).separate(mixture, doa)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float64, np.int16, np.uint8])
def test_other_numbers_are_taken_as_they_are(files, dtype):
    mixture = (100 + 1000 * noise_mixture(300)).clamp(0, 255).numpy().astype(dtype)
    separator = OnnxSeparator(files["relu-float"], threads=1)
    np.testing.assert_array_equal(separator.separate(mixture, 40.0), separator.separate(mixture.astype(np.float32), 40.0))


def test_the_runtime_writes_nothing_of_what_it_refuses(files, tmp_path, capfd):
    model = onnx.load(files["relu"])
    scales = next(tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.BFLOAT16)
    scales.raw_data = scales.raw_data[:-1]
    (tmp_path / "bad.onnx").write_bytes(sealed(model.SerializeToString()))
    with pytest.raises(UserError, match="ONNX Runtime refuses it"):
        OnnxSeparator(tmp_path / "bad.onnx")
    assert capfd.readouterr().err == ""


def test_what_the_runtime_refuses_to_run_is_one_clear_line(files):
    three = np.ones((3, 128), np.float32)
    with pytest.raises(UserError, match="the model cannot be run"):
        list(OnnxSeparator(files["relu"]).separate_blocks(lambda: iter([three]), 128, 0.0))


@pytest.mark.parametrize("chunk", [0, -1])
def test_chunks_of_nothing_are_refused(files, chunk):
    with pytest.raises(UserError, match=f"chunks of {chunk} frames; wanted at least 1"):
        OnnxSeparator(files["relu"]).separate(np.ones((4, 100), np.float32), 0.0, chunk)


def without_metadata(model):
    del model.metadata_props[:]


def described(old, new):
    """Damage to the description."""

    def damage(model):
        entry = model.metadata_props[0]
        entry.value = encoded(decoded(entry.value).replace(old, new))

    return damage


def of_candidate(old, new):
    """Damage to what the description says about the candidate."""

    def damage(model):
        entry = model.metadata_props[1]
        assert old in entry.value
        entry.value = entry.value.replace(old, new)

    return damage


def reader(model):
    """The first node that reads the features."""
    return next(node for node in model.graph.node if "features" in node.input)


def first_node(field, value):
    """Damage to that node."""
    return lambda model: setattr(reader(model), field, value)


def with_a_fixed_number_of_frames(model):
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 64


def with_another_batch(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def with_numbers_of_another_rank(model):
    del model.graph.output[0].type.tensor_type.shape.dim[0]


def with_a_giant_tensor(model):
    """Wants a petabyte."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([10**5, 10**5, 10**5]), "giant"))
    reader(model).input[0] = "expanded"
    model.graph.node.insert(0, helper.make_node("Expand", ["features", "giant"], ["expanded"]))


def with_giant_padding(model):
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    next(attribute for attribute in node.attribute if attribute.name == "pads").ints[:] = [10**12, 10**12]


def with_a_giant_constant(model):
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((8, 9, 260), np.int8), "spare"))


def with_an_outer_product(model):
    model.graph.initializer.append(numpy_helper.from_array(np.ones((260, 1, 1), np.float32), "tall"))
    reader(model).input[1] = "tall"


def with_a_sum_of_tensors_that_do_not_fit(model):
    node = next(node for node in model.graph.node if node.op_type == "Add")
    node.input[1] = "features"


def with_a_graph_inside(model):
    reader(model).attribute.append(helper.make_attribute("body", helper.make_graph([], "body", [], [])))


def with_many_nodes(model):
    for number in range(200):
        model.graph.node.append(helper.make_node("Relu", ["features"], [f"many{number}"]))


def with_a_function(model):
    model.functions.append(helper.make_function("", "Relu", ["x"], ["y"], [], []))


def without_a_layer(model):
    last = max(number for number, node in enumerate(model.graph.node) if node.op_type == "Conv")
    del model.graph.node[last]


def with_a_node_that_reads_nothing(model):
    del reader(model).input[:]


def with_signed_weights(model):
    """As files were that are exact on some processors only."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        weights = constants.get(node.input[0])
        if weights is not None and weights.data_type == TensorProto.UINT8:
            value = (numpy_helper.to_array(weights).astype(np.int16) - 128).astype(np.int8)
            weights.CopyFrom(numpy_helper.from_array(value, weights.name))
            zeros = constants[node.input[2]]
            zeros.CopyFrom(numpy_helper.from_array(np.zeros(zeros.dims, np.int8), zeros.name))


@pytest.mark.parametrize(
    ("damage", "wanted"),
    [
        (without_metadata, "without a separator's description"),
        (described("linear4", "linear99"), "its description is damaged or of another version"),
        (described('"format":5', '"format":4'), r"of another version \(format: found 4, wanted 5\); export it again"),
        (described('"kind":"Add"', '"kind":"Path"'), r"holds no network \('Path'\); export it again"),
        # Wants a terabyte.
        (described('"name":"input_proj"', '"name":"input_proj","padding":[0,1000000000]'), r"has the shape \[8, 1000001024\]"),
        (of_candidate('"widths":[', '"widths":[8,'), "no width for each of its 19 sites; export it again"),
        (of_candidate('"widths":[8', '"widths":[1'), "input_proj.weight"),
        (of_candidate('"fidelity"', '"faith"'), "its description is damaged or of another version"),
        (described('"n_fft":128', '"n_fft":256'), "does not fit its description"),
        (with_a_fixed_number_of_frames, "does not fit its description"),
        (with_another_batch, "does not fit its description"),
        (with_numbers_of_another_rank, "does not fit its description|ONNX Runtime refuses it"),
        (first_node("op_type", "Frobnicate"), r"does not fit its description \(a node 'Frobnicate'\); export it again"),
        (first_node("domain", "com.microsoft"), "a node 'Sub'"),
        (with_a_giant_tensor, "a node 'Expand'"),
        (with_giant_padding, "layer 'input_proj'"),
        (with_a_giant_constant, r"a constant of shape \[8, 9, 260\]"),
        (with_an_outer_product, r"a node 'Sub' that makes \[260, 260, 1024\]"),
        (with_a_sum_of_tensors_that_do_not_fit, "a node 'Add' that reads 'features'"),
        (with_a_graph_inside, "a node 'Sub' that reads '.*': attribute 'body'"),
        (with_many_nodes, "nodes; wanted at most"),
        (with_a_function, "functions"),
        (without_a_layer, "a node 'QuantizeLinear' that reads|no layer 'mask_head'"),
        (with_a_node_that_reads_nothing, "a node 'Sub'"),
        (with_signed_weights, "layer 'input_proj' is exact on some processors only"),
    ],
)
def test_files_that_are_not_ours_are_refused(files, tmp_path, damage, wanted):
    """Sealed again after the damage, so that it is the content that gives it away."""
    model = onnx.load(files["relu"])
    damage(model)
    path = tmp_path / "bad.onnx"
    path.write_bytes(sealed(model.SerializeToString()))
    with pytest.raises(UserError, match=wanted) as caught:
        OnnxSeparator(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_qonnx_file_is_called_one(tmp_path):
    allocation = uniform(RELU, 4, 8)
    path = tmp_path / "model.qonnx.onnx"
    export_qonnx(exported_network(RELU, allocation), path, description(small_network(RELU)[1], allocation), 4)
    with pytest.raises(UserError) as refused:
        OnnxSeparator(path)
    assert str(refused.value) == f"{path}: a QONNX file, for FPGA tools; wanted one of 'hwsearch export --format onnx'"


def test_a_changed_weight_is_found_before_it_is_heard(files, tmp_path):
    model = onnx.load(files["relu"])
    weights = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 3)
    weights.raw_data = weights.raw_data[1:] + weights.raw_data[:1]
    path = tmp_path / "changed.onnx"
    onnx.save(model, path)
    with pytest.raises(UserError, match="damaged or changed since it was exported"):
        OnnxSeparator(path)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_no_file_crashes_the_reader(files, tmp_path_factory, data):
    """Cut short or overwritten anywhere."""
    before = files["relu"].read_bytes()
    content = bytearray(before)
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        start = data.draw(st.integers(0, len(content) - 1))
        content[start : start + 8] = data.draw(st.binary(min_size=8, max_size=8))
    assume(bytes(content) != before)
    path = tmp_path_factory.mktemp("damaged") / "model.onnx"
    path.write_bytes(bytes(content))
    with pytest.raises(UserError) as caught:
        OnnxSeparator(path)
    assert "\n" not in str(caught.value)


def test_no_file_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        OnnxSeparator(tmp_path / "nothing.onnx")
