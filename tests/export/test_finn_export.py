"""FINN graphs compute the network in whole numbers, none of which differs; what FINN does not take is refused."""

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from torch import Tensor, nn
from torch.nn import functional

from hw_models.target import load_target
from hwsearch.errors import UserError
from hwsearch.experiment import FINN_RULE, QuantizationConfig
from hwsearch.export.description import read_model
from hwsearch.export.exporter import FINN
from hwsearch.export.finn import host as host_script
from hwsearch.export.finn.export import HOST_FILE, SCRIPTS, export_finn, host_arrays
from hwsearch.export.finn.folding import TARGETS, folding_configuration, folding_file, modelled_costs
from hwsearch.export.finn.graph import finn_graph
from hwsearch.export.finn.host import Host
from hwsearch.export.finn.limits import check_operations, check_slopes, check_widths
from hwsearch.export.finn.thresholds import Integers, thresholds
from hwsearch.export.finn.verify import verify_finn
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.verify import VerificationError
from hwsearch.network.operations import Convolution, Elementwise, Function, PReLU
from hwsearch.network.sites import find_sites, tied
from hwsearch.network.trace import trace
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.calibration import calibrate
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.quantizers import ActivationGrid
from tests.export.other_networks import NoStatistics, frames, rounded_run
from tests.export.small import description, exported_network, raw_features
from tests.export.tied import TIED, tied_allocation, tied_export, tied_network
from tests.network.modules import CHANNELS, settle
from tests.separator.small import KINDS, PRELU, RELU, uniform

FRAMES = 12


def written(folder: Path, network: ExportedNetwork) -> tuple[Path, Host]:
    path = folder / FINN.file
    return path, export_finn(network, path, description(network.network.graph, network.network.allocation), FRAMES)


@pytest.mark.parametrize("trunk", [8, 16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("weights", "activations"), [(4, 8), (8, 8), (2, 4)])
def test_no_number_differs(tmp_path, kind, trunk, weights, activations):
    network = tied_export(KINDS[kind], trunk, tied_allocation(KINDS[kind], trunk, weights, activations))
    path, host = written(tmp_path, network)
    report = verify_finn(path, host, network, [raw_features(network, FRAMES, seed) for seed in (0, 1)])
    assert report.ties == 0
    assert report.quantized_values > 0


def test_the_output_is_that_of_the_graph_rounded_plainly(tmp_path):
    """Against a walk over the graph in double precision that knows nothing of thresholds."""
    network = tied_export(PRELU, 16, tied_allocation(PRELU, 16, 8))
    path, host = written(tmp_path, network)
    features = raw_features(network, FRAMES, seed=3)
    model = ModelWrapper(str(path))
    (given,), (made,) = model.graph.input, model.graph.output
    answer = execute_onnx(model, {given.name: host.to_board(features.numpy()).astype(np.float32)})[made.name]
    quantized, sites = network.network, network.network.graph_sites
    grids = {sites.tensors[site]: grid for site, grid in quantized.activation_grids().items() if grid is not None}
    parameters = dict(quantized.master_copy().parameters)
    for site, weight in quantized.quantized_weights().items():
        assert weight is not None
        parameters[site] = weight.value
        layer = site.removesuffix(".weight")
        scale = weight.scale.flatten() * grids[quantized.graph.by_name[layer].inputs[0]].scale
        parameters[f"{layer}.bias"] = (parameters[f"{layer}.bias"] / scale).round() * scale
    truth = rounded_run(replace(quantized.graph, parameters=parameters), grids, network.normalise(features))
    torch.testing.assert_close(torch.from_numpy(host.from_board(answer)), truth, rtol=0, atol=1e-4 * float(truth.abs().max()))


def test_a_sum_of_16_bits_is_never_rounded():
    """It is a plain sum of what it adds, and no quantizer stands behind it."""
    model = ModelWrapper(finn_graph(tied_export(RELU, 16, tied_allocation(RELU, 16, 4)), FRAMES))
    (add,) = (node for node in model.graph.node if node.output[0] == "blocks.0.add.output")
    assert add.op_type == "Add"
    assert list(add.input) == ["input_proj.output", "blocks.0.project.output"]
    assert model.get_tensor_datatype("blocks.0.add.output").name == "UINT9"
    readers = {node.op_type for node in model.graph.node if "blocks.0.add.output" in node.input}
    assert readers == {"MultiThreshold", "Add"}


def test_tensors_are_integers_of_the_allocation_s_widths():
    allocation = tied_allocation(PRELU, 8, 3, 5)
    network = tied_export(PRELU, 8, allocation)
    model = ModelWrapper(finn_graph(network, FRAMES))
    grids = network.network.activation_grids()
    for site, bits in allocation.widths:
        kind = model.get_tensor_datatype(site)
        assert kind.is_integer()
        if site.endswith(".weight"):
            assert kind.name == f"INT{bits}"
        elif site.endswith(".expand.output"):  # padded behind a PReLU: its zero is the number 0
            assert kind.signed()
            assert kind.min() <= -grids[site].zero_point
            assert kind.max() >= grids[site].levels - grids[site].zero_point
        else:
            assert kind.name == f"UINT{bits}"
    for node in model.get_nodes_by_op_type("MultiThreshold"):
        steps = model.get_initializer(node.input[1])
        assert np.array_equal(steps, np.rint(steps))
        assert (np.diff(steps, axis=1) >= 0).all()


@given(
    scale=st.floats(2**-12, 2**4, width=32),
    step=st.floats(2**-12, 2**4, width=32),
    slope=st.sampled_from([0.0, 0.25, 0.2, 1.0, 1.5]),
    offset=st.integers(-300, 300),
    bits=st.integers(2, 5),
    share=st.floats(0, 1),
)
@settings(max_examples=150, deadline=None)
def test_thresholds_round_every_number_half_to_even(scale, step, slope, offset, bits, share):
    """Against Python's rounding of fractions, number by number."""
    grid = ActivationGrid(bits, step, round(share * (2**bits - 1)))
    one = (Fraction(slope),)
    x = Integers("x", (Fraction(scale),), *(np.array([end]) for end in (offset, -200, 200)), one)
    (row,) = thresholds(x, grid)
    assert row.min() >= -200
    assert row.max() <= 201
    for number in range(-200, 201):
        value = (number + offset) * Fraction(scale)
        value = value * Fraction(slope) if value < 0 else value
        wanted = min(max(round(value / Fraction(step)) + grid.zero_point, 0), grid.levels)
        assert int((number >= row).sum()) == wanted


def test_the_files_of_an_export(tmp_path):
    network = tied_export(RELU, 8, tied_allocation(RELU, 8, 4))
    path, _ = written(tmp_path, network)
    assert {file.name for file in tmp_path.iterdir()} == {FINN.file, *FINN.others}
    assert set(FINN.others) == {HOST_FILE, *SCRIPTS, *map(folding_file, TARGETS)}
    assert read_model(path.read_bytes(), "file")[1].bit_allocation("file") == network.network.allocation
    for script in SCRIPTS:
        ast.parse((tmp_path / script).read_text())
    helped = subprocess.run([sys.executable, tmp_path / "build.py", "--help"], capture_output=True, text=True, check=False)
    assert "--target" in helped.stdout, helped.stderr  # without FINN, which this environment does not have
    own: dict[str, object] = {}
    exec((tmp_path / "host.py").read_text(), own)  # noqa: S102 (a copy of a module of the package)
    assert {each for each in own if each.isupper() or each == "Host"} == {"Host", "KEYS"}
    assert Path(host_script.__file__).read_bytes() == (tmp_path / "host.py").read_bytes()
    for target in TARGETS:
        assert load_target(target).compute.rule == FINN_RULE
        folding = json.loads((tmp_path / folding_file(target)).read_text())
        assert folding == folding_configuration(network, FRAMES, target)
        assert folding.pop("Defaults") == {}
        layers = sum(name.startswith(("MVAU", "VVAU")) for name in folding)
        assert layers == len(network.network.graph_sites.weights)


def test_foldings_divide_the_channels_and_reach_the_modelled_interval():
    """The slowest node takes as many cycles as the model says."""
    network = tied_export(RELU, 16, tied_allocation(RELU, 16, 4))
    folding = folding_configuration(network, FRAMES, "finn-zcu104")
    weights = network.network.quantized_weights()
    dense, cycles = 0, []
    for site, weight in weights.items():
        assert weight is not None
        layer = network.network.graph.by_name[site.removesuffix(".weight")]
        outputs, inputs, kernel = weight.integers.shape
        if layer.groups == 1:
            node = folding[f"MVAU_hls_{dense}"]
            dense += 1
            assert outputs % node["PE"] == 0
            assert (inputs * kernel) % node["SIMD"] == 0
            cycles.append(FRAMES * outputs * inputs * kernel // (node["PE"] * node["SIMD"]))
    (interval,) = modelled_costs(network, FRAMES, "finn-zcu104").interval_cycles
    assert max(cycles) <= interval
    assert folding["Thresholding_rtl_0"]["PE"] == folding["AddStreams_hls_0"]["PE"] == folding["ElementwiseAdd_hls_0"]["PE"]


def test_a_wrong_threshold_fails_verification(tmp_path):
    network = tied_export(RELU, 8, tied_allocation(RELU, 8, 4))
    path, host = written(tmp_path, network)
    model = ModelWrapper(str(path))
    name = "blocks.0.project.output.thresholds"
    steps = model.get_initializer(name).copy()
    steps += 40
    model.set_initializer(name, steps)
    model.save(str(path))
    with pytest.raises(VerificationError, match=r"at 'blocks\.0\.project\.output' \d+ of \d+ numbers are not the exact ones"):
        verify_finn(path, host, network, [raw_features(network, FRAMES)])


def test_untied_scales_are_refused(tmp_path):
    network = exported_network(RELU, uniform(RELU, 4, 8))
    with pytest.raises(UserError, match=r"^quantization\.tied_adds is not true; FINN adds .*: wanted a search where it is$"):
        written(tmp_path, network)
    with pytest.raises(UserError, match=r"^'blocks\.0\.add' adds .* wanted a search with quantization\.tied_adds = true$"):
        finn_graph(network, FRAMES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("widths", "key"),
    [({"input_proj.weight": (4, 16)}, "weight_bits"), ({"features": (8, 32)}, "activation_bits"), ({}, None)],
)
def test_widths_that_finn_does_not_take_are_refused_by_key(widths, key):
    _, graph, sites, _ = tied_network(RELU, 16)
    every = {site: (bits,) for site, bits in tied_allocation(RELU, 16, 4).widths}
    renamed = {graph.inputs[0] if site == "features" else site: bits for site, bits in widths.items()}
    if key is None:
        check_widths(sites, every)
        with pytest.raises(UserError, match=r"^search\.trunk_bits: 'blocks\.0\.add\.output' may have 16 bits"):
            check_widths(find_sites(graph), every)
        return
    with pytest.raises(UserError, match=rf"^search\.{key}: '.*' may have (16|32) bits"):
        check_widths(sites, every | renamed)


def test_operations_and_slopes_that_finn_does_not_take_are_refused():
    _, graph, _, _ = tied_network(PRELU, 8)
    check_operations(graph)
    check_slopes(graph)
    first = next(operation for operation in graph.operations if isinstance(operation, PReLU))
    negative = {**graph.parameters, f"{first.name}.slope": torch.tensor([-0.1])}
    with pytest.raises(UserError, match=r"^separator\.activation: '.*' has the slope -0\.1; FINN"):
        check_slopes(replace(graph, parameters=negative))
    _, relu, _, _ = tied_network(RELU, 8)
    operations = tuple(
        replace(operation, function=Function.TANH) if isinstance(operation, Elementwise) else operation
        for operation in relu.operations
    )
    with pytest.raises(UserError, match=r"^separator: '.*' is a tanh; FINN takes"):
        check_operations(replace(relu, operations=operations))
    padded = next(operation for operation in relu.operations if isinstance(operation, Convolution) and any(operation.padding))
    for wrong, said in (({"padding": (0, 0)}, "changes the number of frames"), ({"stride": 2}, "a Convolution;")):
        operations = tuple(replace(each, **wrong) if each is padded else each for each in relu.operations)
        with pytest.raises(UserError, match=rf"^separator: '{padded.name}' is .*{said}"):
            check_operations(replace(relu, operations=operations))


class Block(nn.Module):
    """A convolution, then a sum of two tensors that a function gives, and a head."""

    def __init__(self, add: Callable[[Tensor, Tensor, nn.Module], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.head = (nn.Conv1d(CHANNELS, CHANNELS, 1) for _ in range(3))
        self.add = add

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.add(x, self.first(x), self.second))


@pytest.mark.parametrize(
    ("add", "said"),
    [
        (lambda _, y, second: y + second(functional.relu(y)), "'relu' is a function alone, of a tensor that is rounded before"),
        (lambda x, y, second: y + second(x), "'second' is a branch beside 'first'"),
        (lambda x, y, _: x + y, "'add' is a sum of a tensor with itself, or with the network's input"),
        (lambda _, y, __: y + y, "'add' is a sum of a tensor with itself, or with the network's input"),
        (lambda _, y, second: y + second(y), None),
    ],
)
def test_what_finn_would_number_otherwise_is_refused(add, said):
    graph = trace(settle(Block(add), seed=1), [torch.randn(1, CHANNELS, 20)])
    if said is None:
        check_operations(graph)
        return
    with pytest.raises(UserError, match=rf"^separator: {said}.*; FINN takes"):
        check_operations(graph)


def test_every_operation_of_the_separators_reads_the_one_before():
    for config in KINDS.values():
        for trunk in (8, 16):
            check_operations(tied_network(config, trunk)[1])


def test_a_negative_slope_is_refused_when_it_is_exported(tmp_path):
    separator, graph, _, calibration = tied_network(PRELU, 8)
    parameters = {name: -tensor if name.endswith(".slope") else tensor for name, tensor in graph.parameters.items()}
    allocation = tied_allocation(PRELU, 8, 4)
    quantized = build_quantized(replace(graph, parameters=parameters), allocation, calibration, TIED)
    with pytest.raises(UserError, match=r"^separator\.activation: "):
        written(tmp_path, ExportedNetwork(quantized, separator.front_end).eval())


def test_ties_are_off_by_default():
    assert "tied_adds" not in QuantizationConfig().model_dump(mode="json")
    assert TIED.model_dump(mode="json")["tied_adds"] is True


class Branches(nn.Module):
    """Dense kernels behind functions with negative values, sums of sums with functions, and a tensor added to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(CHANNELS, 8, 3, padding=1)
        self.bend = nn.PReLU(8)
        self.dense = nn.Conv1d(8, 8, 3, padding=2, dilation=2)
        self.side = nn.Conv1d(8, 8, 1)
        self.depthwise = nn.Conv1d(8, 8, 5, padding=2, groups=8)
        self.head = nn.Conv1d(8, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bend(self.first(x))
        z = functional.relu(self.dense(y) + self.side(y))
        z = z + functional.leaky_relu(self.depthwise(z), 0.1)
        return self.head(z + z)


def test_another_network_is_exported_without_a_difference(tmp_path):
    module = settle(Branches(), seed=1)
    module.bend.weight = nn.Parameter(module.bend.weight.detach().abs())
    graph = trace(module, [torch.randn(1, CHANNELS, 20)])
    with pytest.raises(UserError, match=r"^separator: 'side' is a branch beside 'dense'; FINN takes"):
        check_operations(graph)  # no matter for the graph, but for its folding
    sites = tied(graph, find_sites(graph))
    assert len(sites.ties) == 2
    calibration = calibrate(graph, [frames(60, seed=2)], sites.ties)
    allocation = BitAllocation.of(dict.fromkeys(sites.weights, 5) | dict.fromkeys(sites.activations, 7))
    network = ExportedNetwork(build_quantized(graph, allocation, calibration, TIED), NoStatistics()).eval()
    path = tmp_path / "model.finn.onnx"
    path.write_bytes(finn_graph(network, FRAMES).SerializeToString())
    (tmp_path / HOST_FILE).write_bytes(host_arrays(network))
    report = verify_finn(path, Host(tmp_path / HOST_FILE), network, [frames(FRAMES, seed) for seed in (0, 1, 2)])
    assert (report.ties, report.frames) == (0, 3 * FRAMES)
