"""A file from sound to sound computes what the separator computes, alone in a runtime, and its streaming form goes on."""

import json
import subprocess
import sys
from functools import cache, partial

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hwsearch.data.example import Example
from hwsearch.errors import UserError
from hwsearch.export.description import ExportDescription, read_model
from hwsearch.export.onnx_export import FIRST_KEY, export_onnx, export_sound
from hwsearch.export.runtime import OnnxSeparator
from hwsearch.export.sound.end_to_end import _is_causal, end_to_end, network_inside, streams
from hwsearch.export.sound.verify import verify_sound
from hwsearch.export.verify import VerificationError
from hwsearch.network.context import context
from hwsearch.network.trace import trace
from hwsearch.separator.features import running_level
from tests.export.small import exported_network
from tests.fuzz.models import sealed
from tests.separator.small import CAUSAL, PRELU, RELU, noise_mixture, small_separator, uniform

FOLLOWED = {"level_seconds": 1.0}
KINDS = {
    "plain": RELU,
    "steered": RELU.model_copy(update={"ipd": "steered"}),
    "angle": PRELU.model_copy(update={"ipd": "angle", "beam": False}),
    "cos_sin": RELU.model_copy(update={"ipd": "cos_sin", "hop_length": 32}),
    "followed": RELU.model_copy(update=FOLLOWED),
    "causal": CAUSAL.model_copy(update=FOLLOWED),
    "causal, prelu": CAUSAL.model_copy(update={"activation": "prelu", "hop_length": 32, **FOLLOWED}),
}
STREAMING = ("causal", "causal, prelu")


def written(folder, config, bits):
    """The network's file and the file from sound to sound."""
    network = exported_network(config, uniform(config, bits, bits))
    graph = network.network.graph
    about = ExportDescription.of(graph, network.network.allocation, small_separator(config).front_end, "0" * 64)
    export_onnx(network, folder / "model.onnx", about)
    export_sound(folder / "model.onnx", folder / "separator.onnx")
    return network


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for kind, config in KINDS.items():
        for bits in (8, 32):
            found[kind, bits] = tmp_path_factory.mktemp("files")
            written(found[kind, bits], config, bits)
    return found


class CausalPadded(nn.Module):
    """A convolution with twice the zeros that it needs, all of them before."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv1d(4, 4, 3)

    def forward(self, x):
        return self.convolution(nn.functional.pad(x, (4, 0)))


opened = cache(partial(OnnxSeparator, threads=1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("samples", [1, 63, 64, 1000, 3001])
def test_the_file_separates_as_the_separator_does(folders, kind, samples):
    mixture = noise_mixture(samples)
    with torch.no_grad():
        wanted = small_separator(KINDS[kind])(mixture[None], torch.tensor([40.0]))[0].numpy()
    found = opened(folders[kind, 32] / "separator.onnx").separate(mixture.numpy(), 40.0)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * max(np.abs(wanted).max(), 1e-3))


@pytest.mark.parametrize("kind", KINDS)
def test_both_files_hold_the_same_network(folders, kind):
    mixture = noise_mixture(9000).numpy()
    network, whole = (opened(folders[kind, 8] / name) for name in ("model.onnx", "separator.onnx"))
    np.testing.assert_array_equal(whole.separate(mixture, 40.0), network.separate(mixture, 40.0))


@pytest.mark.parametrize("kind", KINDS)
@given(samples=st.integers(1, 6000), chunk=st.integers(1, 60))
@settings(max_examples=8, deadline=None)
def test_chunks_give_the_result_of_the_whole(folders, kind, samples, chunk):
    mixture = noise_mixture(samples, seed=samples).numpy()
    separator = opened(folders[kind, 32] / "separator.onnx")
    whole = separator.separate(mixture, 100.0, chunk_frames=10_000)
    found = separator.separate(mixture, 100.0, chunk_frames=chunk)
    np.testing.assert_allclose(found, whole, atol=1e-5 * max(np.abs(whole).max(), 1e-3))


@pytest.mark.parametrize("kind", STREAMING)
@pytest.mark.parametrize("bits", [8, 32])
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_a_stream_gives_the_result_of_the_whole_in_time(folders, kind, bits, data):
    samples = data.draw(st.integers(1, 4000))
    mixture = noise_mixture(samples, seed=samples).numpy()
    separator = opened(folders[kind, bits] / "separator.onnx")
    stream = separator.stream(100.0)
    given_, made = 0, []
    while given_ < samples:
        block = mixture[:, given_ : given_ + data.draw(st.integers(1, 500))]
        given_ += block.shape[1]
        made.append(stream.push(block))
        assert given_ - sum(map(len, made)) <= stream.latency
    made.append(stream.finish())
    with torch.no_grad():
        network = exported_network(KINDS[kind], uniform(KINDS[kind], bits, bits)).network
        wanted = small_separator(KINDS[kind]).separate(torch.from_numpy(mixture)[None], torch.tensor([100.0]), network)[0].numpy()
    whole = separator.separate(mixture, 100.0)
    np.testing.assert_allclose(np.concatenate(made), whole, atol=1e-5 * max(np.abs(whole).max(), 1e-3))
    if bits == 32:
        np.testing.assert_allclose(whole, wanted, atol=5e-5 * max(np.abs(wanted).max(), 1e-3))


def test_a_stream_never_looks_ahead(folders):
    """What has come out does not depend on what comes later, however loud."""
    separator = opened(folders["causal", 8] / "separator.onnx")
    begun = noise_mixture(2000, 1).numpy()
    ends = [noise_mixture(2000, 2).numpy(), 1000 * noise_mixture(2000, 3).numpy()]
    found = [separator.separate(np.concatenate([begun, end], axis=1), 60.0) for end in ends]
    settled = 2000 - separator.stream(60.0).latency
    np.testing.assert_array_equal(found[0][:settled], found[1][:settled])
    assert not np.array_equal(found[0][settled:2000], found[1][settled:2000])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in STREAMING])
def test_other_networks_cannot_stream(folders, kind):
    with pytest.raises(UserError, match="cannot stream; wanted one with causal = true and level_seconds"):
        opened(folders[kind, 8] / "separator.onnx").stream(60.0)


@given(frames=st.integers(1, 1200), decay=st.floats(0.5, 0.999))
@settings(max_examples=20, deadline=None)
def test_the_running_level_is_the_weighted_mean_of_the_past(frames, decay):
    random = np.random.default_rng(frames)
    spectrum = random.normal(size=(1, 5, frames)) + 1j * random.normal(size=(1, 5, frames))
    found = running_level(torch.from_numpy(spectrum.astype(np.complex64)), decay)[0, 0].numpy()
    total, weight, wanted = 0.0, 0.0, []
    for power in np.square(np.abs(spectrum[0])).mean(axis=0):
        total, weight = decay * total + power, decay * weight + 1
        wanted.append((total / weight) ** 0.5)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


RUNTIME_ALONE = """
import json, sys
sys.modules["torch"] = sys.modules["hwsearch"] = sys.modules["scipy"] = sys.modules["onnx"] = None
import numpy as np
import onnxruntime

path, sound, hop, length = sys.argv[1], np.load(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
session = onnxruntime.InferenceSession(path)
first = json.loads(session.get_modelmeta().custom_metadata_map.get("hwsearch_first", "{}"))
kinds = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}
state = {one.name: np.full(one.shape, first.get(one.name, 0), kinds[one.type])
         for one in session.get_inputs() if one.name.startswith("state.")}
sound = np.pad(sound, ((0, 0), (length // 2, length)))
state["state.0"], sound = sound[:, : length - hop], sound[:, length - hop :]
made = []
for start in range(0, sound.shape[1] - hop + 1, hop):
    inputs = {"mixture": sound[:, start : start + hop], "direction": np.array([100], np.float32)}
    target, *states = session.run(None, inputs | state)
    state = dict(zip(state, states, strict=True))
    made.append(target[0])
np.save(sys.argv[2], np.concatenate(made)[length // 2 :])
"""


@pytest.mark.parametrize("kind", STREAMING)
def test_numpy_and_a_runtime_are_enough_frame_by_frame(folders, kind, tmp_path):
    config, mixture = KINDS[kind], noise_mixture(3000).numpy()
    np.save(tmp_path / "sound.npy", mixture)
    path = folders[kind, 8] / "separator.onnx"
    arguments = [path, tmp_path / "sound.npy", str(config.hop_length), str(config.n_fft)]
    subprocess.run([sys.executable, "-c", RUNTIME_ALONE, *arguments], check=True)
    wanted = opened(path).separate(mixture, 100.0)
    # Behind the last hop, the recording's own end has fewer frames than one that goes on in silence.
    sure = 3000 - config.n_fft
    np.testing.assert_allclose(np.load(tmp_path / "sound.npy")[:sure], wanted[:sure], atol=1e-5 * np.abs(wanted).max())


def test_a_state_begins_with_the_integer_of_zero(folders):
    model = onnx.load(folders["causal, prelu", 8] / "separator.onnx")
    (firsts,) = [json.loads(entry.value) for entry in model.metadata_props if entry.key == FIRST_KEY]
    assert firsts
    assert all(0 < first < 256 for first in firsts.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_inside_is_the_network_of_its_own_file(folders, kind):
    alone, about = read_model((folders[kind, 8] / "model.onnx").read_bytes(), "alone")
    whole, about_whole = read_model((folders[kind, 8] / "separator.onnx").read_bytes(), "whole")
    assert about == about_whole
    inside = network_inside(whole, about)
    read = {name for node in alone.graph.node for name in node.input}
    unread = [tensor for tensor in alone.graph.initializer if tensor.name not in read]
    for tensor in unread:
        alone.graph.initializer.remove(tensor)
    assert inside.graph == alone.graph
    assert end_to_end(inside, about)[0].graph == whole.graph
    assert streams(about) == (kind in STREAMING)


def steering(model):
    """Another speed of sound."""
    for tensor in model.graph.initializer:
        if tensor.name.startswith("sound.") and list(tensor.dims) == [4, 2]:
            tensor.raw_data = (1.1 * np.frombuffer(tensor.raw_data, np.float32)).astype(np.float32).tobytes()


def foreign_node(model):
    model.graph.node.insert(0, onnx.helper.make_node("Relu", ["mixture"], ["sound.x"]))


def other_channels(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3


def longer_padding(model):
    node = next(node for node in model.graph.node if node.op_type == "Conv" and node.input[0].startswith("sound."))
    next(attribute for attribute in node.attribute if attribute.name == "pads").ints[:] = [10**9, 0]


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("plain", steering),
        ("plain", foreign_node),
        ("plain", other_channels),
        ("causal", longer_padding),
        ("causal", foreign_node),
    ],
)
def test_another_front_end_is_refused(folders, tmp_path, kind, damage):
    model = onnx.load(folders[kind, 8] / "separator.onnx")
    damage(model)
    (tmp_path / "bad.onnx").write_bytes(sealed(model.SerializeToString()))
    with pytest.raises(UserError, match=r"does not fit its description \(its front end\); export it again"):
        OnnxSeparator(tmp_path / "bad.onnx")


def other_constant(model):
    """A constant of the front end."""
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((4, 2), np.float32), "sound.02"))


def same_name(model):
    model.graph.initializer.append(model.graph.initializer[0])


def outside(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")


def zero_point(change):
    """Damage to the zero point of the tensor that the first padded convolution reads."""

    def damage(model):
        convolution = next(
            node
            for node in model.graph.node
            if node.op_type == "Conv" and any(each.name == "pads" and sum(each.ints) for each in node.attribute)
        )
        maker = next(node for node in model.graph.node if node.output[0] == convolution.input[0])
        change(model, maker)

    return damage


def without_zero_point(model, maker):
    del model, maker.input[2]


def computed_zero_point(model, maker):
    model.graph.node.insert(0, onnx.helper.make_node("Identity", [maker.input[2]], ["made"]))
    maker.input[2] = "made"


def damaged_zero_point(model, maker):
    next(tensor for tensor in model.graph.initializer if tensor.name == maker.input[2]).raw_data = b""


@pytest.mark.parametrize("name", ["model.onnx", "separator.onnx"])
@pytest.mark.parametrize(
    "damage",
    [
        other_constant,
        same_name,
        outside,
        zero_point(without_zero_point),
        zero_point(computed_zero_point),
        zero_point(damaged_zero_point),
    ],
)
def test_files_that_would_get_around_the_front_end_are_refused(folders, tmp_path, name, damage):
    model = onnx.load(folders["causal, prelu", 8] / name)
    if name == "separator.onnx" and damage not in (other_constant, same_name, outside):
        pytest.skip("its state reads another tensor")
    damage(model)
    (tmp_path / "bad.onnx").write_bytes(sealed(model.SerializeToString()))
    with pytest.raises(UserError, match="does not fit its description") as caught:
        OnnxSeparator(tmp_path / "bad.onnx")
    assert "\n" not in str(caught.value)


def test_a_network_of_convolutions_that_change_the_frames_does_not_stream():
    """Together they keep the number of frames, but no single frame goes through them."""
    graph = trace(nn.Sequential(nn.Conv1d(4, 4, 3), CausalPadded()), [torch.randn(1, 4, 20)])
    assert context(graph).after == 0
    assert not _is_causal(graph)


@pytest.mark.parametrize("block", [np.zeros((3, 10), np.float32), np.zeros(10, np.float32)])
def test_blocks_of_another_shape_and_behind_the_end_are_refused(folders, block):
    stream = opened(folders["causal", 8] / "separator.onnx").stream(60.0)
    with pytest.raises(UserError, match="a block of shape"):
        stream.push(block)
    stream.push(np.zeros((4, 10), np.float32))
    assert len(stream.finish()) == 10
    with pytest.raises(UserError, match="the recording is over"):
        stream.push(np.zeros((4, 10), np.float32))


@pytest.mark.parametrize("kind", ["plain", "causal"])
def test_verification_judges_each_part(folders, kind, tmp_path, monkeypatch):
    config = KINDS[kind]
    network = exported_network(config, uniform(config, 8, 8))
    example = Example(noise_mixture(4000).numpy(), noise_mixture(4000)[0].numpy(), 60.0)
    paths = folders[kind, 8] / "separator.onnx", folders[kind, 8] / "model.onnx"
    report = verify_sound(*paths, network, [example])
    assert report.features_db > 100
    assert (report.mask_difference, report.streams) == (0.0, kind == "causal")
    assert report.sound_difference < 1e-5
    assert report.target_si_snr_db == pytest.approx(report.network_si_snr_db, abs=0.1)
    # A file around another network, and one with another front end.
    written(tmp_path, config.model_copy(update={"B": 12}), 8)
    with pytest.raises(VerificationError, match="mask is off by"):
        verify_sound(tmp_path / "separator.onnx", paths[1], network, [example])
    monkeypatch.setattr("hwsearch.export.sound.front_end_nodes.SPEED_OF_SOUND", 200.0)
    network = written(tmp_path, config, 8)
    with pytest.raises(VerificationError, match=r"features are .* above their error"):
        verify_sound(tmp_path / "separator.onnx", tmp_path / "model.onnx", network, [example])
