"""A run folder that holds nonsense behind good seals: every look at it succeeds or ends in one line, never in a traceback."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from hwsearch.errors import UserError
from hwsearch.files.seals import seal_lines, unseal_lines
from hwsearch.results.candidates import read_candidates
from hwsearch.results.query import query, to_csv
from hwsearch.results.query import to_json as table_to_json
from hwsearch.results.status import read_status, to_json
from hwsearch.search.driver_account import DRIVERS_FILE, Step, driver_account
from hwsearch.search.record import RECORD_FILE
from hwsearch.view.candidates import front_columns
from hwsearch.view.status import panel
from hwsearch.view.tables import to_rich
from hwsearch.workflow.choose import choose
from hwsearch.workspace import Workspace
from tests.search.synthetic import make_experiment, search

TEXTS = [
    "",
    "yesterday",
    "2030-01-01T00:00:00",
    "1970-01-01T00:00:00+00:00",
    "8999-12-31T23:59:59-23:59",
    "0001-01-01T00:00:00+23:59",
]
NUMBERS = [0, -1, 1, 2**31, 2**63, 10**30, 10**400, -0.5, 0.0, 5e-324, 1e15, 1e18, 1e300, float("nan"), float("inf"), True]
VALUES = st.one_of(
    st.sampled_from(TEXTS), st.sampled_from(NUMBERS), st.none(), st.just([]), st.just({}), st.just([[[]]]), st.text()
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    experiment = make_experiment(12, validation=2, validation_mixtures=1, promotions=[{"fidelity": "post-training", "keep": 2}])
    workspace = Workspace(tmp_path_factory.mktemp("runs"), experiment)
    workspace.describe()
    with driver_account(workspace.folder) as account:
        account.step(Step.CANDIDATES, 1, 2)
        search(workspace.folder, experiment)
    return workspace.folder


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value within another."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


def look(folder: Path) -> str:
    """Everything that is shown of a run folder; the refusal, where it is refused."""
    try:
        status = read_status(folder)
        Console(file=io.StringIO(), width=160).print(panel(status))
        json.dumps(to_json(status), allow_nan=False)
        table = read_candidates(folder)
        json.loads(table_to_json(table), parse_constant=pytest.fail)
        to_csv(table), to_rich(front_columns(query(table)))
        choose(table, 0.5, {})
    except UserError as refused:
        return str(refused)
    return ""


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_value_of_any_kind_in_any_place(whole: Path, tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / whole.name
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    name = data.draw(st.sampled_from([RECORD_FILE, RECORD_FILE, DRIVERS_FILE]))
    lines = (whole / name).read_bytes().splitlines()
    entries = list(unseal_lines(lines, whole / name, "mend the test")) if name == RECORD_FILE else lines
    row = data.draw(st.integers(0, len(entries) - 1))
    content = json.loads(entries[row])
    place = data.draw(st.sampled_from(places(content)[1:]))
    text = json.dumps(changed(content, place, data.draw(VALUES)), separators=(",", ":")).encode()
    if data.draw(st.booleans()):
        text = text[:-1] + b"," + text[1:]  # every key twice
    entries[row] = text
    written = seal_lines(entries) if name == RECORD_FILE else entries
    (folder / name).write_bytes(b"".join(line + b"\n" for line in written))
    assert "\n" not in look(folder)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_bytes_of_any_kind_in_any_place(whole: Path, tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / whole.name
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    name = data.draw(st.sampled_from([RECORD_FILE, DRIVERS_FILE]))
    content = (whole / name).read_bytes()
    begin = data.draw(st.integers(0, len(content) - 1))
    end = data.draw(st.integers(begin, min(begin + 9, len(content))))
    piece = data.draw(st.one_of(st.binary(max_size=9), st.sampled_from([b"\0", b"\xff\xfe", b"\n", b"[" * 5000, b"9" * 5000])))
    (folder / name).write_bytes(content[:begin] + piece + content[end:])
    assert "\n" not in look(folder)
