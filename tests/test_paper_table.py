"""The table of the reference system: its rounding against the unfolded network, its file sizes against the published ones, and
the figures of made-up scores."""

import copy
import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hwsearch.experiment import FLOAT_BITS, QuantizationConfig, load_experiment
from hwsearch.metrics.evaluation import UtteranceScores
from hwsearch.metrics.wer import word_errors
from hwsearch.separator.allocation import BitAllocation, is_weight
from hwsearch.separator.fast import FastNetwork
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.quantizers import weight_scale
from hwsearch.training.pool import build_pool
from hwsearch.workflow.shared import train_shared_network
from hwsearch.workflow.training import prepare
from hwsearch.workspace import Workspace
from tests.sensitivity.workspaces import BASE, build, make_experiment
from tests.separator.small import RELU as CONFIG
from tests.separator.small import normalised_features, small_network, uniform

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
MODULES = ("systems", "sensitivities", "reference", "judging", "ours", "bench", "figures", "report")
BINS = (0.0, 45.0, 180.0)
DECIBELS = ("si_snr_db", "si_snr_improvement_db")


@pytest.fixture(scope="module")
def table() -> Iterator[SimpleNamespace]:
    """The modules of the script, which import each other by their short names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS / "paper_table")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
        for name in MODULES:
            del sys.modules[name]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_layer_has_one_scale_before_its_norm_is_folded_in(table, bits):
    separator, graph, calibration = small_network(CONFIG)
    config = QuantizationConfig(rounding="nearest", bias_correction=False, equalise=False, centre_trunk=False)
    base = table.reference.with_layer_scales(PreparedBase(separator, graph, calibration, config, ""))
    plain = copy.deepcopy(separator)
    for site in base.sites.weights[1:-1]:
        weight = plain.network.get_submodule(site.removesuffix(".weight")).weight
        scale = weight_scale(weight, bits, QuantizationConfig(weight_scale="per_tensor"))
        assert scale.numel() == 1
        largest = 2 ** (bits - 1) - 1
        weight.data = (weight.data / scale).round().clamp(-largest, largest) * scale
    ends = dict.fromkeys((base.sites.weights[0], base.sites.weights[-1]), FLOAT_BITS)
    allocation = BitAllocation.of(uniform(CONFIG, bits).by_site | ends)
    features = normalised_features(separator, 1500, 9)
    found = FastNetwork(base.graph, base.calibration, config, weights=base.weights).mask_function(allocation)(features)
    with torch.no_grad():
        wanted, unrounded = plain.network(features), separator.network(features)
    assert torch.allclose(found, wanted, atol=1e-4)
    assert not torch.allclose(unrounded, wanted, atol=1e-4)


@pytest.mark.parametrize(("bits", "published"), [(2, 4.6), (4, 6.6), (8, 10.7), (16, 18.9), (32, 35.2)])
def test_files_have_the_published_sizes(table, bits, published):
    """8,544,320 parameters in the ConvBlocks, and ends of 2.55 MB that stay in full precision (arXiv 2111.14479, Table 1)."""
    parameters = {"blocks.weight": 8_544_320, "ends.weight": round(2.55 * 2**20 / 4)}
    size = table.reference.bytes_at(parameters, {"blocks.weight": bits, "ends.weight": FLOAT_BITS})
    assert size / 2**20 == pytest.approx(published, abs=0.07)


def test_the_reference_quantizes_weights_between_the_ends_alone(table):
    ours = load_experiment(EXPERIMENTS / "paper_table.toml")
    experiment = table.reference.reference_experiment(ours.model_copy(update={"separator": CONFIG}))
    search = experiment.search
    assert (search.weight_bits, search.activation_bits, search.trunk_bits) == ((2, 4, 8, 16), (FLOAT_BITS,), (FLOAT_BITS,))
    assert search.fixed == {"input_proj.weight": FLOAT_BITS, "mask_head.weight": FLOAT_BITS}
    assert experiment.data_digest() == load_experiment(EXPERIMENTS / "comparison.toml").data_digest()


def test_a_list_of_systems_is_read_as_it_was_written(table, tmp_path):
    systems = [
        table.systems.System(table.systems.Kind.REFERENCE, "uniform, 4 bits", uniform(CONFIG, 4), 1000, 4.0, (1.04, 5.33)),
        table.systems.System(table.systems.Kind.OURS, "hwsearch, 10 times", uniform(CONFIG, 2, 8), 500, 2.0),
    ]
    table.systems.write_systems(tmp_path / "systems.json", systems)
    assert table.systems.read_systems(tmp_path / "systems.json") == systems


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A small untrained base with its data and a shared network."""
    runs = build(tmp_path_factory.mktemp("table"))
    search = {"weight_bits": [2, 3, 8], "activation_bits": [8], "trunk_bits": [16], "targets": [], "validation_mixtures": 3}
    sections = {
        "quantization": {"calibration_mixtures": 2},
        "shared": {"steps": 2, "batch_size": 2, "report_steps": 2},
        "nas": {"steps": 2, "cost_weights": [0.5, 20.0]},
        "search": search,
    }
    made = Workspace(runs, make_experiment(name="table", base=str(runs / BASE), **sections))
    train_shared_network(made, 1)
    return made


def test_reference_systems_fit_their_sizes(table, workspace):
    experiment = table.reference.reference_experiment(workspace.experiment)
    pool = build_pool(workspace, 1, lambda _done, _total: None)
    place = replace(workspace, experiment=experiment)
    prepare(place)
    systems = {system.name: system for system in table.reference.Reference(place).systems(pool)}
    assert systems.keys() == table.reference.PUBLISHED.keys()
    for name, system in systems.items():
        widths = system.allocation.by_site
        assert {bits for site, bits in widths.items() if not is_weight(site)} == {FLOAT_BITS}
        assert widths["input_proj.weight"] == widths["mask_head.weight"] == FLOAT_BITS
        if name.startswith("mixed"):
            uniform_system = systems[f"uniform, {name.rpartition(', ')[2]}"]
            assert system.file_bytes <= uniform_system.file_bytes
            assert system.average_bits <= uniform_system.average_bits


def test_our_systems_have_packed_files_of_their_sizes_and_train_from_the_shared_network(table, workspace, monkeypatch):
    monkeypatch.setattr(table.ours, "RATIOS", {1.5: 0.5, 2.0: 1.0, 100.0: 1.0})
    assert not table.ours.our_experiment(replace(workspace, runs=workspace.runs / "none")).search.uses_shared
    place = replace(workspace, experiment=table.ours.our_experiment(workspace))
    assert place.experiment.search.uses_shared
    pool = build_pool(place, 1, lambda _done, _total: None)
    ours = table.ours.Ours(place, pool, 2)
    base = prepare(place, place.experiment.search.weight_bits)
    whole = sum(4 * tensor.numel() for tensor in base.graph.parameters.values())
    systems = ours.systems()
    assert [system.name.partition(", ")[2] for system in systems] == ["1.5 times", "2 times", "smallest file"]
    assert all(system.file_bytes <= whole / ratio for system, ratio in zip(systems, (1.5, 2.0), strict=False))
    assert {bits for site, bits in systems[2].allocation.widths if is_weight(site)} == {2}
    for system, steps in zip(systems, (1, 2, 2), strict=True):
        state = ours.trained(base, system, 0)
        assert table.ours.packed_bytes(base, state) == system.file_bytes
        assert state.steps == place.experiment.shared.steps + steps
    assert ours.trained_path(systems[2], 0) != ours.trained_path(systems[2], 1)


def scores(table, lost_db: float, missed: int = 0) -> dict[str, list[UtteranceScores]]:
    """Two mixtures of each of ten utterances, half of them in each bin. Two words are said, and `missed` are not heard."""
    speech, digits = [], []
    for number in range(20):
        name, utterance, angle = f"test-{number}", f"utterance-{number // 2}", 30.0 if number < 10 else 180.0
        quality = dict.fromkeys(DECIBELS, 5.0 + number - lost_db) | {"pesq": 2.0 + 0.01 * number, "stoi": 0.9}
        heard = " ".join(["one", "two"][missed:])
        speech.append(UtteranceScores(name, utterance, angle, None, quality, {}, {}))
        digits.append(UtteranceScores(name, utterance, angle, None, {}, {"estimate": word_errors("one two", heard)}, {}))
    return {table.bench.SPEECH: speech, table.bench.DIGITS: digits}


def row(table, trainings, name="hwsearch, 10 times"):
    system = table.systems.System(table.systems.Kind.OURS, name, uniform(CONFIG, 2, 8), 700, 2.0, steps=300)
    return table.figures.figures(system, trainings, scores(table, 0.0), 7000, BINS)


def test_figures_are_means_over_trainings_by_angle(table):
    found = row(table, [scores(table, 0.2), scores(table, 0.6)])
    assert found["ratio"] == 10.0
    assert list(found["angles"]) == ["0-45", "45-180", "all"]
    assert [part["mixtures"]["speech"] for part in found["angles"].values()] == [10, 10, 20]
    for part, mean in zip(found["angles"].values(), (9.5, 19.5, 14.5), strict=True):
        assert part["si_snr_db"]["value"] == pytest.approx(mean - 0.4)
        lost = part["si_snr_db"]["lost"]
        assert (lost["value"], lost["low"], lost["high"]) == pytest.approx((0.4, 0.4, 0.4))
    assert found["angles"]["all"]["wer"]["value"] == 0.0


def test_a_difference_is_marked_unless_it_is_significant(table):
    alike, worse = row(table, [scores(table, 0.0)]), row(table, [scores(table, 0.5, missed=1)], "worse")
    for metric in ("si_snr_db", "pesq", "wer"):
        assert table.figures.is_like_full_precision(alike["angles"]["all"][metric])
    assert not table.figures.is_like_full_precision(worse["angles"]["all"]["si_snr_db"])
    assert worse["angles"]["all"]["wer"]["value"] == 0.5
    assert worse["angles"]["all"]["wer"]["p"] < 0.05
    made_by = {"mixtures": 20, "steps": 300, "losses_measured_on": "the base"}
    lines = table.report.markdown([alike, worse], made_by).splitlines()
    shown = {line.split(" | ")[0].removeprefix("| "): line.split(" | ") for line in lines[6:8]}
    assert shown["hwsearch, 10 times"][3:6] == ["10.00", "1 x 300", "0.00 [0.00, 0.00] ="]
    assert shown["worse"][5] == "0.50 [0.50, 0.50]"
    assert shown["worse"][-2] == "50.0 [50.0, 50.0]"


def test_a_plot_is_drawn_of_any_rows(table, tmp_path):
    table.report.plot([row(table, [scores(table, 0.1)])], tmp_path / "table.png")
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")


def test_figures_are_json(table):
    assert json.loads(json.dumps(row(table, [scores(table, 0.1)])))["trainings"] == 1
