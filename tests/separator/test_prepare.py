"""A base made ready: checked against the experiment, and calibrated once for what it depends on."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from hwsearch.data.dataset import load_mixture, open_dataset
from hwsearch.errors import UserError
from hwsearch.experiment import FLOAT_BITS, Experiment, Split, parse_experiment
from hwsearch.files.reading import indented_json
from hwsearch.separator import prepare as prepare_module
from hwsearch.separator import weight_scales
from hwsearch.separator.base import EMBEDDED_BASE, load_base, save_base
from hwsearch.separator.calibration import calibrate
from hwsearch.separator.prepare import PreparedBase, calibration_digest, calibration_features, load_checked_base, prepare_base
from hwsearch.separator.quantizers import weight_scale
from hwsearch.separator.traced import traced
from tests.sealed import edit_json
from tests.tiny import Tiny, tiny_content


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
    assert prepare(tiny, tmp_path / "new").calibration == calibrate(traced(separator), features)


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


@pytest.mark.parametrize("config", [{}, {"weight_scale": "per_tensor"}, {"weight_scale_method": "max"}])
def test_scales_of_weights_are_searched_once_and_read_bit_for_bit(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, str]
) -> None:
    cache = tmp_path / "calibration.json"
    calibration = prepare(tiny, cache, quantization=config).calibration
    first = prepare(tiny, cache, widths=(2, 8, FLOAT_BITS), quantization=config)
    assert first.calibration == calibration
    wanted = {
        (site.removesuffix(".weight"), bits): weight_scale(first.graph.parameters[site], bits, first.quantization)
        for site in first.sites.weights
        for bits in (2, 8)
    }

    def again(*_: object) -> None:
        raise AssertionError("searched again")

    monkeypatch.setattr(weight_scales, "weight_scale", again)
    written = cache.stat().st_mtime_ns
    for base in (first, prepare(tiny, cache, widths=(8, 2), quantization=config), prepare(tiny, cache, quantization=config)):
        assert all(torch.equal(base.scales.scale(*key), scale) for key, scale in wanted.items())
    assert cache.stat().st_mtime_ns == written


def test_scales_of_other_weights_or_of_another_kind_are_searched_again(tiny: Tiny, tmp_path: Path) -> None:
    cache = tmp_path / "calibration.json"
    prepare(tiny, cache, widths=(4,))
    largest = prepare(tiny, cache, quantization={"weight_scale_method": "max"})
    weight = largest.graph.parameters["mask_head.weight"]
    rows = weight.abs().amax(dim=(1, 2))
    torch.testing.assert_close(largest.scales.scale("mask_head", 4).flatten()[rows > 0], rows[rows > 0] / 7)
    separator, description = load_base(EMBEDDED_BASE)
    with torch.no_grad():
        separator.network.mask_head.weight.mul_(2)
    save_base(tmp_path / "other.safetensors", separator, description)
    other = prepare(tiny, cache, tmp_path / "other.safetensors")
    assert torch.equal(other.scales.scale("mask_head", 4), weight_scale(2 * weight, 4, other.quantization))


def test_scales_stay_where_the_calibration_is_made_again(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "calibration.json"
    first = prepare(tiny, cache, widths=(4,))
    monkeypatch.setattr(weight_scales, "weight_scale", None)
    for _ in range(2):
        base = prepare(tiny, cache, widths=(4,), quantization={"calibration_mixtures": 1})
        assert torch.equal(base.scales.scale("mask_head", 4), first.scales.scale("mask_head", 4))


def test_scales_that_others_have_searched_meanwhile_stay(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "calibration.json"
    calibrate_slowly = prepare_module.calibrate

    def slow(*arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(prepare_module, "calibrate", calibrate_slowly)
            prepare(tiny, cache, widths=(4,))
        return calibrate_slowly(*arguments)

    monkeypatch.setattr(prepare_module, "calibrate", slow)
    prepare(tiny, cache, widths=(2,))
    assert json.loads(cache.read_text())["weights"]["scales"]["layers"]["mask_head"].keys() == {"2", "4"}


def test_the_digest_of_a_calibration_is_that_of_its_file_before_scales_came(tiny: Tiny, tmp_path: Path) -> None:
    """Results of differential searches are kept under it."""
    cache = tmp_path / "calibration.json"
    prepare(tiny, cache, widths=(4,))
    before = calibration_digest(cache)
    edit_json(cache, lambda content: content.pop("weights"))
    content = json.loads(cache.read_text())
    del content["sha256"]
    assert before == calibration_digest(cache) == hashlib.sha256(indented_json(content).encode()).hexdigest()


@pytest.mark.parametrize(
    "damage",
    [
        lambda layers: layers["mask_head"]["4"].pop(),
        lambda layers: layers["mask_head"]["4"].__setitem__(0, 0.0),
        lambda layers: layers["mask_head"]["4"].__setitem__(0, "1"),
        lambda layers: layers["mask_head"].__setitem__("four", layers["mask_head"].pop("4")),
        lambda layers: layers["mask_head"].__setitem__("9" * 5000, layers["mask_head"].pop("4")),
        lambda layers: layers["mask_head"].__setitem__("9", layers["mask_head"].pop("4")),
        lambda layers: layers.__setitem__("elsewhere", layers.pop("mask_head")),
        lambda layers: layers.__setitem__("mask_head", []),
    ],
)
def test_damaged_scales_are_refused(tiny: Tiny, tmp_path: Path, damage: Callable[[dict[str, Any]], object]) -> None:
    cache = tmp_path / "calibration.json"
    prepare(tiny, cache, widths=(4,))
    edit_json(cache, lambda content: damage(content["weights"]["scales"]["layers"]))
    with pytest.raises(UserError, match=f"{cache}: .* delete it and it is made again"):
        prepare(tiny, cache, widths=(4,))


@pytest.mark.parametrize(
    ("sections", "what"),
    [
        ({"separator": {"H": 64}}, "separator.H 128; the experiment 'tiny' wants 64"),
        ({"separator": {"causal": True}}, "separator.causal False; the experiment 'tiny' wants True"),
        ({"data": {**tiny_content()["data"], "array": "linear4"}}, "array linear6; the experiment 'tiny' wants linear4"),
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
