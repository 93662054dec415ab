"""Every table of the command line fits 80 columns, and nothing in it is cut."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw_models.target import built_in_targets
from hwsearch.experiment import parse_experiment
from hwsearch.extensions import SENSITIVITIES
from hwsearch.metrics.evaluation import Summary
from hwsearch.metrics.statistics import Estimate
from hwsearch.sensitivity.table import SensitivityTable, unit_of
from hwsearch.view.candidates import front_columns
from hwsearch.view.evaluation import FIGURES, print_evaluation
from hwsearch.view.sensitivity import print_most_fragile
from hwsearch.view.tables import NAMES, WIDTH, Column, asked_for, fitting, print_table, table_width
from hwsearch.workflow.evaluate import Evaluation
from tests.results.tables import make_table
from tests.shown_tables import Shown, tables
from tests.test_cli_hardware import measurements_of
from tests.tiny import Tiny, hwsearch, refusal, tiny_content

NAME = st.text("ab1_-[]", min_size=1, max_size=60)
COLUMNS = st.lists(st.tuples(NAME, st.text("0123456789.", max_size=30)), min_size=1, max_size=12, unique_by=lambda pair: pair[0])


def whole(text: str) -> list[Shown]:
    """The tables in a text, all of whose lines fit and none of whose cells is cut."""
    found = tables(text)
    assert found
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= WIDTH, text
    return found


# Columns


@settings(max_examples=30)
@given(COLUMNS)
def test_as_many_columns_are_shown_as_fit_those_needed_most_first(drawn: list[tuple[str, str]]) -> None:
    columns = [Column(name, [cell]) for name, cell in drawn]
    need = [column.name for column in reversed(columns)]
    shown = fitting(columns, need)
    limit = WIDTH + max(0, columns[-1].width - NAMES)
    assert columns[-1] in shown
    assert table_width(shown) <= limit
    assert shown == [column for column in columns if column in shown], "the order changed"
    for place, column in enumerate(columns):
        if column not in shown:
            assert table_width([column, *(other for other in columns[place:] if other in shown)]) > limit


@given(NAME, st.text("0123456789", max_size=30))
def test_a_heading_is_the_name_broken_only_where_its_cells_are_narrower(name: str, cell: str) -> None:
    heading = Column(name, [cell], note="ms").heading
    *lines, note = heading.splitlines()
    assert ("".join(lines), note) == (name, "ms")
    assert len(lines) == 1 or len(name) > len(cell)


def test_what_is_printed_is_whole_however_wide_and_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    columns = [Column(f"latency_ms[chip-{number}]", ["[red]x[/red]", "1,234.5"]) for number in range(40)]
    print_table(columns, "forty [bold]chips[/bold]")
    text = capsys.readouterr().out
    assert text.startswith("forty [bold]chips[/bold]\n")
    (table,) = tables(text)
    assert table.headings == [column.name for column in columns]
    assert table.rows == [["[red]x[/red]"] * 40, ["1,234.5"] * 40]


def test_columns_are_asked_for_by_name_with_commas_between() -> None:
    assert asked_for("b,a,b", ["a", "b", "c"]) == ["b", "a"]
    assert asked_for("all", ["a", "b", "c"]) == ["a", "b", "c"]


# Commands


@pytest.fixture
def beside(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """The run, as seen from the folder above it: its paths are short."""
    monkeypatch.chdir(tiny.runs.parent)
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    return tiny


def test_the_front_fits(beside: Tiny) -> None:
    for options in ([], ["--all"], ["--where", "size_bytes<=1000000"]):
        (table,) = whole(hwsearch("pareto", "runs/tiny", *options).stdout)
        assert {"candidate", "si_snr_improvement_db± 95 %", "drop_db± 95 %", "size_bytes", "average_bits"} <= set(table.headings)


def test_the_front_fits_with_the_longest_names_and_figures() -> None:
    table = make_table([-10.5], [123_456_789.0], drop_db=[-12.25], si_snr_improvement_ci95_db=[10.25], drop_ci95_db=[10.25])
    table = replace(table, candidate=np.array([1_000_000]), strategy=np.array(["measured-noise-ratio"]))
    columns = front_columns(table)
    assert table_width(columns) <= WIDTH
    assert "drop_db" in {column.name for column in columns}


def test_columns_of_the_front_are_chosen_on_the_command_line(beside: Tiny) -> None:
    (table,) = tables(hwsearch("pareto", "runs/tiny", "--columns", "size_bytes,candidate,training_steps").stdout)
    assert table.headings == ["size_bytes", "candidate", "training_steps"]
    rows = json.loads(hwsearch("pareto", "runs/tiny", "--format", "json").stdout)
    assert [row["candidate"] for row in table.records] == [str(row["candidate"]) for row in rows]
    (everything,) = tables(hwsearch("pareto", "runs/tiny", "--columns", "all").stdout)
    assert everything.headings == [name for name in rows[0] if not name.startswith("bits[")]
    assert refusal(hwsearch("pareto", "runs/tiny", "--columns", "size")).startswith("unknown column 'size'; wanted one of ")
    for output_format in ("json", "csv"):
        said = refusal(hwsearch("pareto", "runs/tiny", "--columns", "size_bytes", "--format", output_format))
        assert said == f"--columns has no effect with --format {output_format}, which has every column; wanted one of them"


@pytest.mark.parametrize(
    "words",
    [
        ("runs",),
        ("doctor",),
        ("explain",),
        ("explain", "data.array"),
        ("cost", "bitfusion", "--run", "runs/tiny", "--candidate", "2"),
        ("sensitivity", "tiny.toml", "--workers", "0", "--method", "kl"),
        ("evaluate", "runs/tiny", "--processes", "1"),
    ],
    ids=" ".join,
)
def test_what_commands_print_fits(copied: Tiny, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    """Tables, and lines for people, except one that names a path or a command to paste."""
    monkeypatch.chdir(copied.runs.parent)
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    answer = hwsearch(*words)
    assert answer.code == 0, answer.stderr
    long = [line for line in answer.stdout.splitlines() if len(line) > WIDTH]
    assert [line for line in long if not re.match(r"(plot|next|table|figures|source)\w*:", line)] == []
    assert "…" not in answer.stdout


def test_the_status_fits(beside: Tiny) -> None:
    text = hwsearch("status", "runs/tiny").stdout
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= WIDTH, text


@pytest.mark.parametrize("target", ["bitfusion", "ethos-u55-128", "finn-zcu104", "x86-onnxruntime"])
def test_the_layers_fit_with_what_is_needed_most(target: str) -> None:
    (table,) = whole(hwsearch("cost", target).stdout)
    assert {"layer", "latency_ms", "bound", "bits", "weight_bytes"} <= set(table.headings)


def test_columns_of_the_layers_are_chosen_on_the_command_line() -> None:
    (table,) = tables(hwsearch("cost", "ethos-u55-128", "--columns", "layer,macs,cycles,kind").stdout)
    assert table.headings == ["layer", "macs", "cycles", "kind"]
    assert "total" in table.records[-1].values()
    assert len(tables(hwsearch("cost", "ethos-u55-128", "--columns", "all").stdout)[0].headings) > 8
    assert refusal(hwsearch("cost", "ethos-u55-128", "--columns", "layer,colour")).startswith("unknown column 'colour'; wanted")


def test_the_targets_fit() -> None:
    assert [row["target"] for row in whole(hwsearch("targets").stdout)[0].records] == list(built_in_targets())


def test_a_fit_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    measured = {"source": "a board", "measurements": measurements_of("bitfusion", 2.5)}
    Path("mine.json").write_text(json.dumps(measured))
    answer = hwsearch("calibrate", "bitfusion", "--measurements", "mine.json", "--output", "mine.toml")
    table = tables(answer.stdout)[0]
    assert table_lines(answer.stdout) <= WIDTH
    assert [row["held out"] for row in table.records].count("yes") == 2


def table_lines(text: str) -> int:
    """Length of the longest line of the tables in a text."""
    return max(len(line) for line in text.splitlines() if set(line) == {"─"})


def test_an_evaluation_fits_with_the_widest_figures(capsys: pytest.CaptureFixture[str]) -> None:
    widest = {"dB": Estimate(-12.345, -13.456, -11.234, 300, "t"), "%": Estimate(1.0, 0.9, 1.1, 3, "bootstrap")}
    share = Estimate(0.8, 0.75, 0.85, 300, "t")
    figures = {key: widest.get(name.split()[-1], share) for name, *keys, _, _ in FIGURES for key in keys if key}
    summaries = [Summary((90.0, 180.0), 1000, figures), Summary((0.0, 180.0), 3000, {"pesq": Estimate(2.0, None, None, 1, "t")})]
    evaluation = Evaluation("candidate 20", [], summaries, {}, {})
    print_evaluation(evaluation, parse_experiment(tiny_content(), source="here"), "other.json")
    (table,) = whole(capsys.readouterr().out)
    assert [row["figure"] for row in table.records] == [name for name, *_ in FIGURES] + ["PESQ"]
    assert table.records[0] == {
        "angledeg": "90-180",
        "n": "1000",
        "figure": "SI-SNR, dB",
        "mixture": "-12.35 [-13.46, -11.23]",
        "separated": "-12.35 [-13.46, -11.23]",
    }
    assert table.records[4]["separated"] == "100.0 [90.0, 110.0]"
    assert table.records[-1]["separated"] == "2.00"


def test_fragile_sites_fit(capsys: pytest.CaptureFixture[str]) -> None:
    sites = tuple(f"blocks.{number}.depthwise_activation" for number in range(10, 18))
    value = np.linspace(1e-5, 12345.678, 8)[:, None]
    for method in SENSITIVITIES:
        print_most_fragile(SensitivityTable(method, sites, (2,), value, value / 3, 1000))
        text = capsys.readouterr().out
        assert [row["site"] for row in whole(text)[0].records] == list(reversed(sites))[:5]
        assert unit_of(method) in text
