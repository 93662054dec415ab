"""What leaving parts out is worth on chips: the whole experiment on a small network, and its tables of made-up figures."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hwsearch.data.build import build_data
from hwsearch.errors import UserError
from hwsearch.experiment import Experiment
from hwsearch.metrics.statistics import paired_permutation_test
from hwsearch.separator.base import BaseDescription, save_base
from hwsearch.workspace import Workspace
from tests.sensitivity.workspaces import BASE, make_experiment
from tests.separator.small import RELU, small_separator
from tests.tiny import tiny_content

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
MODULES = ("turns", "bench", "searching", "finishing", "report", "timing", "recipe")
CHIPS = ("cortex-m7-cmsis-nn", "x86-onnxruntime")


@pytest.fixture(scope="module")
def script() -> Iterator[SimpleNamespace]:
    """The modules of the script, which import each other by their short names, and its commands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS)
        patch.syspath_prepend(EXPERIMENTS / "hardware_aware")
        modules = {name: importlib.import_module(name) for name in MODULES}
        spec = importlib.util.spec_from_file_location("hardware_aware", EXPERIMENTS / "hardware_aware" / "__main__.py")
        assert spec is not None
        assert spec.loader is not None
        commands = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(commands)
        yield SimpleNamespace(commands=commands, **modules)
        for name in MODULES:
            del sys.modules[name]


def small_experiment(runs: Path) -> Experiment:
    """Four blocks, two widths, two chips; a shared network of two steps."""
    content = tiny_content()
    corpus = {**content["data"]["corpora"][0], "splits": {"train": 0.4, "validation": 0.3, "test": 0.3}}
    counts = {"train": 1, "validation": 1, "test": 1}
    data = {
        "array": "linear4",
        "corpora": [corpus],
        "rooms": {**content["data"]["rooms"], "count": counts},
        "mixtures": {"count": {"validation": 2, "test": 2}, "seconds": 1.0},
    }
    search = {
        "weight_bits": [4, 8],
        "activation_bits": [8],
        "trunk_bits": [16],
        "targets": list(CHIPS),
        "validation_mixtures": 2,
        "fidelity": "shared",
        "structure": {"blocks.*.kept": [0], "blocks.*.channels": [0.5]},
    }
    shared = {"steps": 2, "batch_size": 2, "report_steps": 2}
    sections = {"data": data, "search": search, "shared": shared, "base": str(runs / BASE), "name": "hardware-small"}
    return make_experiment(**sections)


@pytest.fixture(scope="module")
def bench(script: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """The whole experiment, done: one seed, few candidates."""
    runs = tmp_path_factory.mktemp("runs")
    experiment = small_experiment(runs)
    workspace = Workspace(runs, experiment)
    build_data(experiment, workspace.data_folder, workspace.corpora_folder, 1, lambda _done, _all: None)
    save_base(runs / BASE, small_separator(), BaseDescription(sample_rate=8000, array="linear4", separator=RELU, made_by={}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script.bench, "load_experiment", lambda _path: experiment)
        made = script.bench.Bench(script.bench.Settings(Path("small.toml"), runs, steps=2, mixtures=2, evaluations=8))
        script.commands.run(made, [0])
        yield made


def test_every_search_has_winners_that_are_trained_and_judged_on_the_test_mixtures(script, bench, tmp_path):
    found = list(script.report.rows(bench, [0]))
    assert {(row["mode"], row["chip"]) for row in found} <= {*script.searching.searches(bench)}
    assert {row["mode"] for row in found} == {"bits", "structure", "both"}
    for row in found:
        assert len(row["figures"]["si_snr_improvement_db"]) == 2
        assert np.isfinite(row["figures"]["si_snr_improvement_db"]).all()
        widths = {bits for site, bits in row["allocation"].items() if site.endswith(".weight")}
        assert widths <= ({8} if row["mode"] == "structure" else {4, 8})
        assert bool(row["structure"]) <= (row["mode"] != "bits")
    script.report.write_report(bench, [0], tmp_path)
    content = json.loads((tmp_path / "hardware_small.json").read_text())
    assert len(content["rows"]) == len(found)
    text = (tmp_path / "hardware_small.md").read_text()
    assert all(f"**{chip}: the fastest candidate" in text for chip in CHIPS)


def test_what_is_measured_is_kept(script, bench):
    before = {path: path.stat().st_mtime_ns for path in bench.folder().rglob("*") if path.is_file()}
    script.commands.run(bench, [0])
    assert {path: path.stat().st_mtime_ns for path in bench.folder().rglob("*") if path.is_file()} == before


def test_winners_on_x86_are_timed_beside_what_is_expected(script, bench):
    found = script.timing.timed(bench, 0, 2)
    first, *others = found["rows"]
    assert (first["name"], first["expected_speed_up"]) == ("whole, 8 bits", 1.0)
    for row in others:
        assert row["expected_speed_up"] == pytest.approx(first["expected_ms"] / row["expected_ms"])
        assert row["error_percent"] == pytest.approx(100 * (row["expected_speed_up"] / row["speed_up"][0] - 1))


def test_the_recipe_compares_rates_with_the_plain_one(script, bench):
    found = script.recipe.recipe(bench, 0)
    variants = [(row["rate"], row["steps"]) for row in found["rows"]]
    assert variants == [(0.0, 0), *((rate, 2) for rate in script.recipe.RATES), (1.0, 6)]
    losses = {variant: np.array(row["lost_db"]) for variant, row in zip(variants, found["rows"], strict=True)}
    assert {len(lost) for lost in losses.values()} == {2}
    cells = [line(script.recipe.markdown(found), start) for start in ("| 1 times", "| 8 times")]
    assert cells[0][-1] == ""
    difference = float((losses[8.0, 2] - losses[1.0, 2]).mean())
    assert cells[1][-1].startswith(f"{difference:+.2f} dB, p = ")


def test_nothing_measured_is_said(script, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script.bench, "load_experiment", lambda _path: small_experiment(tmp_path))
        empty = script.bench.Bench(script.bench.Settings(Path("small.toml"), tmp_path, steps=2, mixtures=2, evaluations=8))
        with pytest.raises(UserError, match="nothing is measured"):
            script.report.write_report(empty, [0], tmp_path / "results")
    assert not (tmp_path / "results").exists()


FULL = np.random.default_rng(0).normal(10.0, 2.0, 60)


def made_up(mode: str, chip: str, level: float, loss: float, own_ms: float, other_ms: float = 1.0, **more: object) -> dict:
    """A finished winner that loses `loss` dB, with noise of its own."""
    noise = np.random.default_rng(int(100 * own_ms) + int(10 * level)).normal(0.0, 0.2, len(FULL))
    quality = FULL - loss + noise - noise.mean()
    other = next(name for name in CHIPS if name != chip)
    costs = {f"latency_ms[{chip}]": own_ms, f"latency_ms[{other}]": other_ms, "packed_bytes": more.pop("size", 1000.0)}
    figures = {"si_snr_improvement_db": quality.tolist(), "pesq": [2.0] * 60, "stoi": [0.9] * 60}
    return {"seed": 0, "mode": mode, "chip": chip, "level": level, "costs": costs, "figures": figures, **more}


def line(text: str, start: str) -> list[str]:
    """The cells of the first line of a table that starts so."""
    found = next(line for line in text.splitlines() if line.startswith(start))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_of_the_same_sound_the_fastest_counts_and_slower_or_worse_ones_do_not(script):
    cortex, x86 = CHIPS
    found = [
        made_up("bits", cortex, 0.1, 0.1, 30.0),
        made_up("bits", cortex, 0.8, 0.6, 10.0),
        made_up("structure", cortex, 0.8, 0.9, 9.0),
        made_up("both", cortex, 0.4, 0.28, 15.0, other_ms=4.0, size=500.0),
        made_up("both", cortex, 0.1, 0.05, 20.0, other_ms=2.0),
        made_up("both", x86, 0.4, 0.2, 3.0, other_ms=18.0),
    ]
    text = script.report.markdown(found, FULL, CHIPS, 8000.0)
    same = text[text.index("**Same sound") :]
    assert line(same, f"| {cortex} | bits |")[2:4] == ["0.10 dB", "30"]
    both = line(same, f"| {cortex} | both |")
    assert both[2:7] == ["0.28 dB", "15", "2.00", "0", "2.00"]
    assert line(same, f"| {cortex} | structure |")[2] == "none within"
    assert f"| {x86} | structure |" not in text, "what has not run is no result"
    swapped = text[text.index("**Winners on other chips") :]
    assert line(swapped, f"| {cortex} |")[1:] == ["1.000", f"{4 / 3:.3f}"]
    assert line(swapped, f"| {x86} |")[1:] == [f"{18 / 15:.3f}", "1.000"]


def test_at_equal_bytes_seeds_that_both_have_are_compared(script):
    def sized(mode: str, loss: float, seed: int) -> dict:
        return made_up(mode, CHIPS[0], 8.0, loss, 1.0 + seed) | {"chip": "size", "seed": seed}

    found = [sized("bits", 0.5, 0), sized("bits", 0.7, 1), sized("both", 0.2, 0), sized("both", 0.4, 1), sized("both", 9.0, 2)]
    text = script.report.markdown(found, FULL, CHIPS, 8000.0)
    cells = line(text[text.index("**At equal bytes") :], "| 8 ")
    values = [np.mean([row["figures"]["si_snr_improvement_db"] for row in found[at]], axis=0) for at in (slice(2), slice(2, 4))]
    test = paired_permutation_test(values[1], values[0], 0)
    assert cells[-1] == f"{test.difference:+.2f}, p = {test.p_value:.2g}"
    assert test.difference == pytest.approx(0.3)
