import io
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console
from rich.live import Live

from hwsearch.experiment import Fidelity
from hwsearch.files.locks import LockHolder
from hwsearch.results.status import SearchStatus
from hwsearch.view import status as status_display
from hwsearch.view.status import LivePanel, live_panel, panel, sparkline
from hwsearch.view.terminal import duration
from hwsearch.workspace import Workspace
from tests.results.tables import START, asked, failed, scored
from tests.results.test_status import tally
from tests.search.synthetic import make_experiment, search


def rendered(status: SearchStatus, in_flight: dict[Fidelity, int] | None = None) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(panel(status, in_flight))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_sparkline_goes_from_the_least_to_the_largest() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([3.0, 3.0]) == "██"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (273_600, "3 d 4 h")]
)
def test_durations_are_said_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_panel_shows_what_there_is(tmp_path: Path) -> None:
    events = [
        *(asked(number, 0) for number in range(6)),
        scored(0, 1, quality=9.0),
        scored(1, 2, 4.0, 50.0),
        scored(2, 3, 8.0, 80.0),
        failed(3, 4, "[red]no sound[/red]"),
    ]
    driver = LockHolder("4711", START)
    text = rendered(tally(make_experiment(20), *events).status(tmp_path, driver, START))
    assert "driver: process 4711, since 2030-01-01 00:00:00 UTC" in text
    assert [word for word in next(line for line in text.splitlines() if "post-training  " in line).split() if word.isdigit()] == [
        "2",
        "20",
        "1",
        "2",
    ]
    assert "[red]no sound[/red]" in text, "reasons are no markup"
    assert re.search(r"best quality: candidate 2 at 'post-training' +│\n│   si_snr_improvement_db 8.000, size_bytes 80 ", text)
    assert "hypervolume" in text
    assert "a:1" in text
    assert f"record: {tmp_path}" in text.replace("│\n│ ", "")


def test_promotions_are_at_most_so_many_until_the_front_is_known_and_take_time_of_their_own(tmp_path: Path) -> None:
    """Seeds are known before they are scored: 6 uniform ones and 5 that end at 8 bits."""
    rungs = {"validation": 4, "validation_mixtures": 2, "promotions": [{"fidelity": "post-training", "keep": 5}]}
    subset = Fidelity.SUBSET
    events = [asked(0, 0), scored(0, 0, fidelity=subset), *(asked(number, 0) for number in range(1, 41))]
    events += [scored(number, number, fidelity=subset) for number in range(1, 21)]
    driver = LockHolder("1", START)
    status = tally(make_experiment(40, **rungs), *events).status(tmp_path, driver, START + timedelta(seconds=20))
    assert (status.rungs[1].wanted, status.rungs[1].final, status.remaining_seconds) == (16, False, 20.0)
    text = rendered(status)
    assert "20 s left at 'post-training-subset', then up to 16 at 'post-training', in time of their own" in text
    assert re.search(r"post-training +0 +up to 16 ", text)
    events += [scored(number, number, fidelity=subset) for number in range(21, 41)]
    text = rendered(tally(make_experiment(40, **rungs), *events).status(tmp_path, driver, START + timedelta(seconds=40)))
    assert re.search(r"post-training +0 +5 ", text)
    assert "left" not in text.replace("left unfinished", "")


def test_hours_that_end_before_the_rung_are_named(tmp_path: Path) -> None:
    events = [asked(0, 0), scored(0, 10), asked(1, 10), scored(1, 20)]
    status = tally(make_experiment(20_000, hours=2.0), *events).status(
        tmp_path, LockHolder("1", START), START + timedelta(seconds=20)
    )
    assert "1 h 59 min left of search.hours" in rendered(status)


def test_nothing_scored_is_shown_as_that(tmp_path: Path) -> None:
    text = rendered(tally(make_experiment(20)).status(tmp_path, None, START))
    assert "no driver is running" in text
    assert "nothing is scored yet" in text


def test_the_live_panel_ends_as_the_record_has_it_also_after_a_resume(tmp_path: Path) -> None:
    rungs = {"validation": 4, "validation_mixtures": 2, "promotions": [{"fidelity": "post-training", "keep": 3}]}
    workspace = Workspace(tmp_path, make_experiment(20, **rungs))
    workspace.describe()
    for trials in (8, 20):
        experiment = make_experiment(trials, **rungs)
        stream = io.StringIO()
        with Live(console=Console(file=stream, force_terminal=True, width=160), auto_refresh=False) as live:
            shown = LivePanel(Workspace(tmp_path, experiment), live)
            search(workspace.folder, experiment, progress=shown.show)
        last = stream.getvalue().split("search of synthetic")[-1]
        assert f"{Fidelity.SUBSET.value}  " in last
        line = next(line for line in last.splitlines() if line.startswith("│ post-training-subset"))
        assert line.split()[2:6] == [str(trials), str(trials), "0", "│"]
        assert "this process" in last


def test_the_last_state_of_the_panel_stays_where_a_budget_ends_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came within a moment of the last drawing."""
    stream = io.StringIO()
    monkeypatch.setattr(status_display, "console", Console(file=stream, force_terminal=True, width=160))
    monkeypatch.setattr(status_display, "LIVE_SECONDS", 3600.0)
    experiment = make_experiment(60, stall_candidates=10, stall_growth=0.05)
    workspace = Workspace(tmp_path, experiment)
    workspace.describe()
    with live_panel(workspace) as shown:
        scored = search(workspace.folder, experiment, progress=shown.show).scored
    last = stream.getvalue().split("search of synthetic")[-1]
    line = next(line for line in last.splitlines() if line.startswith("│ post-training"))
    assert line.split()[2:4] == [str(scored), "60"]
    assert scored < 60


def test_a_panel_says_how_many_the_driver_has_in_flight(tmp_path: Path) -> None:
    status = tally(make_experiment(20), asked(0, 0), asked(1, 0), scored(0, 1), scored(1, 2)).status(
        tmp_path, LockHolder("1", START), datetime(2030, 1, 2, tzinfo=UTC)
    )
    line = next(line for line in rendered(status, {Fidelity.POST_TRAINING: 7}).splitlines() if "post-training " in line)
    assert line.split()[2:6] == ["1", "20", "0", "7"]
