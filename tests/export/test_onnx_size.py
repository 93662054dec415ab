"""The size of ONNX files, known before they are written."""

from dataclasses import replace
from random import Random

import onnx
import onnxruntime
import pytest

from hwsearch.experiment import SeparatorConfig
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.onnx_export import export_onnx
from hwsearch.export.onnx_graph import most_names
from hwsearch.export.onnx_parts import Shared
from hwsearch.export.onnx_size import OnnxSize, onnx_size
from hwsearch.export.onnx_writer import OnnxWriter
from hwsearch.export.verify import verify_onnx
from hwsearch.network.operations import Read
from hwsearch.network.sites import Sites, find_sites, with_reads
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.calibration import calibrate
from hwsearch.separator.quantized import build_quantized
from tests.export.other_networks import MODULES, mixed, subject, traced
from tests.export.small import QUANTIZATION, description, onnx_file, raw_features
from tests.separator.small import KINDS, RELU, normalised_features, small_network, uniform

WEIGHT_BITS = (2, 3, 4, 5, 6, 7, 8, 16, 32)
ACTIVATION_BITS = (4, 6, 7, 8, 8, 16, 32)


def drawn(sites: Sites, seed: int) -> BitAllocation:
    """A random allocation."""
    random = Random(seed)  # noqa: S311
    widths = {site: random.choice(WEIGHT_BITS) for site in sites.weights}
    return BitAllocation.of(widths | {site: random.choice(ACTIVATION_BITS) for site in sites.activations})


def size_of(config: SeparatorConfig) -> OnnxSize:
    """The sizes of the files of a small network. The values of its parameters do not matter."""
    separator, graph, _ = small_network(config)
    nothing = {name: tensor.new_zeros(()).expand(tensor.shape) for name, tensor in graph.parameters.items()}
    return onnx_size(replace(graph, parameters=nothing), separator.front_end, per_channel=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_on_disk_is_the_size_foreseen(kind):
    config, sites = KINDS[kind], find_sites(small_network(KINDS[kind])[1])
    size = size_of(config)
    for seed in range(13):
        allocation = drawn(sites, seed)
        assert len(onnx_file(config, allocation)) == size.of(allocation.by_site), allocation


@pytest.mark.parametrize("kind", KINDS)
def test_only_wide_activations_leave_room_in_a_file(kind):
    """The exporter fills files up to their size, so an overestimate would show here alone.

    Constants that all files count and that this one does not need are the rest of the room.
    """
    config = KINDS[kind]
    graph = small_network(config)[1]
    sites = find_sites(graph)
    writer = OnnxWriter(most_names(graph, sites))
    Shared.of(writer)
    shared = writer.graph.initializer
    for weight_bits in WEIGHT_BITS:
        for activation_bits in (4, 8):
            model = onnx.ModelProto.FromString(onnx_file(config, uniform(config, weight_bits, activation_bits)))
            (candidate,) = (entry.value for entry in model.metadata_props if entry.key == "hwsearch_candidate")
            stored = {tensor.name for tensor in model.graph.initializer}
            size = model.ByteSize()
            model.graph.initializer.extend(tensor for tensor in shared if tensor.name not in stored)
            unused = model.ByteSize() - size
            assert 0 <= len(candidate) - unused - (320 + 3 * len(sites.all)) <= 3
            assert model.doc_string == ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_runtime_loads_a_file_without_a_warning(kind, capfd):
    config = KINDS[kind]
    for seed in range(3):
        content = onnx_file(config, drawn(find_sites(small_network(config)[1]), seed))
        onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("read_bits", [8, 16, 32])
def test_a_trunk_with_reads_has_the_size_foreseen_and_is_exact(tmp_path, read_bits):
    """Also where a layer reads a quantized trunk in floating point, whose bias and weights the runtime must leave alone."""
    separator, graph, _ = small_network(RELU)
    graph = with_reads(graph)
    sites, path = find_sites(graph), tmp_path / "model.onnx"
    calibration = calibrate(graph, [normalised_features(separator, 3000, 1)])
    size = onnx_size(graph, separator.front_end, per_channel=True)
    for trunk_bits, weight_bits in ((8, 3), (8, 8), (8, 16), (8, 32), (16, 8), (32, 4)):
        widths = dict.fromkeys(sites.weights, weight_bits) | dict.fromkeys(sites.activations, 8)
        widths |= dict.fromkeys(sites.carried, trunk_bits)
        widths |= {site: read_bits for site in sites.activations if isinstance(graph.by_name.get(sites.tensors[site]), Read)}
        allocation = BitAllocation.of(widths)
        network = ExportedNetwork(build_quantized(graph, allocation, calibration, QUANTIZATION), separator.front_end).eval()
        export_onnx(network, path, description(graph, allocation))
        assert path.stat().st_size == size.of(widths)
        assert verify_onnx(path, network, [raw_features(network, 60)]).worst_rounding < 0.51


@pytest.mark.parametrize("kind", MODULES)
def test_other_networks_have_the_size_foreseen(tmp_path, kind):
    path = tmp_path / "model.onnx"
    graph = traced(kind)[0]
    for seed in range(4):
        case = subject(kind, mixed(kind, seed))
        export_onnx(case.exported, path, case.description)
        wanted = OnnxSize(graph, case.exported.features, case.description, per_channel=True).of(case.description.allocation)
        assert path.stat().st_size == wanted
