"""Costs of allocations, against the simulator, the network's weights, the exported file and all allocations of small spaces."""

import math
import re
from collections.abc import Sequence
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from hw_models.compile import compile_target
from hw_models.cost import evaluate, evaluate_runnable
from hw_models.packed import average_weight_bits, packed_size_bytes
from hw_models.target import BUILT_IN, built_in_targets, load_target
from hw_models.workload import Workload, bits_matrix
from hwsearch.data.arrays import ARRAYS
from hwsearch.errors import UserError
from hwsearch.experiment import Experiment, SeparatorConfig, parse_experiment, with_search
from hwsearch.export.description import ExportDescription
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.onnx_export import export_onnx
from hwsearch.export.onnx_size import onnx_size
from hwsearch.export.packed import pack
from hwsearch.search.costs import CostBook, experiment_workload, inner_weight_sites, target_digests
from hwsearch.search.exact.costs import NotSeparableError
from hwsearch.search.exact.elastic import PartTable
from hwsearch.search.exact.problem import AllocationProblem
from hwsearch.search.experiment_space import experiment_space
from hwsearch.search.parts import find_parts
from hwsearch.search.space import Point, SearchSpace
from hwsearch.separator.allocation import BitAllocation, is_weight
from hwsearch.separator.base import EMBEDDED_BASE, load_base
from hwsearch.separator.configuration import Configuration
from hwsearch.separator.prepare import prepare_base
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.separator import build_separator
from hwsearch.separator.stft import stft
from tests.search import structured
from tests.search.synthetic import make_experiment, space_of
from tests.separator.small import all_sites, uniform
from tests.tiny import Tiny, tiny_content

# Columns

CONFIG = SeparatorConfig()


def experiment_of(**sections: object) -> Experiment:
    return parse_experiment({**tiny_content(), **sections}, source="here")


def charge(experiment: Experiment, allocations: Sequence[BitAllocation]) -> list[dict[str, float]]:
    return CostBook(experiment, space_of(experiment)).charge([Configuration(allocation) for allocation in allocations])


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
    configurations = [Configuration(allocation) for allocation in ALLOCATIONS]
    assert [book.charge([configuration])[0] for configuration in configurations] == book.charge(configurations)
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
    allocations = [space.decode(point).allocation for point in points]
    indices = np.array([[widths.index(each.by_site[site]) for site, widths in space.widths] for each in allocations], np.int8)
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
    book, _ = book_of(weight_bits=[2, 4], activation_bits=[4], targets=["finn-pynq-z2"])
    book.check_limits({"occupancy[finn-pynq-z2]": 1.0})
    wide, _ = book_of(separator={"X": 3, "R": 2}, weight_bits=[8], activation_bits=[8], targets=["finn-pynq-z2"])
    assert least_named(wide, {"occupancy[finn-pynq-z2]": 1.0}) > 1


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


# Costs where parts of the network may be left out

PARTLY = dict.fromkeys(structured.KINDS, TARGETS) | {"conv-tasnet": ("x86-onnxruntime", "nvidia-t4")}
"""Targets that run each kind."""

COMPRESSED_BYTES = 120
"""Most bytes that the estimated size of a small network's file is off, because its description is compressed."""


@cache
def partly(kind: str) -> tuple[Experiment, CostBook, SearchSpace]:
    experiment, space = structured.experiment_of(kind, *PARTLY[kind]), structured.space_of(kind)
    return experiment, CostBook(experiment, space), space


def charged_alone(experiment: Experiment, configuration: Configuration) -> dict[str, float]:
    """The costs of what a configuration keeps, as of a network by itself."""
    graph, options = structured.graph_and_options(experiment)
    front_end = build_separator(experiment.separator, ARRAYS[experiment.data.array], experiment.data.sample_rate).front_end
    widths = configuration.allocation.by_site
    size = onnx_size(options.narrowed(graph, configuration.kept), front_end, per_channel=True).of(widths)
    workload = experiment_workload(experiment, configuration.kept)
    bits = bits_matrix(workload, [widths])
    found = {
        "size_bytes": float(size),
        "packed_bytes": float(packed_size_bytes(workload, bits)[0]),
        "average_bits": average_weight_bits(workload, bits)[0],
        "tcn_average_bits": average_weight_bits(workload, bits, inner_weight_sites(workload))[0],
    }
    for target in experiment.search.targets:
        table = compile_target(load_target(target), workload)
        can, costs = evaluate_runnable(table, bits)
        for metric in ("fits", *table.metrics):
            found[f"{metric}[{target}]"] = float(costs.column(metric)[0]) if can[0] else math.inf
    return found


@pytest.mark.parametrize("kind", ["tcn", "causal", "wide", "tied", "conv-tasnet"])
def test_what_is_kept_is_charged_as_a_network_by_itself(kind: str) -> None:
    experiment, book, space = partly(kind)
    configurations = [space.full_precision, *(space.decode(point) for point in random_points(space, 5))]
    assert len({configuration.structure for configuration in configurations}) > 3
    for configuration, row in zip(configurations, book.charge(configurations), strict=True):
        wanted = charged_alone(experiment, configuration)
        assert row.keys() == wanted.keys()
        assert row["size_bytes"] == wanted["size_bytes"]
        assert row == pytest.approx(wanted, rel=1e-12)
    assert book.charge([]) == []


def test_a_streaming_search_charges_what_is_kept_frame_by_frame() -> None:
    experiment = with_search(structured.experiment_of("causal", "cortex-m7-cmsis-nn"), {"streaming": True})
    space = structured.space_of("causal")
    book = CostBook(experiment, space)
    for point in random_points(space, 3):
        configuration = space.decode(point)
        assert book.charge([configuration])[0] == pytest.approx(charged_alone(experiment, configuration), rel=1e-12)


@pytest.mark.parametrize("column", COLUMNS)
def test_points_need_not_be_canonical_to_be_charged(column: str) -> None:
    _, book, space = partly("tcn")
    points = random_points(space, 12)
    assert any(space.canonical(point) != point for point in points)
    found = book.point_charge(column)(np.array(points))
    wanted = charged(book, space, points, column)
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=COMPRESSED_BYTES if column == "size_bytes" else 0)


def in_parts(table: PartTable, space: SearchSpace, point: Point) -> float:
    """What a table over parts says of a canonical point."""
    total, free = table.constant, len(space.free)
    variant_of = dict.fromkeys(range(free), 0)
    for number, part in enumerate(find_parts(space)):
        variant = part.variants.index(tuple(point[free + option] for option in part.options))
        total += table.parts[number, variant]
        variant_of |= dict.fromkeys(part.choices, variant)
    return total + sum(table.choices[choice, variant, point[choice]] for choice, variant in variant_of.items())


@pytest.mark.parametrize(
    ("kind", "column"),
    [
        ("tcn", "size_bytes"),
        ("tcn", "packed_bytes"),
        ("tcn", "latency_ms[cortex-m7-cmsis-nn]"),
        ("wide", "size_bytes"),
        ("wide", "latency_ms[ethos-u55-128]"),
        ("conv-tasnet", "packed_bytes"),
        ("channels", "size_bytes"),
        ("channels", "latency_ms[cortex-m7-cmsis-nn]"),
    ],
)
def test_a_table_over_parts_adds_up_to_the_cost(kind: str, column: str) -> None:
    _, book, space = partly(kind)
    table, points = book.part_table(column), [space.canonical(point) for point in random_points(space)]
    shape = (len(find_parts(space)), max(len(part.variants) for part in find_parts(space)))
    assert table.parts.shape == shape
    assert table.choices.shape == (len(space.free), shape[1], max(len(widths) for _, widths in space.free))
    wanted = book.point_charge(column)(np.array(points))
    np.testing.assert_allclose([in_parts(table, space, point) for point in points], wanted, rtol=1e-9)


def test_a_part_that_a_target_does_not_run_has_no_cost_there() -> None:
    experiment = structured.experiment_of("tcn", "bitfusion")
    wide = with_search(experiment, {"weight_bits": [4, 16]})
    book = CostBook(wide, experiment_space(wide))
    table = book.part_table("latency_ms[bitfusion]")
    assert np.isfinite(table.parts).all()
    (first, _) = find_parts(experiment_space(wide))
    assert np.isinf(table.choices[list(first.choices), 1:, 1]).all()
    assert (table.choices[list(first.choices), 0] == 0).all()  # left out
    widest = with_search(experiment, {"weight_bits": [16, 32]})
    with pytest.raises(UserError, match=r"latency_ms\[bitfusion\]: the target does not run the narrowest allocation"):
        CostBook(widest, experiment_space(widest)).part_table("latency_ms[bitfusion]")


@pytest.mark.parametrize("column", ["size_bytes", "latency_ms[cortex-m7-cmsis-nn]", "weight_bytes[ethos-u55-128]"])
def test_a_limit_below_what_the_least_kept_costs_is_refused(column: str) -> None:
    _, book, space = partly("tcn")
    least = charged(book, space, [(0,) * len(space.shape)], column)[0]
    whole = charged(book, space, [(*(0,) * len(space.free), *(count - 1 for count in space.shape[len(space.free) :]))], column)[0]
    assert least < whole
    with pytest.raises(UserError) as refused:
        book.check_limits({column: 0.5 * least})
    message = str(refused.value)
    assert message.startswith(f"search.limits: limit {column} <= ")
    assert message.endswith("raise it, or allow other widths or leave more out")
    assert "\n" not in message
    named = float(re.findall(r"is ([0-9.e+]+):", message)[0])
    assert named <= least + (COMPRESSED_BYTES if column == "size_bytes" else 1e-9 * least)
    book.check_limits({column: named * (1 + 1e-9)})


def test_an_unknown_cost_is_refused_where_parts_may_be_left_out() -> None:
    _, book, _ = partly("tcn")
    for refused in (book.part_table, book.point_charge, lambda name: book.check_limits({name: 1.0})):
        with pytest.raises(UserError, match=r"no cost 'latency_ms\[abacus\]'; wanted size_bytes, packed_bytes"):
            refused("latency_ms[abacus]")
