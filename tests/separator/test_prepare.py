"""A base made ready: checked against the experiment, and calibrated once for what it depends on."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hwsearch.data.dataset import load_mixture, open_dataset
from hwsearch.errors import UserError
from hwsearch.experiment import FLOAT_BITS, Experiment, Split, parse_experiment
from hwsearch.files.reading import indented_json
from hwsearch.files.tensors import read_tensors, write_tensors
from hwsearch.network.conditioned import centred, channel_ranges, equalised
from hwsearch.network.sites import with_reads
from hwsearch.separator import prepare as prepare_module
from hwsearch.separator import rounded_weights
from hwsearch.separator.allocation import uniform
from hwsearch.separator.base import EMBEDDED_BASE, load_base, save_base
from hwsearch.separator.calibration import calibrate
from hwsearch.separator.prepare import (
    PreparedBase,
    calibration_digest,
    calibration_features,
    load_checked_base,
    prepare_base,
    training_cache,
    weights_file,
)
from hwsearch.separator.quantizers import quantize_weight, weight_scale
from hwsearch.separator.second_order import input_statistics, mean_error, second_order_integers
from hwsearch.separator.traced import traced
from hwsearch.separator.untrained import untrained_network
from tests.sealed import edit_json
from tests.separator.bfloat16 import next_bfloat16
from tests.tiny import Tiny, tiny_content

TWO = {"calibration_mixtures": 2}
PLAIN = {"rounding": "nearest", "bias_correction": False, "equalise": False, "centre_trunk": False}


def experiment(**sections: Any) -> Experiment:
    return parse_experiment({**tiny_content(), **sections}, source="here")


def prepare(tiny: Tiny, cache: Path, base: Path = EMBEDDED_BASE, widths: Sequence[int] = (), **sections: Any) -> PreparedBase:
    return prepare_base(experiment(**sections), base, tiny.workspace.data_folder, cache, widths)


def test_the_calibration_is_that_of_the_first_validation_mixtures(tiny: Tiny, tmp_path: Path) -> None:
    separator, _ = load_base(EMBEDDED_BASE)
    folder = tiny.workspace.data_folder
    features = []
    for mixture in open_dataset(folder, Split.VALIDATION)[:2]:
        sound, _ = load_mixture(folder, mixture)
        with torch.no_grad():
            analysis = separator.analyse(torch.from_numpy(sound)[None], torch.tensor([mixture.target.doa_deg]))
        features.append(analysis.normalised)
    found = calibration_features(separator, tiny.workspace.experiment, folder)
    assert all(torch.equal(one, other) for one, other in zip(found, features, strict=True))
    plain = prepare(tiny, tmp_path / "plain", quantization=TWO | PLAIN)
    assert plain.calibration == calibrate(traced(separator), features)
    base = prepare(tiny, tmp_path / "new")
    graph = equalised(traced(separator), channel_ranges(traced(separator), features))
    graph = centred(graph, channel_ranges(graph, features))
    assert base.calibration == calibrate(graph, features) != plain.calibration
    assert all(torch.equal(base.graph.parameters[name], tensor) for name, tensor in graph.parameters.items())


def test_a_calibration_is_made_once_and_read_bit_for_bit(tiny: Tiny, tmp_path: Path) -> None:
    cache = tmp_path / "calibration.json"
    first = prepare(tiny, cache)
    written = cache.stat().st_mtime_ns
    second = prepare(tiny, cache)
    assert cache.stat().st_mtime_ns == written
    assert second.calibration == first.calibration
    assert second.base_sha256 == first.base_sha256


def test_a_calibration_of_other_mixtures_or_another_base_is_made_again(tiny: Tiny, tmp_path: Path) -> None:
    cache = tmp_path / "calibration.json"
    first = prepare(tiny, cache)
    assert prepare(tiny, cache, quantization={"calibration_mixtures": 1}).calibration != first.calibration
    separator, description = load_base(EMBEDDED_BASE)
    with torch.no_grad():
        separator.network.mask_head.bias.mul_(2)
    save_base(tmp_path / "other.safetensors", separator, description)
    other = prepare(tiny, cache, tmp_path / "other.safetensors")
    assert other.base_sha256 != first.base_sha256
    assert other.calibration.grids["mask_head.output"] != first.calibration.grids["mask_head.output"]
    assert prepare(tiny, cache).calibration == first.calibration


def test_a_damaged_calibration_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    cache = tmp_path / "calibration.json"
    prepare(tiny, cache)
    whole = cache.read_text()
    edit_json(cache, lambda content: content["calibration"]["grids"].pop("mask_head.output"))
    scales = json.loads(whole)
    for grid in scales["calibration"]["grids"]["mask_head.output"].values():
        grid[0] *= 8
    for damaged, reason in (
        (whole[:-20], "not valid JSON"),
        (cache.read_text(), "its sites are not those of the network"),
        (json.dumps(scales), r"changed since it was written \(its SHA-256 differs\)"),
        (whole.replace("0.", "NaN, 0.", 1), "changed since it was written"),
    ):
        cache.write_text(damaged)
        with pytest.raises(UserError, match=f"{cache}: {reason}"):
            prepare(tiny, cache)
        assert cache.read_text() == damaged


def test_a_file_that_is_no_calibration_of_ours_is_replaced(tiny: Tiny, tmp_path: Path) -> None:
    cache = tmp_path / "calibration.json"
    """Such as one without a digest, which earlier versions wrote: what it says is not trusted."""
    made = prepare(tiny, cache)
    content = json.loads(cache.read_text())
    del content["sha256"]
    content["calibration"]["grids"]["mask_head.output"]["8"][0] *= 8
    for other in ([1, 2], content):
        cache.write_text(json.dumps(other))
        assert prepare(tiny, cache).calibration == made.calibration
        assert "sha256" in json.loads(cache.read_text())


@pytest.mark.parametrize(
    "config", [{}, {"weight_scale": "per_tensor"}, {"weight_scale_method": "max"}, {"rounding": "nearest"}, PLAIN]
)
def test_weights_are_rounded_once_and_read_bit_for_bit(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any]
) -> None:
    cache = tmp_path / "calibration.json"
    first = prepare(tiny, cache, widths=(2, 8, FLOAT_BITS), quantization=TWO | config)
    wanted, to_train = first.weights.to_tensors(), first.to_train.weights.to_tensors()
    assert len(wanted) == 3 * 2 * len(first.sites.weights)

    def again(*_: object) -> None:
        raise AssertionError("rounded again")

    monkeypatch.setattr(rounded_weights, "weight_scale", again)
    written = weights_file(cache).stat().st_mtime_ns
    for widths in ((8, 2), ()):
        base = prepare(tiny, cache, widths=widths, quantization=TWO | config)
        found = base.weights.to_tensors()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
        assert all(torch.equal(base.to_train.weights.to_tensors()[name], tensor) for name, tensor in to_train.items())
        assert all(torch.equal(base.graph.parameters[name], tensor) for name, tensor in first.graph.parameters.items())
    assert weights_file(cache).stat().st_mtime_ns == written


def test_rounded_weights_follow_the_configuration(tiny: Tiny, tmp_path: Path) -> None:
    """By their definitions: the nearest integers, second-order rounding, and the mean error in the bias."""
    cache, layer = tmp_path / "calibration.json", "mask_head"
    plain = prepare(tiny, cache, quantization=TWO | PLAIN)
    weight, bias = (plain.graph.parameters[f"{layer}.{part}"] for part in ("weight", "bias"))
    scale = weight_scale(weight, 3, plain.quantization)
    found = plain.weights.layer(layer, 3)
    assert torch.equal(found.weight.integers, (weight / scale).round().clamp(-3, 3).int())
    assert torch.equal(found.bias, bias)
    base = prepare(tiny, cache, quantization=TWO)
    weight, bias = (base.graph.parameters[f"{layer}.{part}"] for part in ("weight", "bias"))
    features = calibration_features(base.separator, experiment(quantization=TWO), tiny.workspace.data_folder)
    statistics = input_statistics(base.graph, features)[layer]
    found = base.weights.layer(layer, 3)
    wanted = second_order_integers(weight, found.weight.scale, 3, statistics)
    assert torch.equal(found.weight.integers, wanted)
    assert not torch.equal(wanted, (weight / found.weight.scale).round().clamp(-3, 3).int())
    torch.testing.assert_close(found.bias, bias + mean_error(weight - wanted * found.weight.scale, statistics).float())
    largest = prepare(tiny, cache, quantization=TWO | {"weight_scale_method": "max"})
    rows = weight.abs().amax(dim=(1, 2))
    assert torch.equal(largest.weights.layer(layer, 4).weight.scale.flatten()[rows > 0], next_bfloat16(rows[rows > 0] / 7))


def test_training_starts_from_plain_rounding_and_an_uncentred_trunk(tiny: Tiny, tmp_path: Path) -> None:
    cache = tmp_path / "calibration.json"
    base = prepare(tiny, cache, quantization=TWO)
    features = calibration_features(base.separator, experiment(quantization=TWO), tiny.workspace.data_folder)
    plain = traced(base.separator)
    graph = equalised(plain, channel_ranges(plain, features))
    start = base.to_train
    assert start is not base
    assert all(torch.equal(start.graph.parameters[name], tensor) for name, tensor in graph.parameters.items())
    assert any(not torch.equal(start.graph.parameters[name], tensor) for name, tensor in base.graph.parameters.items())
    assert start.calibration == calibrate(graph, features)
    assert start.base_sha256 == base.base_sha256
    weight, bias = (graph.parameters[f"mask_head.{part}"] for part in ("weight", "bias"))
    found = start.weights.layer("mask_head", 3)
    assert torch.equal(found.weight.integers, (weight / found.weight.scale).round().clamp(-3, 3).int())
    assert torch.equal(found.bias, bias)
    wanted = input_statistics(graph, features)
    assert all(torch.equal(start.means[layer], wanted[layer].mean.float()) for layer in wanted)
    assert start.to_train is start
    again = prepare(tiny, cache, quantization=TWO).to_train
    assert again.calibration == start.calibration
    assert again.means.keys() == start.means.keys()
    assert all(torch.equal(again.means[layer], mean) for layer, mean in start.means.items())
    alike = prepare(tiny, tmp_path / "plain.json", quantization=TWO | PLAIN)
    assert alike.to_train is alike


def test_mean_squares_are_kept_where_parts_may_be_left_out(tiny: Tiny, tmp_path: Path) -> None:
    """Beside the mean inputs, and without the mixtures that they were measured on; other experiments keep what they had."""
    cache, structure = tmp_path / "calibration.json", {"*.kept": [0], "*.channels": [0.5]}
    search = {**tiny_content()["search"], "trunk_bits": [16], "structure": structure}
    base = prepare(tiny, cache, quantization=TWO, search=search)
    start = base.to_train
    features = calibration_features(base.separator, experiment(quantization=TWO), tiny.workspace.data_folder)
    inputs = input_statistics(start.graph, features)
    assert start.squares.keys() == inputs.keys()
    for layer, found in inputs.items():
        wanted = found.covariance.diagonal(dim1=1, dim2=2) + found.mean**2
        torch.testing.assert_close(start.squares[layer], wanted.float())
    assert start.graph.parameters.keys() == with_reads(traced(base.separator), sums=True).parameters.keys()
    assert base.graph.by_name.keys() == with_reads(traced(base.separator), sums=True).by_name.keys()
    assert base.sites.all == untrained_network(experiment(search=search), elastic=True).sites.all
    written = weights_file(training_cache(cache)).stat().st_mtime_ns
    again = prepare(tiny, cache, quantization=TWO, search=search, widths=(4,)).to_train
    once_more = prepare(tiny, cache, quantization=TWO, search=search).to_train
    assert weights_file(training_cache(cache)).stat().st_mtime_ns > written  # the weights of 4 bits
    for each in (again, once_more):
        assert each.orders == start.orders
        assert all(torch.equal(each.squares[layer], tensor) for layer, tensor in start.squares.items())
    assert prepare(tiny, tmp_path / "plain.json", quantization=TWO).to_train.squares == {}


def test_master_weights_round_to_the_rounded_weights(tiny: Tiny, tmp_path: Path) -> None:
    base = prepare(tiny, tmp_path / "calibration.json", quantization=TWO)
    allocation = uniform(base.sites, 3, 8)
    graph = base.weights.graph_at(allocation)
    for site in base.sites.weights:
        rounded = base.weights.layer(site.removesuffix(".weight"), 3)
        assert torch.equal(quantize_weight(graph.parameters[site], rounded.weight.scale, 3).integers, rounded.weight.integers)
        assert torch.equal(graph.parameters[site.replace(".weight", ".bias")], rounded.bias)


def test_weights_that_others_have_rounded_meanwhile_stay(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "calibration.json"
    calibrate_slowly = prepare_module.calibrate

    def slow(*arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(prepare_module, "calibrate", calibrate_slowly)
            prepare(tiny, cache, widths=(4,))
        return calibrate_slowly(*arguments)

    monkeypatch.setattr(prepare_module, "calibrate", slow)
    prepare(tiny, cache, widths=(2,))
    assert {"rounded/mask_head@2.scale", "rounded/mask_head@4.scale"} <= load_file(weights_file(cache)).keys()


def test_the_digest_of_a_calibration_stays_when_weights_come(tiny: Tiny, tmp_path: Path) -> None:
    """Results of differential searches are kept under it."""
    cache = tmp_path / "calibration.json"
    prepare(tiny, cache)
    before = calibration_digest(cache)
    prepare(tiny, cache, widths=(4,))
    content = json.loads(cache.read_text())
    del content["sha256"]
    assert before == calibration_digest(cache) == hashlib.sha256(indented_json(content).encode()).hexdigest()


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors: tensors.pop("rounded/mask_head@4.scale"),
        lambda tensors: tensors.pop("graph/mask_head.bias"),
        lambda tensors: tensors.update({"rounded/mask_head@4.scale": tensors["rounded/mask_head@4.scale"][:1]}),
        lambda tensors: tensors["rounded/mask_head@4.scale"].fill_(-1.0),
        lambda tensors: tensors["rounded/mask_head@4.integers"].fill_(9),
        lambda tensors: tensors.update({"rounded/mask_head@four.scale": tensors.pop("rounded/mask_head@4.scale")}),
        lambda tensors: tensors.update({"rounded/mask_head@9.scale": tensors.pop("rounded/mask_head@4.scale")}),
        lambda tensors: tensors.update({"rounded/elsewhere@4.scale": tensors.pop("rounded/mask_head@4.scale")}),
    ],
)
def test_damaged_weights_are_refused(tiny: Tiny, tmp_path: Path, damage: Callable[[dict[str, Any]], object]) -> None:
    cache = tmp_path / "calibration.json"
    prepare(tiny, cache, widths=(4,))
    path = weights_file(cache)
    content, tensors = read_tensors(path, "hwsearch_prepared", "weights")
    changed = {name: tensor.clone() for name, tensor in tensors.items()}
    damage(changed)
    write_tensors(path, changed, "hwsearch_prepared", content)
    with pytest.raises(UserError, match=f"{path}: .* delete it and it is made again"):
        prepare(tiny, cache, widths=(4,))


@pytest.mark.parametrize(
    ("sections", "what"),
    [
        ({"separator": {"H": 64}}, "separator.H 128; the experiment 'tiny' wants 64"),
        ({"separator": {"causal": True}}, "separator.causal False; the experiment 'tiny' wants True"),
        ({"data": {**tiny_content()["data"], "array": "linear4"}}, "array 'linear6'; the experiment 'tiny' wants 'linear4'"),
        ({"data": {**tiny_content()["data"], "sample_rate": 16000}}, "sampling rate 8000; the experiment 'tiny' wants 16000"),
    ],
)
def test_a_base_of_another_network_is_refused(sections: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError) as refused:
        load_checked_base(experiment(**sections), EMBEDDED_BASE)
    assert str(refused.value) == f"{EMBEDDED_BASE}: the base has {what}"


def test_a_base_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for name, reason in (
        ("absent", "no base there; wanted one: run 'hwsearch train'"),
        ("", "is a folder; wanted a base"),
        ("loop", r"cannot be read \(Too many levels of symbolic links\)"),
    ):
        with pytest.raises(UserError, match=reason):
            load_checked_base(experiment(), tmp_path / name)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    separator, description = load_base(EMBEDDED_BASE)
    with torch.no_grad():
        separator.network.mask_head.weight[3, 2] = value
    save_base(tmp_path / "base.safetensors", separator, description)
    with pytest.raises(UserError, match="holds values out of range; wanted finite numbers"):
        load_checked_base(experiment(), tmp_path / "base.safetensors")


def test_data_that_were_not_built_are_refused(tmp_path: Path) -> None:
    shutil.copy(EMBEDDED_BASE, tmp_path / "base.safetensors")
    with pytest.raises(UserError, match="build the data first"):
        prepare_base(experiment(), tmp_path / "base.safetensors", tmp_path / "data", tmp_path / "calibration.json")
    assert not (tmp_path / "calibration.json").exists()
