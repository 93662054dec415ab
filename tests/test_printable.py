"""Control characters from files: shown as escapes wherever they are printed, and never sent to a terminal."""

import io
import json
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.live import Live
from rich.progress import Progress
from rich.table import Table

from hwsearch.printable import printable, shortened
from hwsearch.search.driver_account import DRIVERS_FILE
from hwsearch.search.log import LOG_FILE, search_log
from hwsearch.search.record import RECORD_FILE
from hwsearch.view.status import panel
from hwsearch.view.terminal import SafeConsole
from hwsearch.workspace import Workspace
from tests.results.tables import START, asked, failed, scored
from tests.results.test_status import tally
from tests.sealed import edit_lines
from tests.search.synthetic import make_experiment, search
from tests.tiny import hwsearch, refusal, write_tiny

EVIL = "\x1b]0;owned\x07\x1b[31m\x9b2J\r\u202e"
"""Renames the window, colours, clears the screen, goes to the start of the line, turns the direction of reading."""
OWN_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""Those that Rich sends by itself, of colours and of the cursor."""


def obeyed(text: str) -> set[str]:
    """Characters that a terminal would obey, newlines aside."""
    return {
        sign for sign in text if (unicodedata.category(sign) in {"Cc", "Zl", "Zp"} and sign != "\n") or sign in "\u202e\u2066"
    }


@given(st.text(alphabet=st.characters(), max_size=30))
def test_nothing_that_a_terminal_obeys_is_left_and_nothing_else_is_touched(text: str) -> None:
    shown = printable(text)
    assert not obeyed(shown)
    assert "\n" not in shown
    shown.encode()
    if text.isprintable():
        assert shown == text


def test_what_is_kept_stays() -> None:
    assert printable("a\n\x1b[1mb\x7f\udcff", keep="\n") == "a\n\\x1b[1mb\\x7f\\udcff"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder whose record and account of drivers hold control characters wherever a text may stand."""
    experiment = make_experiment(12)
    workspace = Workspace(tmp_path, experiment)
    workspace.describe()
    search(workspace.folder, experiment)

    def spoil(lines: list[bytes]) -> list[bytes]:
        entries = [json.loads(line) for line in lines]
        last = entries[-1]
        kept = ("candidate", "strategy", "fidelity", "seconds", "worker", "attempts", "time")
        entries[-1] = {"event": "failed", "reason": EVIL, **{name: last[name] for name in kept}}
        for entry in entries:
            entry.update({name: EVIL for name in ("name", "strategy", "worker", "run") if name in entry})
            if "costs" in entry:
                entry["costs"][f"latency_ms[{EVIL}]"] = 1.0
        return [json.dumps(entry).encode() for entry in entries]

    edit_lines(workspace.folder / RECORD_FILE, spoil)
    began = {"event": "began", "process": 1, "host": EVIL, "time": "2030-01-01T00:00:00Z"}
    ended = {"event": "ended", "how": "error", "reason": EVIL, "time": "2030-01-01T00:00:01Z"}
    (workspace.folder / DRIVERS_FILE).write_text(f"{json.dumps(began)}\n{json.dumps(ended)}\n")
    return workspace.folder


@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("status", "--format", "json"),
        ("pareto",),
        ("pareto", "--all"),
        ("pareto", "--format", "csv"),
        ("pareto", "--format", "json"),
    ],
)
def test_a_record_commands_no_terminal(folder: Path, command: tuple[str, ...]) -> None:
    name, *options = command
    answer = hwsearch(name, folder, *options)
    assert answer.code == 0, answer.stderr
    assert not obeyed(answer.stdout + answer.stderr)
    assert re.search(r"\\(x|u00)1b", answer.stdout), "it is shown"


def test_an_error_that_quotes_a_file_commands_no_terminal_and_is_one_line(folder: Path, tmp_path: Path) -> None:
    line = refusal(hwsearch("export", folder, "--candidate", "12", "--output", tmp_path / "out"))
    assert "candidate 12 failed (\\x1b]0;owned\\x07" in line
    (folder / "experiment.json").write_text(json.dumps({"name": EVIL, f"{EVIL}\n": 1}))
    assert not obeyed(refusal(hwsearch("status", folder)))
    (tmp_path / "evil.toml").write_text(f'name = "{json.dumps(EVIL)[1:-1]}"\n')
    assert not obeyed(refusal(hwsearch("run", tmp_path / "evil.toml")))
    assert not obeyed(refusal(hwsearch("run", tmp_path / "no\x1b[31m\nsuch.toml")))
    assert not obeyed(refusal(hwsearch("status", f"--{EVIL}")))


@given(st.text(max_size=200), st.integers(20, 150))
def test_a_long_text_is_cut_in_its_middle_to_the_length_wanted(text: str, most: int) -> None:
    cut = [text[:before] + " ... " + text[before + 5 + len(text) - most :] for before in range(1, most - 5)]
    assert shortened(text, most) in (cut if len(text) > most else [text])


def test_an_error_that_quotes_a_long_name_says_at_its_end_what_is_wanted(tmp_path: Path) -> None:
    write_tiny(tmp_path / "long.toml", ("seed = 3", f"{'k' * 10_000} = 3"))
    said = refusal(hwsearch("run", tmp_path / "long.toml", "--dry-run"))
    assert len(said) == 1000
    assert said.endswith("lists the keys")


def test_a_live_panel_sends_no_codes_but_its_own(tmp_path: Path) -> None:
    events = [asked(0, 0), asked(1, 0), asked(2, 0), scored(0, 1), scored(1, 2, worker=EVIL, strategy=EVIL), failed(2, 3, EVIL)]
    status = tally(make_experiment(20), *events).status(tmp_path, None, START)
    console = SafeConsole(file=io.StringIO(), width=120, force_terminal=True)
    with Live(panel(status), console=console, auto_refresh=False) as live:
        live.update(panel(status), refresh=True)
    with Progress(console=console) as progress:
        progress.add_task(EVIL, total=1)
    table = Table(EVIL)
    table.add_row(EVIL)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    sent = console.file.getvalue()
    assert "\\x1b]0;owned" in sent
    own = OWN_CODES.sub("", sent)
    assert "\x1b[31m" not in sent
    assert obeyed(own) <= {"\r"}, "which goes to the start of a line that is drawn anew"


def test_the_log_holds_no_control_characters(tmp_path: Path) -> None:
    with search_log(tmp_path) as log:
        log(f"candidate 1 ({EVIL}) failed")
    assert not obeyed((tmp_path / LOG_FILE).read_text())
