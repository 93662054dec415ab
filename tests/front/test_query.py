import csv
import io
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hwsearch.errors import UserError
from hwsearch.front.query import (
    Condition,
    Order,
    column_names,
    parse_condition,
    parse_order,
    query,
    to_csv,
    to_json,
    to_table,
)
from tests.front.tables import make_table

LATENCY = "latency_ms[ethos-u55-128]"

# By quality and size: 1 is small and poor, 2 better, 3 dominated by 2, 4 the best and largest.
TABLE = make_table(
    [4.0, 8.0, 7.0, 10.0],
    [100.0, 200.0, 300.0, 400.0],
    **{LATENCY: [9.0, math.nan, 5.0, 7.0], "drop_db": [8.0, 4.0, 5.0, 0.1 + 0.2]},
)


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
    ],
)
def test_conditions_are_read(text: str, condition: Condition) -> None:
    assert parse_condition(text) == condition


@pytest.mark.parametrize(
    "text",
    [
        "",
        "size_bytes",
        "size_bytes=5",
        "<=5",
        "size_bytes<=",
        "a<=b<=c",
        "size_bytes<=5 and x",
        "a <= 5; b",
        "a!=5",
    ],
)
def test_malformed_conditions_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="malformed; wanted COLUMN<=NUMBER"):
        parse_condition(text)


@pytest.mark.parametrize("text", ["size_bytes<=many", "size_bytes<nan", "size_bytes<__import__('os')"])
def test_a_column_is_compared_with_a_number_only(text: str) -> None:
    with pytest.raises(UserError, match="wanted a number"):
        parse_condition(text)


def test_names_are_equal_or_not() -> None:
    with pytest.raises(UserError, match="wanted strategy==NAME"):
        parse_condition("strategy<=nsga2")


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
    with pytest.raises(UserError, match=r"unknown column '.*'; wanted one of candidate, strategy, uniform, si_snr"):
        query(TABLE, [parse_condition(where)])
    with pytest.raises(UserError, match="unknown column 'size'"):
        query(TABLE, order=parse_order("size"))


def test_a_search_without_candidates_answers_with_nothing() -> None:
    empty = make_table([], [])
    empty.columns.clear()
    assert len(query(empty, [parse_condition("size_bytes<=5")], parse_order("size_bytes"))) == 0
    assert to_json(empty) == "[]"


def test_json_is_exact_and_says_null() -> None:
    rows = json.loads(to_json(TABLE))
    assert tuple(rows[0]) == column_names(TABLE)
    assert rows[1][LATENCY] is None
    assert rows[0]["uniform"] is True
    assert [row["drop_db"] for row in rows] == TABLE.columns["drop_db"].tolist()


def test_csv_is_exact_and_leaves_a_gap() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(TABLE))))
    assert rows[1][LATENCY] == ""
    assert [float(row["drop_db"]) for row in rows] == TABLE.columns["drop_db"].tolist()
    assert [row["candidate"] for row in rows] == ["1", "2", "3", "4"]


def test_the_terminal_shows_targets_by_name() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(to_table(TABLE))
    shown = console.export_text()
    assert all(part in shown for part in LATENCY.replace("[", " [").split())
    assert "0.300" in shown


def test_the_terminal_shows_other_columns_on_request() -> None:
    table = make_table([1.0], [2.0], **{"weight_bytes[chip]": [77.0]})
    headers = [column.header for column in to_table(table).columns]
    assert "size_bytes" in headers
    assert not any("weight_bytes" in str(header) for header in headers)
    assert any("weight_bytes" in str(column.header) for column in to_table(table, ["weight_bytes[chip]"]).columns)
    with pytest.raises(UserError, match="unknown column"):
        to_table(table, ["weight_bytes[other]"])
