"""The size of ONNX files, known before they are written."""

from dataclasses import replace
from random import Random

import pytest

from hwsearch.experiment import SeparatorConfig
from hwsearch.export.onnx_export import export_onnx
from hwsearch.export.onnx_size import OnnxSize, onnx_size
from hwsearch.network.sites import Sites, find_sites
from hwsearch.separator.allocation import BitAllocation
from tests.export.other_networks import MODULES, mixed, subject, traced
from tests.export.small import onnx_file
from tests.separator.small import KINDS, small_network

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


@pytest.mark.parametrize("kind", MODULES)
def test_other_networks_have_the_size_foreseen(tmp_path, kind):
    path = tmp_path / "model.onnx"
    graph = traced(kind)[0]
    for seed in range(4):
        case = subject(kind, mixed(kind, seed))
        export_onnx(case.exported, path, case.description)
        wanted = OnnxSize(graph, case.exported.features, case.description, per_channel=True).of(case.description.allocation)
        assert path.stat().st_size == wanted
