import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsearch.errors import UserError
from hwsearch.results.candidates import CandidateTable, read_candidates
from hwsearch.results.query import (
    Condition,
    Order,
    bits_column,
    column_names,
    parse_condition,
    parse_order,
    query,
    to_csv,
    to_json,
)
from hwsearch.search.objectives import QUALITY, objectives_of
from hwsearch.view.candidates import front_columns
from hwsearch.view.tables import Column, table_width
from tests.results.tables import make_table, write_partly

LATENCY = "latency_ms[ethos-u55-128]"

# By quality and size: 1 is small and poor, 2 better, 3 dominated by 2, 4 the best and largest.
TABLE = make_table(
    [4.0, 8.0, 7.0, 10.0],
    [100.0, 200.0, 300.0, 400.0],
    **{LATENCY: [9.0, math.nan, 5.0, 7.0], "drop_db": [8.0, 4.0, 5.0, 0.1 + 0.2]},
)


def cells(columns: Sequence[Column]) -> list[str]:
    """Every cell of a table for the terminal."""
    return [cell for column in columns for cell in column.cells]


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("size_bytes<=120000", Condition("size_bytes", "<=", 120000.0)),
        ("latency_ms[ethos-u55-128]<=8", Condition(LATENCY, "<=", 8.0)),
        (" drop_db < 5e-1 ", Condition("drop_db", "<", 0.5)),
        ("si_snr_improvement_db>-3.5", Condition("si_snr_improvement_db", ">", -3.5)),
        ("candidate==7", Condition("candidate", "==", 7.0)),
        ("strategy==ends-at-8", Condition("strategy", "==", "ends-at-8")),
        ("uniform==true", Condition("uniform", "==", 1.0)),
        ("size_bytes=5", Condition("size_bytes", "==", 5.0)),
        ("size_bytes!=5", Condition("size_bytes", "!=", 5.0)),
        ("strategy != kl", Condition("strategy", "!=", "kl")),
        ("fidelity=short-qat", Condition("fidelity", "==", "short-qat")),
        ("bits[a.weight]=4", Condition("bits[a.weight]", "==", 4.0)),
    ],
)
def test_conditions_are_read(text: str, condition: Condition) -> None:
    assert parse_condition(text) == condition


MALFORMED = (
    "",
    "size_bytes",
    "<=5",
    "!=5",
    "size_bytes!5",
    "size_bytes==",
    "size_bytes<=",
    "a<=b<=c",
    "a <= 5; b",
    "a=<5",
    "a!==5",
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        *((text, "malformed; wanted COLUMN<=NUMBER") for text in (*MALFORMED, "size_bytes<=5 and x")),
        *((f"size_bytes{end}", "wanted a number") for end in ("<=many", "<nan", "<__import__('os')")),
        *((f"strategy{sign}kl", "wanted strategy==NAME or strategy!=NAME") for sign in ("<=", ">=", "<", ">")),
        ("fidelity<kl", "wanted fidelity==NAME or fidelity!=NAME"),
    ],
)
def test_conditions_that_say_nothing_are_refused(text: str, wanted: str) -> None:
    with pytest.raises(UserError, match=re.escape(wanted)):
        parse_condition(text)


@pytest.mark.parametrize("text", ["size_bytes<=120000", "strategy!=kl", "uniform==1", "drop_db<0.25", f"{LATENCY}>=8"])
def test_a_condition_is_shown_as_it_is_written(text: str) -> None:
    assert str(parse_condition(text)) == text


@given(st.text())
def test_any_text_is_a_condition_or_a_user_error(text: str) -> None:
    try:
        condition = parse_condition(text)
    except UserError as error:
        assert text in str(error)  # noqa: PT017
    else:
        assert condition.column in text


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("drop_db", Order("drop_db", descending=False)),
        ("drop_db:asc", Order("drop_db", descending=False)),
        (f"{LATENCY}:desc", Order(LATENCY, descending=True)),
    ],
)
def test_orders_are_read(text: str, order: Order) -> None:
    assert parse_order(text) == order


@pytest.mark.parametrize("text", ["", ":desc", "drop_db:down", "drop_db:"])
def test_malformed_orders_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="wanted COLUMN, COLUMN:asc or COLUMN:desc"):
        parse_order(text)


def test_without_conditions_the_answer_is_the_front_smallest_first() -> None:
    assert query(TABLE).candidate.tolist() == [1, 2, 4]


def test_conditions_come_before_the_front() -> None:
    """Candidate 3 is dominated by 2 only, which has no latency there."""
    assert query(TABLE, [parse_condition(f"{LATENCY}<=8")]).candidate.tolist() == [3, 4]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("size_bytes<=200", [1, 2]),
        ("size_bytes<200", [1]),
        ("size_bytes>=300", [3, 4]),
        ("size_bytes>300", [4]),
        ("candidate==3", [3]),
        ("strategy==nsga2", [2, 3, 4]),
        ("uniform==true", [1]),
        ("uniform==false", [2, 3, 4]),
        (f"{LATENCY}>0", [1, 3, 4]),
        ("size_bytes<0", []),
        ("size_bytes=300", [3]),
        ("size_bytes!=300", [1, 2, 4]),
        ("strategy=nsga2", [2, 3, 4]),
        ("strategy!=nsga2", [1]),
        ("strategy!=kl", [1, 2, 3, 4]),
        ("fidelity==post-training", [1, 2, 3, 4]),
        ("fidelity!=post-training", []),
        ("fidelity=short-qat", []),
        ("uniform!=true", [2, 3, 4]),
        (f"{LATENCY}!=5", [1, 4]),
        ("bits[b.weight]==4", [1]),
        ("bits[b.weight]!=4", [2, 3, 4]),
    ],
)
def test_each_operator_does_what_it_says(text: str, expected: list[int]) -> None:
    assert query(TABLE, [parse_condition(text)], only_front=False).candidate.tolist() == expected


def test_all_conditions_must_be_met() -> None:
    conditions = [parse_condition("size_bytes>100"), parse_condition("drop_db<5")]
    assert query(TABLE, conditions, only_front=False).candidate.tolist() == [2, 4]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LATENCY, [3, 4, 1, 2]),
        (f"{LATENCY}:desc", [1, 4, 3, 2]),
        ("si_snr_improvement_db:desc", [4, 2, 3, 1]),
        ("strategy", [2, 3, 4, 1]),
        ("strategy:desc", [1, 2, 3, 4]),
        ("uniform:desc", [1, 2, 3, 4]),
        ("candidate:desc", [4, 3, 2, 1]),
    ],
)
def test_sorting_puts_missing_values_last(text: str, expected: list[int]) -> None:
    assert query(TABLE, order=parse_order(text), only_front=False).candidate.tolist() == expected


@pytest.mark.parametrize("where", ["latency_ms[nowhere]<=8", "size<=8", "__class__<=8"])
def test_an_unknown_column_is_refused_with_those_there_are(where: str) -> None:
    with pytest.raises(
        UserError, match=r"unknown column '.*'; wanted one of candidate, strategy, uniform, fidelity, si_snr.*, or bits\[SITE\]$"
    ):
        query(TABLE, [parse_condition(where)])
    with pytest.raises(UserError, match="unknown column 'size'"):
        query(TABLE, order=parse_order("size"))


def test_a_search_without_candidates_answers_with_nothing() -> None:
    empty = make_table([], [])
    empty.columns.clear()
    assert len(query(empty, [parse_condition("size_bytes<=5")], parse_order("size_bytes"))) == 0
    assert to_json(empty) == "[]"
    (header,) = to_csv(empty).splitlines()
    assert header == "candidate,strategy,uniform,fidelity,bits[a.weight],bits[b.weight],bits[mask_head.output]"


def test_whole_numbers_are_written_as_such_and_others_never_are() -> None:
    columns = ("utterances", "training_steps", "fits[chip]", "weight_bytes[chip]", "peak_activation_bytes[chip]", "lut[chip]")
    table = make_table([4.0, 8.0], [100.0, 2e15], latency_ms=[3.0, 2.5], **{name: [1.0, math.nan] for name in columns})
    rows = json.loads(to_json(table))
    for name in (*columns, "size_bytes"):
        assert type(rows[0][name]) is int
    assert all(rows[1][name] is None for name in columns)
    assert rows[1]["size_bytes"] == 2 * 10**15
    for name in ("latency_ms", "si_snr_improvement_db"):
        assert type(rows[0][name]) is float
    first, second = csv.DictReader(io.StringIO(to_csv(table)))
    assert (first["size_bytes"], first["utterances"], second["size_bytes"]) == ("100", "1", "2000000000000000")
    shown = cells(front_columns(table, columns))
    assert "2,000,000,000,000,000" in shown
    assert not any("e+" in cell for cell in shown)


def test_json_is_exact_and_says_null_where_csv_leaves_a_gap() -> None:
    rows = json.loads(to_json(TABLE))
    lines = list(csv.DictReader(io.StringIO(to_csv(TABLE))))
    assert tuple(rows[0]) == tuple(lines[0]) == column_names(TABLE)
    assert (rows[1][LATENCY], lines[1][LATENCY]) == (None, "")
    assert rows[0]["uniform"] is True
    for form in (rows, lines):
        assert [float(row["drop_db"]) for row in form] == TABLE.columns["drop_db"].tolist()
        assert [int(row["candidate"]) for row in form] == [1, 2, 3, 4]
        assert {row["fidelity"] for row in form} == {"post-training"}
        assert [[int(row[f"bits[{site}]"]) for site in TABLE.sites] for row in form] == TABLE.widths.tolist()


def test_the_terminal_shows_what_a_candidate_is_chosen_by() -> None:
    columns = front_columns(TABLE)
    assert [column.name for column in columns] == ["candidate", "strategy", QUALITY, "drop_db", "size_bytes"]
    assert table_width(columns) <= 80


def test_the_terminal_shows_every_objective_before_what_is_needed_less() -> None:
    costs = ("latency_ms[systolic-weight-stationary]", "energy_uj[systolic-weight-stationary]", "size_bytes")
    table = make_table([1.0], [2e12], **{name: [1e6] for name in costs if name != "size_bytes"})
    columns = front_columns(replace(table, objectives=objectives_of([QUALITY, *costs])))
    assert {QUALITY, "candidate", *costs} <= {column.name for column in columns}
    assert table_width(columns) <= 80


def test_the_terminal_shows_the_columns_that_conditions_name_in_any_case() -> None:
    others = [f"weight_bytes[chip-{number}]" for number in range(12)]
    table = make_table([1.0], [2.0], **{name: [77.0] for name in others})
    assert not {column.name for column in front_columns(table)} & set(others)
    columns = front_columns(table, others)
    assert set(others) < {column.name for column in columns}
    assert cells(columns).count("77") == 12
    with pytest.raises(UserError, match="unknown column"):
        front_columns(table, ["weight_bytes[other]"])


def test_the_terminal_shows_the_columns_asked_for_and_no_others() -> None:
    asked = "size_bytes,candidate,si_snr_improvement_db," + bits_column(TABLE.sites[0])
    assert [column.name for column in front_columns(TABLE, asked=asked)] == asked.split(",")
    assert {column.name for column in front_columns(TABLE, asked="all")} == set(column_names(TABLE)) - {
        bits_column(site) for site in TABLE.sites
    }
    with pytest.raises(UserError, match="unknown column 'colour'; wanted one of candidate, "):
        front_columns(TABLE, asked="candidate,colour")


# Tables of candidates that leave out parts of the network


@pytest.fixture
def partly(tmp_path: Path) -> CandidateTable:
    write_partly(tmp_path)
    return read_candidates(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kept[block.kept]=0", [4, 2]),
        ("kept[b.channels]<8", [3]),
        ("kept[c.channels]=3", [4, 3]),
        ("blocks_left_out>=1", [4, 2]),
        ("channels_kept<0.9", [4, 3]),
        ("bits[b.weight]=0", [4, 2]),
        ("bits[b.weight]>0", [3, 1]),
    ],
)
def test_conditions_on_what_is_kept(partly: CandidateTable, text: str, expected: list[int]) -> None:
    assert query(partly, [parse_condition(text)], only_front=False).candidate.tolist() == expected


def test_every_form_says_what_is_kept(partly: CandidateTable) -> None:
    names = column_names(partly)
    assert names[-6:] == ("kept[block.kept]", "kept[b.channels]", "kept[c.channels]", *map(bits_column, partly.sites))
    rows, lines = json.loads(to_json(partly)), list(csv.DictReader(io.StringIO(to_csv(partly))))
    assert tuple(rows[0]) == tuple(lines[0]) == names
    for form in (rows, lines):
        assert [[int(row[f"kept[{name}]"]) for name, _ in partly.options] for row in form] == partly.kept.tolist()
        assert [float(row["blocks_left_out"]) for row in form] == [0, 1, 0, 1]
        assert [float(row["channels_kept"]) for row in form] == [1.0, 1.0, 0.5, 0.875]
        assert [int(row["bits[b.weight]"]) for row in form] == [4, 0, 2, 0]


def test_the_number_of_blocks_is_written_as_a_whole_number(partly: CandidateTable) -> None:
    assert [type(row["blocks_left_out"]) for row in json.loads(to_json(partly))] == [int] * 4
    assert [row["blocks_left_out"] for row in csv.DictReader(io.StringIO(to_csv(partly)))] == ["0", "1", "0", "1"]


def test_sorting_by_what_is_kept(partly: CandidateTable) -> None:
    order = parse_order("kept[b.channels]")
    assert query(partly, order=order, only_front=False).candidate.tolist() == [3, 1, 2, 4]


def test_an_unknown_column_is_refused_with_what_may_be_kept(partly: CandidateTable) -> None:
    with pytest.raises(UserError, match=r"unknown column 'kept\[d\]'; .*blocks_left_out.*, or bits\[SITE\] or kept\[OPTION\]$"):
        query(partly, [parse_condition("kept[d]=0")])


def test_the_terminal_shows_how_much_is_left_out(partly: CandidateTable) -> None:
    columns = {column.name: column for column in front_columns(partly)}
    assert {"blocks_left_out", "channels_kept"} <= columns.keys()
    assert not any(name.startswith("kept[") for name in columns)
    assert "kept[b.channels]" in {column.name for column in front_columns(partly, ["kept[b.channels]"])}
    assert table_width(list(columns.values())) <= 80
