"""Costs of allocations as columns, against the simulator called directly, the network's own weights and the exported file."""

import math
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
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.packed import write_packed
from hwsearch.search.costing import compile_targets, experiment_workload, inner_weight_sites, make_cost, target_digests
from hwsearch.separator.allocation import BitAllocation, is_weight
from hwsearch.separator.base import EMBEDDED_BASE, load_base
from hwsearch.separator.prepare import prepare_base
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.stft import stft
from tests.separator.small import all_sites, uniform
from tests.tiny import Tiny, tiny_content

CONFIG = SeparatorConfig()


def experiment(**sections: object) -> Experiment:
    return parse_experiment({**tiny_content(), **sections}, source="here")


def random_allocation(seed: int) -> BitAllocation:
    """Any weight widths, eight-bit activations: what every target runs."""
    random = np.random.default_rng(seed)
    return BitAllocation(tuple((site, int(random.integers(2, 9)) if is_weight(site) else 8) for site in all_sites(CONFIG)))


ALLOCATIONS = (uniform(CONFIG, 8, 8), uniform(CONFIG, 2, 8), random_allocation(0), random_allocation(1))


def test_the_columns_of_a_target_are_what_the_simulator_says() -> None:
    everywhere = experiment(search={**tiny_content()["search"], "targets": list(built_in_targets())})
    workload = experiment_workload(everywhere)
    found = make_cost(everywhere)(ALLOCATIONS)
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
    twice = experiment(search={**tiny_content()["search"], "targets": ["bitfusion", str(copy)]})
    with pytest.raises(UserError, match="two targets are called 'bitfusion'"):
        make_cost(twice)


def test_a_streaming_search_is_charged_frame_by_frame() -> None:
    whole, frame = (experiment(search={**tiny_content()["search"], "streaming": on}) for on in (False, True))
    rows = [make_cost(each)(ALLOCATIONS[:1])[0] for each in (whole, frame)]
    assert experiment_workload(frame).streaming
    assert rows[1]["latency_ms[cortex-m7-cmsis-nn]"] < rows[0]["latency_ms[cortex-m7-cmsis-nn]"] / 50


def test_one_allocation_costs_what_it_costs_among_others() -> None:
    cost = make_cost(experiment())
    together = cost(ALLOCATIONS)
    assert [cost([allocation])[0] for allocation in ALLOCATIONS] == together
    assert cost([]) == []


def test_the_size_is_the_length_of_the_file_that_ships(tiny: Tiny, tmp_path: Path) -> None:
    workspace = tiny.workspace
    prepared = prepare_base(
        workspace.experiment, workspace.base_path, workspace.data_folder, workspace.folder / "calibration.json"
    )
    cost = make_cost(workspace.experiment)
    for allocation in (*ALLOCATIONS, uniform(CONFIG, 16, 8), uniform(CONFIG, 32, 32), uniform(CONFIG, 5, 32)):
        network = build_quantized(prepared.graph, allocation, prepared.calibration, prepared.quantization)
        write_packed(tmp_path / "weights.hwq", ExportedNetwork(network, prepared.separator.front_end))
        assert cost([allocation])[0]["size_bytes"] == (tmp_path / "weights.hwq").stat().st_size
    exported = next(tiny.folder.glob("export/weights.hwq")).stat().st_size
    assert exported in {event["costs"]["size_bytes"] for event in tiny.events()}


def test_average_bits_are_weighted_by_the_networks_own_weights() -> None:
    separator, _ = load_base(EMBEDDED_BASE)
    convolutions = {n: module for n, module in separator.network.named_modules() if isinstance(module, torch.nn.Conv1d)}
    counts = {name: module.weight.numel() for name, module in convolutions.items()}
    for allocation, row in zip(ALLOCATIONS, make_cost(experiment())(ALLOCATIONS), strict=True):
        bits = {name: allocation.by_site[f"{name}.weight"] for name in counts}
        blocks = [name for name in counts if name.startswith("blocks.")]
        assert len(blocks) == 3 * CONFIG.R * CONFIG.X
        for column, names in (("average_bits", list(counts)), ("tcn_average_bits", blocks)):
            mean = sum(bits[name] * counts[name] for name in names) / sum(counts[name] for name in names)
            assert row[column] == pytest.approx(mean)


def test_a_network_of_few_layers_has_an_inner_average_all_the_same() -> None:
    layers = experiment_workload(experiment()).layers
    for first, last, inner in ((0, 2, ("input_proj.weight", "blocks.0.expand.weight")), (0, 3, ("blocks.0.expand.weight",))):
        few = layers[first:last]
        channels = {few[0].input_sites[0]: few[0].in_channels} | {layer.output_site: layer.out_channels for layer in few}
        workload = Workload("few", few, 40, 0.01, per_channel_scales=True, site_channels=channels)
        assert inner_weight_sites(workload) == inner


def test_the_workload_has_the_frames_of_the_transform() -> None:
    for seconds in (0.5, 1.0, 3.99, 4.0):
        workload = experiment_workload(experiment(search={"utterance_seconds": seconds}))
        spectrum = stft(torch.zeros(1, round(8000 * seconds)), CONFIG.n_fft, CONFIG.hop_length)
        assert workload.frames == spectrum.shape[-1]
    separator, _ = load_base(EMBEDDED_BASE)
    assert workload.site_channels["features"] == separator.network.input_proj.in_channels


def test_a_scale_per_tensor_is_smaller_than_one_per_channel() -> None:
    cost = [make_cost(experiment(quantization={"weight_scale": kind}))(ALLOCATIONS)[0] for kind in ("per_channel", "per_tensor")]
    modules = load_base(EMBEDDED_BASE)[0].network.modules()
    channels = sum(module.out_channels for module in modules if isinstance(module, torch.nn.Conv1d))
    layers = 2 + 3 * CONFIG.R * CONFIG.X
    assert cost[0]["size_bytes"] - cost[1]["size_bytes"] == 4 * (channels - layers)


def test_what_a_target_cannot_run_has_no_cost_there() -> None:
    (row,) = make_cost(experiment())([uniform(CONFIG, 32, 32)])
    assert math.isnan(row["latency_ms[bitfusion]"])
    assert math.isnan(row["weight_bytes[bitfusion]"])
    assert math.isnan(row["fits[bitfusion]"])
    assert row["size_bytes"] > 0


def test_the_users_own_target_is_charged_under_its_own_name(tmp_path: Path) -> None:
    text = (BUILT_IN / "bitfusion.toml").read_text()
    chip = tmp_path / "chip.toml"
    chip.write_text(text.replace('name = "bitfusion"', 'name = "mine"').replace("clock_hz = 5", "clock_hz = 25"))
    mine = experiment(search={"targets": ["bitfusion", str(chip)]})
    assert compile_targets(mine, experiment_workload(mine)).keys() == {"bitfusion", "mine"}
    clocks = {name: load_target(path).clock.clock_hz for name, path in (("bitfusion", "bitfusion"), ("mine", chip))}
    for row in make_cost(mine)(ALLOCATIONS):
        cycles = {name: row[f"latency_ms[{name}]"] * clocks[name] for name in clocks}
        assert cycles["mine"] == pytest.approx(cycles["bitfusion"])
        assert clocks["mine"] > clocks["bitfusion"]
        assert not any("ethos" in name for name in row)


def test_a_target_is_known_by_what_its_file_says(tmp_path: Path) -> None:
    text = (BUILT_IN / "bitfusion.toml").read_text()
    (tmp_path / "same.toml").write_text("# A copy.\n" + text)
    (tmp_path / "other.toml").write_text(text.replace("clock_hz = 5", "clock_hz = 25"))
    digests = [
        target_digests(experiment(search={"targets": [name]}))["bitfusion"]
        for name in ("bitfusion", str(tmp_path / "same.toml"), str(tmp_path / "other.toml"))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_an_unknown_or_wrong_target_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text("name = 3")
    for name in ("abacus", str(tmp_path / "absent.toml"), str(tmp_path / "wrong.toml")):
        wrong = experiment(search={"targets": [name]})
        for refused in (make_cost, target_digests):
            with pytest.raises(UserError) as refusal:
                refused(wrong)
            assert Path(name).name in str(refusal.value)
            assert "\n" not in str(refusal.value)
