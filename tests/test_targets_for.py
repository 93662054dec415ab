"""`hwsearch targets --for RUN`: every target for one candidate, against `hwsearch cost` and the target files."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from hw_models.target import BUILT_IN, built_in_targets, load_target
from hwsearch.experiment import parse_experiment
from hwsearch.search.costs import target_digests
from hwsearch.view.tables import WIDTH
from hwsearch.view.target_plot import draw_targets
from hwsearch.view.target_table import print_all_targets
from hwsearch.workflow.targets import AllTargets, OnTarget
from tests.shown_tables import said, tables
from tests.tiny import Tiny, hwsearch, refusal, tiny_content


@pytest.fixture(scope="module")
def found(tiny: Tiny) -> list[dict[str, Any]]:
    answer = hwsearch("targets", "--for", tiny.folder, "--format", "json")
    assert answer.code == 0, answer.stderr
    rows: list[dict[str, Any]] = json.loads(answer.stdout)
    return rows


def test_all_targets_are_there_for_the_candidate_that_is_exported(tiny: Tiny, found: list[dict[str, Any]]) -> None:
    assert {row["target"] for row in found} == set(built_in_targets())
    (exported,) = re.findall(r"chosen: candidate (\d+)", tiny.stdout)
    assert {row["candidate"] for row in found} == {int(exported)}
    scored = json.loads(hwsearch("pareto", tiny.folder, "--all", "--format", "json").stdout)
    (size,) = [row["size_bytes"] for row in scored if row["candidate"] == int(exported)]
    assert {row["size_bytes"] for row in found} == {size}
    times = [row["latency_ms"] for row in found if row["latency_ms"] is not None]
    assert times == sorted(times)


@pytest.mark.parametrize("name", ["cortex-m7-x-cube-ai", "ethos-u55-128"])
def test_a_row_is_what_the_layers_cost_together(tiny: Tiny, found: list[dict[str, Any]], name: str) -> None:
    (row,) = [row for row in found if row["target"] == name]
    answer = hwsearch("cost", name, "--run", tiny.folder, "--candidate", row["candidate"], "--format", "json")
    charged = json.loads(answer.stdout)
    layers, seconds = charged["layers"], charged["seconds"]
    assert row["latency_ms"] == pytest.approx(sum(layer["latency_ms"] for layer in layers) / seconds)
    checked = sum(layer["latency_ms"] for layer in layers if layer["checked"]) / sum(layer["latency_ms"] for layer in layers)
    assert 0 < row["checked_share"] == pytest.approx(checked) == charged["checked_share"]
    kinds = {layer["kind"] for layer in layers}
    first = [next((one for one in load_target(name).calibration.evidence if kind in one.kinds), None) for kind in kinds]
    assert row["max_error_percent"] == charged["max_error_percent"] == max(one.max_error_percent for one in first if one)
    error, time = row["max_error_percent"] / 100, row["latency_ms"]
    assert row["latency_low_ms"] == pytest.approx(time * (1 - checked + checked / (1 + error)))
    assert row["latency_high_ms"] == pytest.approx(time * (1 - checked + checked / (1 - error)))
    assert row["weight_bytes"] == sum(layer["weight_bytes"] for layer in layers) == charged["total"]["weight_bytes"]
    assert (row["fits"], row["real_time_factor"]) == (charged["fits"], pytest.approx(row["latency_ms"] / 1000))
    if row["energy_uj"] is not None:
        assert row["energy_uj"] == pytest.approx(sum(layer["energy_uj"] for layer in layers) / seconds)


def test_what_is_printed_is_what_is_found_and_fits(tiny: Tiny, found: list[dict[str, Any]], tmp_path: Path) -> None:
    plot = tmp_path / "targets.png"
    answer = hwsearch("targets", "--for", tiny.folder, "--candidate", found[0]["candidate"], "--plot", plot)
    (table,) = tables(answer.stdout)
    assert max(map(len, answer.stdout.splitlines())) <= WIDTH
    assert [record["target"] for record in table.records] == [row["target"] for row in found]
    for record, row in zip(table.records, found, strict=True):
        assert float(record["timems"].replace(",", "")) == pytest.approx(row["latency_ms"], rel=0.006)
        assert (record["rangems"] == "-") == (row["latency_low_ms"] is None)
        assert record["fits"] == ("yes" if row["fits"] else "no")
        assert record["sure%"].strip("<>") == f"{100 * row['checked_share']:.0f}" or record["sure%"] in ("<1", ">99")
        assert bool(row["note"]) == (not row["fits"])
    for row in found:
        assert (f"{row['target']}: does not fit: " in " ".join(answer.stdout.split())) == (not row["fits"])
    assert said(answer.stdout, "nobody has measured") == ["nvidia-t4, gap9, mpic"]
    assert "the kernels look" in said(answer.stdout, "live")[0], "the embedded base is not causal"
    assert imread(plot).std() > 0.01
    assert f"plot: {plot}" in answer.stderr.replace("\n", "")


# Rows that a test makes up


def row_of(name: str, latency_ms: float | None, **more: Any) -> OnTarget:
    known = {"latency_ms": latency_ms, "checked_share": 0.9, "fits": True, "weight_bytes": 10_001, "peak_activation_bytes": 2000}
    return OnTarget(3, 150_000, name, "measurements", **(known if latency_ms is not None else {}) | more)


FOUND = AllTargets(
    "mine",
    3,
    150_000,
    0.0,
    (
        row_of("quick", 0.5, latency_low_ms=0.4, latency_high_ms=0.8, streaming_real_time_factor=0.25, energy_uj=1500.0),
        row_of("no-end", 20.0, latency_low_ms=9.0, latency_high_ms=None, streaming_real_time_factor=1.5),
        row_of("too-small", 3000.0, fits=False, note="weights take 20 kB of 10 kB flash; it fits frame by frame"),
        row_of("refuses", None, note=f"layer 'x': {'16-bit weights, ' * 9}target 'refuses' runs a8w8"),
    ),
)


def test_a_target_that_cannot_run_the_network_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    print_all_targets(FOUND, "table")
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= WIDTH
    quick, no_end, small, refuses = tables(text)[0].records
    assert (quick["rangems"], quick["livex"], quick["energymJ"], quick["memorykB"]) == ("0.40-0.80", "0.25", "1.50", "13")
    assert no_end["rangems"] == "9.0-"
    assert small["fits"] == "no"
    assert {refuses[name] for name in refuses if name != "target"} == {"-"}
    assert "too-small: does not fit: weights take 20 kB of 10 kB flash; it fits frame by frame" in " ".join(text.split())
    assert "refuses: cannot run it: layer 'x'" in text
    print_all_targets(FOUND, "csv")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["target"] for row in rows] == ["quick", "no-end", "too-small", "refuses"]
    assert (rows[0]["latency_high_ms"], rows[1]["latency_high_ms"], rows[3]["fits"]) == ("0.8", "", "")


def test_the_picture_shows_times_bars_real_time_and_what_does_not_fit() -> None:
    (axes,) = draw_targets(FOUND).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["quick", "no-end", "too-small"]
    assert axes.get_xscale() == "log"
    lines = [line.get_xdata() for line in axes.lines]
    assert [1000.0, 1000.0] in [list(line) for line in lines]
    marks = {float(line.get_xdata()[0]): line.get_color() for line in axes.lines if line.get_marker() in ("o", "x")}
    assert marks[0.5] == marks[20.0] != marks[3000.0]
    low, high = axes.containers[0].lines[2][0].get_segments()[0][:, 0]
    assert (low, high) == pytest.approx((0.4, 0.8))
    nothing = replace(FOUND, rows=FOUND.rows[3:])
    with pytest.raises(Exception, match="no target runs candidate 3; wanted at least one to draw"):
        draw_targets(nothing)


# What is refused, and what does not change


def test_wrong_wishes_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    for option in (("--candidate", "2"), ("--plot", "x.png"), ("--format", "csv")):
        assert refusal(hwsearch("targets", *option)) == f"{option[0]} has no effect without --for RUN; wanted both or neither"
    assert refusal(hwsearch("targets", "gap9", "--for", tiny.folder)).startswith("--for shows all targets, and 'gap9' is one")
    assert "no candidate 999999" in refusal(hwsearch("targets", "--for", tiny.folder, "--candidate", "999999"))
    assert "cannot draw a '.txt' file" in refusal(hwsearch("targets", "--for", tiny.folder, "--plot", tmp_path / "a.txt"))
    assert not list(tmp_path.iterdir())
    assert "wanted" in refusal(hwsearch("targets", "--for", tmp_path))
    said_of_columns = refusal(hwsearch("cost", "gap9", "--format", "json", "--columns", "layer"))
    assert said_of_columns == "--columns has no effect with --format json, which has every column; wanted one of them"


def test_cost_says_how_much_was_checked_and_where_nobody_has_measured() -> None:
    for name, wanted in (
        ("gap8-pulp-nn", r"\d+ % of the time, on a chip: mean error 11.3 %, worst 40.5 %"),
        ("mpic", "nothing: nobody has measured this target"),
        ("gap9-ne16", "nothing: nobody has measured these layers at these widths"),
    ):
        (line,) = said(hwsearch("cost", name).stdout, "checked")
        assert re.fullmatch(wanted, line), line


def test_evidence_changes_no_digest_of_a_target(tmp_path: Path) -> None:
    path = tmp_path / "gap8.toml"
    whole = (BUILT_IN / "gap8-pulp-nn.toml").read_text("utf-8")

    def digests(text: str) -> dict[str, str]:
        path.write_text(text)
        content = tiny_content()
        content["search"] |= {"targets": [str(path)]}
        return target_digests(parse_experiment(content, source="here"))

    bare = whole[: whole.index("[[calibration.evidence]]")]
    assert digests(bare) == digests(whole) != digests(whole.replace("alignment_bytes = 4", "alignment_bytes = 8"))
