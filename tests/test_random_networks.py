"""Modules of random operations: the graph, the scorer, the Brevitas network, the files and the costs agree."""

from pathlib import Path
from random import Random

import pytest
import torch

from hw_models.compile import compile_target
from hw_models.cost import evaluate
from hw_models.packed import packed_size_bytes
from hw_models.target import load_target
from hw_models.workload import bits_matrix
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.onnx_export import export_onnx
from hwsearch.export.packed import pack
from hwsearch.export.verify import verify_onnx
from hwsearch.network.run import run
from hwsearch.network.sites import find_sites, with_reads
from hwsearch.network.trace import trace
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.calibration import calibrate
from hwsearch.separator.fast import FastNetwork
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.workload import build_workload
from tests.export.other_networks import ACTIVATION_BITS, CONFIG, WEIGHT_BITS, NoStatistics, frames
from tests.export.small import description
from tests.network.modules import CHANNELS
from tests.network.random_modules import random_module


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 60))])
def test_everything_that_reads_a_graph_agrees(tmp_path: Path, seed: int) -> None:
    module = random_module(seed)
    graph = trace(module, [frames(30, 0)])
    for count in (31, 50):
        x = frames(count, seed)
        with torch.no_grad():
            torch.testing.assert_close(run(graph, {graph.inputs[0]: x})[0], module(x), rtol=1e-4, atol=1e-4)
    if seed % 2:
        graph = with_reads(graph)
    sites, calibration, random = find_sites(graph), calibrate(graph, [frames(60, 1)]), Random(seed)  # noqa: S311
    widths = {site: random.choice(WEIGHT_BITS) for site in sites.weights}
    allocation = BitAllocation.of(widths | {site: random.choice((*ACTIVATION_BITS, 16)) for site in sites.activations})
    exported = ExportedNetwork(build_quantized(graph, allocation, calibration, CONFIG), NoStatistics()).eval()
    wanted = exported(x).detach()
    for integers in (False, True):
        found = FastNetwork(graph, calibration, CONFIG, integers=integers).mask_function(allocation)(x)
        # A sum that lies half-way between two integers may be rounded up by one and down by the other.
        assert float((found - wanted).square().sum()) <= 1e-3 * float(wanted.square().sum())
    workload = build_workload(graph, sites, {graph.inputs[0]: CHANNELS}, 50, 0.008, "random", per_channel=True)
    bits = bits_matrix(workload, [allocation.by_site])
    assert len(pack(exported)) == packed_size_bytes(workload, bits)[0]
    assert evaluate(compile_target(load_target("x86-onnxruntime"), workload), bits).column("latency_ms")[0] > 0
    export_onnx(exported, tmp_path / "model.onnx", description(graph, allocation))
    assert verify_onnx(tmp_path / "model.onnx", exported, [frames(20, 2), x]).frames == 70
