"""Costs of allocations, against the simulator, the network's weights, the exported file and all allocations of small spaces."""

import math
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from hw_models.compile import compile_target
from hw_models.cost import evaluate
from hw_models.target import BUILT_IN, built_in_targets, load_target
from hw_models.workload import Workload, bits_matrix
from hwsearch.errors import UserError
from hwsearch.experiment import Experiment, SeparatorConfig, parse_experiment
from hwsearch.export.description import ExportDescription
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.onnx_export import export_onnx
from hwsearch.export.packed import pack
from hwsearch.search.costs import CostBook, experiment_workload, inner_weight_sites, target_digests
from hwsearch.search.exact.costs import NotSeparableError
from hwsearch.search.exact.problem import AllocationProblem
from hwsearch.search.space import Point, SearchSpace
from hwsearch.separator.allocation import BitAllocation, is_weight
from hwsearch.separator.base import EMBEDDED_BASE, load_base
from hwsearch.separator.prepare import prepare_base
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.stft import stft
from tests.search.synthetic import make_experiment, space_of
from tests.separator.small import all_sites, uniform
from tests.tiny import Tiny, tiny_content

# Columns

CONFIG = SeparatorConfig()


def experiment_of(**sections: object) -> Experiment:
    return parse_experiment({**tiny_content(), **sections}, source="here")


def charge(experiment: Experiment, allocations: Sequence[BitAllocation]) -> list[dict[str, float]]:
    return CostBook(experiment, space_of(experiment)).charge(allocations)


def random_allocation(seed: int) -> BitAllocation:
    """Any weight widths, eight-bit activations: what every target runs."""
    random = np.random.default_rng(seed)
    return BitAllocation(tuple((site, int(random.integers(2, 9)) if is_weight(site) else 8) for site in all_sites(CONFIG)))


ALLOCATIONS = (uniform(CONFIG, 8, 8), uniform(CONFIG, 2, 8), random_allocation(0), random_allocation(1))


def test_the_columns_of_a_target_are_what_the_simulator_says() -> None:
    everywhere = experiment_of(search={**tiny_content()["search"], "targets": list(built_in_targets())})
    workload = experiment_workload(everywhere)
    found = charge(everywhere, ALLOCATIONS)
    for name in built_in_targets():
        table = compile_target(load_target(name), workload)
        costs = evaluate(table, bits_matrix(workload, [allocation.by_site for allocation in ALLOCATIONS]))
        for metric in (*table.metrics, "fits"):
            assert [row[f"{metric}[{name}]"] for row in found] == costs.column(metric).tolist()
            assert costs.column(metric).shape == (len(ALLOCATIONS),)
        assert {"latency_ms", "weight_bytes", "peak_activation_bytes"} <= set(table.metrics)


def test_two_targets_of_one_name_are_refused(tmp_path: Path) -> None:
    copy = tmp_path / "mine.toml"
    copy.write_text((BUILT_IN / "bitfusion.toml").read_text("utf-8"), "utf-8")
    twice = experiment_of(search={**tiny_content()["search"], "targets": ["bitfusion", str(copy)]})
    with pytest.raises(UserError, match="two targets are called 'bitfusion'"):
        charge(twice, ALLOCATIONS)


def test_a_streaming_search_is_charged_frame_by_frame() -> None:
    whole, frame = (experiment_of(search={**tiny_content()["search"], "streaming": on}) for on in (False, True))
    rows = [charge(each, ALLOCATIONS[:1])[0] for each in (whole, frame)]
    assert experiment_workload(frame).streaming
    assert rows[1]["latency_ms[cortex-m7-cmsis-nn]"] < rows[0]["latency_ms[cortex-m7-cmsis-nn]"] / 50


def test_one_allocation_costs_what_it_costs_among_others() -> None:
    experiment = experiment_of()
    book = CostBook(experiment, space_of(experiment))
    assert [book.charge([allocation])[0] for allocation in ALLOCATIONS] == book.charge(ALLOCATIONS)
    assert book.charge([]) == []


def test_the_sizes_are_those_of_the_files_that_ship(tiny: Tiny, tmp_path: Path) -> None:
    workspace = tiny.workspace
    prepared = prepare_base(
        workspace.experiment, workspace.base_path, workspace.data_folder, workspace.folder / "calibration.json"
    )
    for allocation in (*ALLOCATIONS, uniform(CONFIG, 16, 8), uniform(CONFIG, 32, 32), uniform(CONFIG, 5, 32)):
        network = build_quantized(prepared.graph, allocation, prepared.calibration, prepared.quantization, prepared.weights)
        front_end, path = prepared.separator.front_end, tmp_path / "model.onnx"
        exported = ExportedNetwork(network, front_end).eval()
        export_onnx(exported, path, ExportDescription.of(network.graph, allocation, front_end, prepared.base_sha256))
        (costs,) = charge(workspace.experiment, [allocation])
        assert costs["size_bytes"] == path.stat().st_size
        assert costs["packed_bytes"] == len(pack(exported))
    for name, column in (("model.onnx", "size_bytes"), ("weights.hwq", "packed_bytes")):
        shipped = next(tiny.folder.glob(f"export/{name}")).stat().st_size
        assert shipped in {event["costs"][column] for event in tiny.events()}


def test_average_bits_are_weighted_by_the_networks_own_weights() -> None:
    separator, _ = load_base(EMBEDDED_BASE)
    convolutions = {n: module for n, module in separator.network.named_modules() if isinstance(module, torch.nn.Conv1d)}
    counts = {name: module.weight.numel() for name, module in convolutions.items()}
    for allocation, row in zip(ALLOCATIONS, charge(experiment_of(), ALLOCATIONS), strict=True):
        bits = {name: allocation.by_site[f"{name}.weight"] for name in counts}
        blocks = [name for name in counts if name.startswith("blocks.")]
        assert len(blocks) == 3 * CONFIG.R * CONFIG.X
        for column, names in (("average_bits", list(counts)), ("tcn_average_bits", blocks)):
            mean = sum(bits[name] * counts[name] for name in names) / sum(counts[name] for name in names)
            assert row[column] == pytest.approx(mean)


def test_a_network_of_few_layers_has_an_inner_average_all_the_same() -> None:
    layers = experiment_workload(experiment_of()).layers
    for first, last, inner in ((0, 2, ("input_proj.weight", "blocks.0.expand.weight")), (0, 3, ("blocks.0.expand.weight",))):
        few = layers[first:last]
        channels = {few[0].input_sites[0]: few[0].in_channels} | {layer.output_site: layer.out_channels for layer in few}
        workload = Workload("few", few, 40, 0.01, per_channel_scales=True, site_channels=channels)
        assert inner_weight_sites(workload) == inner


def test_the_workload_has_the_frames_of_the_transform() -> None:
    for seconds in (0.5, 1.0, 3.99, 4.0):
        workload = experiment_workload(experiment_of(search={"utterance_seconds": seconds}))
        spectrum = stft(torch.zeros(1, round(8000 * seconds)), CONFIG.n_fft, CONFIG.hop_length)
        assert workload.frames == spectrum.shape[-1]
    separator, _ = load_base(EMBEDDED_BASE)
    assert workload.site_channels["features"] == separator.network.input_proj.in_channels


def test_a_scale_per_tensor_is_smaller_than_one_per_channel() -> None:
    kinds = [experiment_of(quantization={"weight_scale": kind}) for kind in ("per_channel", "per_tensor")]
    cost = [charge(each, ALLOCATIONS)[0] for each in kinds]
    modules = load_base(EMBEDDED_BASE)[0].network.modules()
    channels = sum(module.out_channels for module in modules if isinstance(module, torch.nn.Conv1d))
    layers = 2 + 3 * CONFIG.R * CONFIG.X
    assert cost[0]["packed_bytes"] - cost[1]["packed_bytes"] == 2 * (channels - layers)
    assert cost[0]["size_bytes"] - cost[1]["size_bytes"] >= 2 * (channels - layers)


def test_what_a_target_cannot_run_has_no_cost_there() -> None:
    (row,) = charge(experiment_of(), [uniform(CONFIG, 32, 32)])
    assert math.isinf(row["latency_ms[bitfusion]"])
    assert math.isinf(row["weight_bytes[bitfusion]"])
    assert math.isinf(row["fits[bitfusion]"])
    assert row["size_bytes"] > 0


def test_the_users_own_target_is_charged_under_its_own_name(tmp_path: Path) -> None:
    text = (BUILT_IN / "bitfusion.toml").read_text()
    chip = tmp_path / "chip.toml"
    chip.write_text(text.replace('name = "bitfusion"', 'name = "mine"').replace("clock_hz = 5", "clock_hz = 25"))
    mine = experiment_of(search={"targets": ["bitfusion", str(chip)]})
    clocks = {name: load_target(path).clock.clock_hz for name, path in (("bitfusion", "bitfusion"), ("mine", chip))}
    for row in charge(mine, ALLOCATIONS):
        cycles = {name: row[f"latency_ms[{name}]"] * clocks[name] for name in clocks}
        assert cycles["mine"] == pytest.approx(cycles["bitfusion"])
        assert clocks["mine"] > clocks["bitfusion"]
        assert not any("ethos" in name for name in row)


def test_a_target_is_known_by_what_its_file_says(tmp_path: Path) -> None:
    text = (BUILT_IN / "bitfusion.toml").read_text()
    (tmp_path / "same.toml").write_text("# A copy.\n" + text)
    (tmp_path / "other.toml").write_text(text.replace("clock_hz = 5", "clock_hz = 25"))
    digests = [
        target_digests(experiment_of(search={"targets": [name]}))["bitfusion"]
        for name in ("bitfusion", str(tmp_path / "same.toml"), str(tmp_path / "other.toml"))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_an_unknown_or_wrong_target_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text("name = 3")
    for name in ("abacus", str(tmp_path / "absent.toml"), str(tmp_path / "wrong.toml")):
        wrong = experiment_of(search={"targets": [name]})
        for refused in (target_digests, lambda experiment: charge(experiment, ALLOCATIONS)):
            with pytest.raises(UserError) as refusal:
                refused(wrong)
            assert Path(name).name in str(refusal.value)
            assert "\n" not in str(refusal.value)


# Costs to propose with

TARGETS = ("bitfusion", "cortex-m7-cmsis-nn", "ethos-u55-128", "x86-onnxruntime")
METRICS = ("latency_ms", "weight_bytes", "peak_activation_bytes")
COLUMNS = (
    "size_bytes",
    "packed_bytes",
    "average_bits",
    "tcn_average_bits",
    *(f"{metric}[{target}]" for metric in METRICS for target in TARGETS),
)
GROUPS = [["blocks.0.*.weight"], ["*.add.output", "input_proj.output"]]


def book_of(**search: object) -> tuple[CostBook, SearchSpace]:
    experiment = make_experiment(20, **search)
    space = space_of(experiment)
    return CostBook(experiment, space), space


def random_points(space: SearchSpace, count: int = 30) -> list[Point]:
    rng = np.random.default_rng(0)
    return [tuple(rng.integers(space.shape).tolist()) for _ in range(count)]


def charged(book: CostBook, space: SearchSpace, points: Sequence[Point], column: str) -> list[float]:
    return [row[column] for row in book.charge([space.decode(point) for point in points])]


@pytest.mark.parametrize("column", COLUMNS)
def test_sums_are_what_candidates_are_charged(column: str) -> None:
    book, space = book_of(groups=GROUPS, targets=[target for target in TARGETS if target in column], trunk_bits=[8])
    points = random_points(space)
    wanted = charged(book, space, points, column)
    cost = book.exact(column)
    problem = AllocationProblem(space.widths, np.zeros(cost.tables.shape[1:]), (cost,), space.groups)
    indices = np.array(
        [[widths.index(space.decode(point).by_site[site]) for site, widths in space.widths] for point in points], np.int8
    )
    np.testing.assert_allclose(problem.cost_of(column, indices), wanted, rtol=1e-9)
    known = book.known(column)
    np.testing.assert_allclose(known.charge(np.array(points)), wanted, rtol=1e-12)
    if cost.additive:
        sums = known.table[np.arange(len(space.free)), np.array(points)].sum(axis=1)
        np.testing.assert_allclose(sums - sums[0], np.array(wanted) - wanted[0], rtol=1e-9, atol=1e-9 * max(wanted))


@pytest.mark.parametrize("column", ["latency_ms[bitfusion]", "latency_ms[ethos-u55-128]", "size_bytes"])
def test_where_weights_and_activations_are_free_the_charge_stays_exact(column: str) -> None:
    """A bit-flexible accelerator's time depends on a layer's two widths jointly: it is no sum, and proposed with anyhow."""
    book, space = book_of(weight_bits=[2, 4, 8], activation_bits=[4, 8], groups=GROUPS, targets=["bitfusion", "ethos-u55-128"])
    if column == "latency_ms[bitfusion]":
        with pytest.raises(NotSeparableError, match="is no sum over the sites"):
            book.exact(column)
    points = random_points(space)
    known = book.known(column)
    np.testing.assert_allclose(known.charge(np.array(points)), charged(book, space, points, column), rtol=1e-12)
    assert known.table.shape == (len(space.free), 3)
    # Each entry is what one choice alone changes at the narrowest allocation.
    start = (0,) * len(space.free)
    entries = [(choice, option) for choice, (_, widths) in enumerate(space.free) for option in range(len(widths))]
    changed = [(*start[:choice], option, *start[choice + 1 :]) for choice, option in entries]
    before, *after = charged(book, space, [start, *changed], column)
    for (choice, option), value in zip(entries, after, strict=True):
        assert known.table[choice, option] == pytest.approx(value - before, rel=1e-9, abs=1e-9 * before)


def test_an_unknown_cost_is_refused_with_those_there_are() -> None:
    book, _ = book_of(targets=["ethos-u55-128"])
    for refused in (book.exact, book.known, lambda name: book.check_limits({name: 1.0})):
        with pytest.raises(UserError) as refusal:
            refused("latency_ms[abacus]")
        assert str(refusal.value).endswith(
            "no cost 'latency_ms[abacus]'; wanted size_bytes, packed_bytes, average_bits, "
            "tcn_average_bits, or latency_ms[T], weight_bytes[T], "
            "peak_activation_bytes[T] with T one of ethos-u55-128"
        )


def test_what_a_target_does_not_run_has_no_cost_there() -> None:
    book, space = book_of(weight_bits=[4, 16], targets=["bitfusion", "x86-onnxruntime"])
    known = book.known("latency_ms[bitfusion]")
    assert np.isinf(known.table[:, 1]).all()
    points = list(product((0, 1), repeat=len(space.free)))[:9]
    assert known.charge(np.array(points)).tolist() == charged(book, space, points, "latency_ms[bitfusion]")
    with pytest.raises(UserError, match=r"latency_ms\[bitfusion\]: not finite at some widths of the space"):
        book.exact("latency_ms[bitfusion]")
    wide, _ = book_of(weight_bits=[16, 32], targets=["bitfusion"])
    with pytest.raises(UserError, match=r"latency_ms\[bitfusion\]: the target does not run the narrowest allocation"):
        wide.known("latency_ms[bitfusion]")


# Limits


def least_named(book: CostBook, limits: dict[str, float]) -> float:
    """The least that a refusal says can be met."""
    with pytest.raises(UserError) as refusal:
        book.check_limits(limits)
    message = str(refusal.value)
    assert message.startswith("search.limits: ")
    assert message.endswith(("raise it, or allow narrower widths", "raise it, or allow other widths"))
    assert "\n" not in message
    found = re.search(r"(?:takes?(?: is)?|least any allocation takes is|least of all that was tried is) ([0-9.e+]+)[:;]", message)
    assert found is not None, message
    return float(found[1])


SMALL = {"weight_bits": [2, 4, 8], "fixed": {"blocks.1.*.weight": 4}, "groups": [["blocks.0.*.weight"]]}


@pytest.mark.parametrize("column", ["size_bytes", "latency_ms[bitfusion]", "peak_activation_bytes[ethos-u55-128]"])
def test_a_limit_that_cannot_be_met_names_the_least_that_can(column: str) -> None:
    book, space = book_of(**SMALL, targets=["bitfusion", "ethos-u55-128"])
    every = list(product(*(range(count) for count in space.shape)))
    least = min(charged(book, space, every, column))
    named = least_named(book, {column: 0.9 * least})
    assert named == pytest.approx(least, rel=1e-6)
    book.check_limits({column: named})
    book.check_limits({column: 2 * least})


@pytest.mark.parametrize(("target", "share"), [("bitfusion", 1.0), ("gap8-pulp-nn", 0.5)])
def test_a_limit_on_a_cost_that_is_no_sum_is_held_against_the_least_that_is_found(target: str, share: float) -> None:
    """On GAP8, whose kernels unpack narrow weights, the narrowest allocation takes twice the least."""
    column = f"latency_ms[{target}]"
    book, space = book_of(weight_bits=[2, 8], activation_bits=[4, 8], targets=[target])
    drawn = np.random.default_rng(1).integers(0, 2, (3000, len(space.free)))
    (narrowest, widest, *others) = charged(book, space, [*np.stack([drawn[0] * 0, drawn[0] * 0 + 1]), *drawn], column)
    found = least_named(book, {column: 0.1 * narrowest})
    assert found <= min(share * narrowest, widest, *others) * (1 + 1e-9)
    book.check_limits({column: 1.001 * found})


def test_a_search_can_be_kept_to_what_fits_a_device() -> None:
    book, _ = book_of(weight_bits=[2, 4], activation_bits=[4], targets=["finn-zcu104"])
    book.check_limits({"occupancy[finn-zcu104]": 1.0})
    wide, _ = book_of(weight_bits=[8], activation_bits=[8], targets=["finn-zcu104"])
    assert least_named(wide, {"occupancy[finn-zcu104]": 1.0}) > 1


def test_limits_are_refused_exactly_where_no_allocation_meets_them_all() -> None:
    book, space = book_of(**SMALL, targets=["bitfusion"])
    every = list(product(*(range(count) for count in space.shape)))
    size, latency = (np.array(charged(book, space, every, column)) for column in ("size_bytes", "latency_ms[bitfusion]"))
    for share in (0.0, 0.3, 0.7):
        limits = {
            "size_bytes": float(np.quantile(size, share)),
            "latency_ms[bitfusion]": float(np.quantile(latency, share)) * (1 + 1e-9),
        }
        possible = ((size <= limits["size_bytes"]) & (latency <= limits["latency_ms[bitfusion]"])).any()
        if possible:
            book.check_limits(limits)
        else:
            with pytest.raises(UserError):
                book.check_limits(limits)


def test_a_space_of_constants_has_its_cost() -> None:
    book, space = book_of(weight_bits=[4])
    assert space.free == ()
    (only,) = charged(book, space, [()], "size_bytes")
    book.check_limits({"size_bytes": only})
    assert least_named(book, {"size_bytes": only - 1}) == only
    assert book.known("size_bytes").charge(np.zeros((1, 0), np.int64)).tolist() == [only]
