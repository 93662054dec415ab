"""The status of hand-made records, and of a search that runs."""

import json
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from hwsearch.errors import UserError
from hwsearch.experiment import Experiment, Fidelity
from hwsearch.files.locks import LockHolder
from hwsearch.results.status import (
    RECENT_LEAST,
    RECENT_SECONDS,
    RungStatus,
    Tally,
    quarters,
    read_status,
    recent_rate,
    remaining_seconds,
    to_json,
)
from hwsearch.search.driver_account import Ended, Session
from hwsearch.search.objectives import Direction
from hwsearch.search.pareto import hypervolume
from hwsearch.search.progress import How
from hwsearch.search.record import LOCK_FILE, RECORD_FILE, Event, Record, lock_holder
from hwsearch.workspace import Workspace
from tests.results.tables import FIRST, START, asked, failed, header, scored
from tests.search.synthetic import make_experiment, space_of
from tests.tiny import snapshot

ROOT = Path(__file__).parents[2]


def tally(experiment: Experiment, *events: Event) -> Tally:
    found = Tally(header().model_copy(update={"widths": dict(space_of(experiment).widths)}), experiment)
    for event in events:
        found.add(event)
    return found


def test_candidates_are_counted_by_what_became_of_them(tmp_path: Path) -> None:
    events = [
        *(asked(number, 0) for number in range(8)),
        scored(0, 1, quality=9.0),
        scored(1, 2, worker="a:1", took=2.0),
        failed(2, 3, "its worker died 3 times; the last time: ActorDiedError: pid 4711", worker=""),
        scored(3, 4, worker="b:2", took=4.0),
        failed(4, 5, "its worker died 3 times; the last time: ActorDiedError: pid 99", worker=""),
        failed(5, 6, "no sound", worker="b:2", took=1.0),
    ]
    status = tally(make_experiment(20), *events).status(tmp_path, None, START + timedelta(seconds=60))
    (rung,) = status.rungs
    assert (rung.scored, rung.failed, rung.in_flight, rung.wanted) == (2, 3, 2, 20)
    assert [(reason.reason, reason.count) for reason in status.reasons] == [
        ("its worker died 3 times; the last time: ActorDiedError: pid 99", 2),
        ("no sound", 1),
    ]
    assert [(worker.worker, worker.finished, worker.mean_seconds) for worker in status.workers] == [
        ("b:2", 2, 2.5),
        ("a:1", 2, 2.0),
    ]
    assert status.workers[0].last_seen == START + timedelta(seconds=6)
    assert status.per_second == status.recent_per_second == pytest.approx(1.0)
    assert status.remaining_seconds == pytest.approx(18.0)


def test_the_curve_is_the_hypervolume_of_what_was_scored_so_far_within_the_limits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = np.stack([rng.uniform(0, 10, 30), rng.uniform(50, 200, 30)], axis=1)
    events = [*(asked(number, number) for number in range(31)), scored(0, 1)]
    events += [scored(number, number + 1.0, quality, size) for number, (quality, size) in enumerate(values.tolist(), start=1)]
    experiment = make_experiment(30, limits={"size_bytes": 150.0})
    (rung,) = tally(experiment, *events).status(tmp_path, None, START).rungs
    fitting = values[values[:, 1] <= 150.0]
    reference = [fitting[:, 0].min(), fitting[:, 1].max()]
    assert [point.candidates for point in rung.curve] == list(range(1, 31))
    for point in rung.curve:
        so_far = values[: point.candidates]
        wanted = hypervolume(so_far[so_far[:, 1] <= 150.0], [Direction.MAXIMIZE, Direction.MINIMIZE], reference)
        assert point.hypervolume == pytest.approx(wanted)
        assert point.seconds == point.candidates + 1


def test_long_curves_are_thinned_and_hold_the_quarters(tmp_path: Path) -> None:
    events = [*(asked(number, 0) for number in range(1001))]
    events += [scored(number, number, quality=number % 17, size=number % 13 + 1.0) for number in range(1001)]
    (rung,) = tally(make_experiment(1000), *events).status(tmp_path, None, START).rungs
    counts = [point.candidates for point in rung.curve]
    assert len(counts) < 50
    assert {250, 500, 750, 1000} <= set(counts)
    assert quarters(1) == (1, 1, 1, 1)


def test_the_best_within_the_limits_are_named_at_the_highest_rung(tmp_path: Path) -> None:
    experiment = make_experiment(5, limits={"size_bytes": 150.0})
    events = [*(asked(number, 0) for number in range(5)), scored(0, 1, quality=9.0)]
    events += [scored(1, 2, 8.9, 200.0), scored(2, 3, 8.8, 150.0), scored(3, 4, 8.6, 120.0), scored(4, 5, 8.0, 90.0)]
    status = tally(experiment, *events).status(tmp_path, None, START)
    assert [(notable.why, notable.candidate) for notable in status.notable] == [
        ("best quality", 2),
        ("smallest that loses at most 0.5 dB", 3),
    ]
    assert status.notable[1].values == {"si_snr_improvement_db": 8.6, "size_bytes": 120.0}


def test_rungs_above_say_how_many_they_want(tmp_path: Path) -> None:
    rungs = {"validation": 4, "validation_mixtures": 2, "promotions": [{"fidelity": "post-training", "keep": 3}]}
    experiment = make_experiment(4, **rungs)
    subset = Fidelity.SUBSET
    events = [*(asked(number, 0) for number in range(5)), scored(0, 1, fidelity=subset)]
    events += [scored(number, 2, strategy="uniform" if number < 2 else "kl", fidelity=subset) for number in range(1, 4)]
    before = tally(experiment, *events).status(tmp_path, None, START)
    assert [(rung.fidelity, rung.scored, rung.in_flight, rung.wanted) for rung in before.rungs] == [
        (subset, 3, 1, 4),
        (FIRST, 0, None, 4),
    ]
    assert before.present is before.rungs[0]
    events += [scored(4, 3, strategy="kl", fidelity=subset), scored(0, 4), scored(1, 5)]
    after = tally(experiment, *events).status(tmp_path, None, START)
    assert (after.rungs[1].scored, after.rungs[1].wanted) == (1, 4)
    assert after.present is after.rungs[1]


def test_the_comparison_without_training_is_the_last_rung(tmp_path: Path) -> None:
    experiment = make_experiment(40, validation=4, validation_mixtures=4, fidelity="shared")
    shared = Fidelity.SHARED
    events = [*(asked(number, 0) for number in range(41)), scored(0, 1, fidelity=shared)]
    events += [scored(number, 2, strategy="uniform" if number < 2 else "kl", fidelity=shared) for number in range(1, 31)]
    before = tally(experiment, *events).status(tmp_path, None, START)
    assert [(rung.fidelity, rung.scored, rung.final) for rung in before.rungs] == [(shared, 30, True), (FIRST, 0, False)]
    assert before.present is before.rungs[0]
    events += [scored(number, 3, strategy="kl", fidelity=shared) for number in range(31, 41)]
    events += [scored(0, 4), scored(1, 5), scored(2, 6)]
    after = tally(experiment, *events).status(tmp_path, None, START)
    assert [(rung.scored, rung.wanted, rung.final) for rung in after.rungs] == [(40, 40, True), (2, 25, True)]
    assert after.present is after.rungs[1]
    assert {notable.fidelity for notable in after.notable} == {shared}


def test_the_recent_rate_is_over_minutes_or_over_the_last_few() -> None:
    fast = [float(second) for second in range(1, 1001)]
    assert recent_rate(fast, 1000, 0) == pytest.approx(1.0)
    quick_at_last = fast[:100] + [800 + index / 4 for index in range(800)]
    assert recent_rate(quick_at_last, 1000, 0) == pytest.approx(800 / RECENT_SECONDS, rel=0.01)
    slow = [3600.0 * hour for hour in range(1, 21)]
    now = 3600.0 * 20
    assert recent_rate(slow, now, 0) == pytest.approx(1 / 3600)
    assert recent_rate(slow, now + 36_000, 0) == pytest.approx(RECENT_LEAST / 20 / 3600), "it stands still"
    assert recent_rate(slow, now, 3600 * 17.5) == pytest.approx(3 / 2.5 / 3600), "the driver before does not count"
    assert recent_rate(slow, now, now) is None


RUNGS = {"validation": 4, "validation_mixtures": 2, "promotions": [{"fidelity": "post-training", "keep": 20}]}


def two_rungs(above: int) -> list[Event]:
    """A subset candidate a second for 100 s, then one a minute on the whole set."""
    events: list[Event] = [*(asked(number, 0) for number in range(101))]
    events += [scored(number, number, fidelity=Fidelity.SUBSET) for number in range(101)]
    return [*events, *(scored(number, 100 + 60 * (number + 1)) for number in range(above))]


def test_the_pace_of_a_rung_is_its_own(tmp_path: Path) -> None:
    driver = LockHolder("1", START - timedelta(hours=10))
    status = tally(make_experiment(100, **RUNGS), *two_rungs(4)).status(tmp_path, driver, START + timedelta(seconds=340))
    assert status.recent_per_second == pytest.approx(1 / 60)
    assert status.remaining_seconds == pytest.approx(17 * 60)


def test_a_rung_whose_trials_were_raised_is_the_present_one_again(tmp_path: Path) -> None:
    events = [*two_rungs(21), asked(101, 7200), asked(102, 7200), scored(101, 7260, fidelity=Fidelity.SUBSET)]
    driver = LockHolder("1", START + timedelta(seconds=7200))
    status = tally(make_experiment(104, **RUNGS), *events).status(tmp_path, driver, START + timedelta(seconds=7260))
    assert status.present.fidelity is Fidelity.SUBSET
    assert status.remaining_seconds == pytest.approx(3 * 60)


def test_nothing_is_left_of_a_rung_above_where_some_failed(tmp_path: Path) -> None:
    events = [*two_rungs(20), failed(20, 1500, "no sound")]
    status = tally(make_experiment(100, **RUNGS), *events).status(tmp_path, None, START + timedelta(seconds=1500))
    assert (status.rungs[1].scored, status.rungs[1].failed, status.remaining_seconds) == (19, 1, 0.0)


def ended(how: How, seconds: float = 0.0) -> Ended:
    return Ended(how=how, reason="as it is", time=START + timedelta(seconds=seconds))


def test_time_left_ends_with_the_hours_of_a_running_driver() -> None:
    rung = RungStatus(FIRST, scored=40, failed=1, in_flight=2, wanted=100, final=True, curve=())
    assert remaining_seconds(rung, 0.1, None, None) == pytest.approx(600)
    assert remaining_seconds(rung, 0.01, 600.0, None) == pytest.approx(600)
    assert remaining_seconds(rung, 0.01, None, ended(How.HOURS)) == pytest.approx(6000)
    assert remaining_seconds(rung, None, None, None) is None
    assert remaining_seconds(RungStatus(FIRST, 100, 0, 0, 100, True, ()), None, 600.0, None) == 0.0


@pytest.mark.parametrize("how", [How.STALLED, How.EXHAUSTED])
def test_no_time_is_left_where_the_same_command_would_stop_at_once(how: How) -> None:
    rung = RungStatus(FIRST, scored=40, failed=1, in_flight=2, wanted=100, final=True, curve=())
    assert remaining_seconds(rung, 0.1, None, ended(how)) == 0.0


def session(began: float, scoring: float, last_seen: float, end: Ended | None = None) -> Session:
    times = [START + timedelta(seconds=seconds) for seconds in (began, last_seen, began + 1, scoring)]
    return Session("1", *times, ended=end)


def test_rates_are_over_the_time_that_drivers_worked(tmp_path: Path) -> None:
    """A candidate a second for 50 s, then half a day of nothing and an hour of sensitivities, then one every two seconds."""
    later = 50_000.0
    events: list[Event] = [asked(number, 0) for number in range(51)]
    events += [scored(number, number + 1, fidelity=FIRST) for number in range(50)]
    events += [asked(number, later) for number in range(51, 101)]
    events += [scored(number, later + 2 * (number - 49)) for number in range(50, 100)]
    first = session(-600, 0, 0, ended(How.INTERRUPTED, 50))
    second = session(later - 4000, later, later)
    found = tally(make_experiment(200), *events)
    for driver, taken in ((None, 1e6), (LockHolder("1", START + timedelta(seconds=later - 9)), later + 100)):
        status = found.status(tmp_path, driver, START + timedelta(seconds=taken), [first, second])
        assert status.per_second == pytest.approx(100 / 150)
        last = status.rungs[0].curve[-1]
        assert (last.candidates, last.seconds) == (99, pytest.approx(150))
    assert status.recent_per_second == pytest.approx(0.5), "of the driver that runs"
    assert status.remaining_seconds == pytest.approx(101 / 0.5)
    assert status.driver is not None
    assert status.driver.since == second.began
    status = found.status(tmp_path, None, START + timedelta(seconds=1e6), [first, second])
    assert status.recent_per_second == pytest.approx(100 / 150)
    assert status.last_end is not None
    assert (status.last_end.how, status.last_end.time) == (How.KILLED, START + timedelta(seconds=later + 100))


def test_what_a_killed_driver_did_last_ends_its_time(tmp_path: Path) -> None:
    events = [asked(0, 10), scored(0, 20), asked(1, 20), scored(1, 30), asked(2, 31), scored(2, 1010)]
    sessions = [session(0, 10, 10), session(900, 1000, 1000, ended(How.FINISHED, 1011))]
    status = tally(make_experiment(5), *events).status(tmp_path, None, START, sessions)
    assert status.per_second == pytest.approx(3 / (21 + 10))


def test_hours_count_from_where_the_search_began_and_not_from_its_record(tmp_path: Path) -> None:
    events = [asked(0, 3000), scored(0, 3010), asked(1, 3010), scored(1, 3020)]
    driver = LockHolder("1", START + timedelta(seconds=3000))
    status = tally(make_experiment(5000, hours=1.0), *events).status(
        tmp_path, driver, START + timedelta(seconds=3020), [session(99, 3000, 3000)]
    )
    assert status.remaining_seconds == status.hours_left_seconds == pytest.approx(3600 - 2920)


def test_a_driver_killed_before_is_not_the_one_that_runs(tmp_path: Path) -> None:
    driver = LockHolder("2", START + timedelta(seconds=500))
    status = tally(make_experiment(5)).status(tmp_path, driver, START, [session(0, 10, 10)])
    assert (status.driver, status.step, status.last_end) == (driver, None, None)


def test_nothing_scored_is_no_mistake(tmp_path: Path) -> None:
    status = tally(make_experiment(5)).status(tmp_path, None, START)
    assert (status.per_second, status.recent_per_second, status.remaining_seconds, status.notable) == (None, None, None, ())
    status = tally(make_experiment(5), asked(0, 0)).status(tmp_path, None, START)
    assert status.rungs[0].in_flight == 1


def run_folder(runs: Path, events: list[Event]) -> Path:
    experiment = make_experiment(5)
    workspace = Workspace(runs, experiment)
    workspace.describe()
    with Record(workspace.folder, header()) as record:
        for event in events:
            record.append(event)
    return workspace.folder


def test_a_torn_last_line_is_left_out_and_nothing_changes(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, [asked(0, 0), asked(1, 0), scored(0, 1), scored(1, 2)])
    with (folder / RECORD_FILE).open("ab") as stream:
        stream.write(b'{"event":"scored","cand')
    before = snapshot(folder)
    status = read_status(folder)
    assert (status.driver, status.rungs[0].scored, status.rungs[0].in_flight) == (None, 1, 0)
    assert snapshot(folder) == before
    content = json.loads(json.dumps(to_json(status), allow_nan=False))
    assert content["rungs"][0]["fidelity"] == "post-training"
    assert content["record"] == str(folder / RECORD_FILE)
    assert content["workers"][0]["last_seen"] == "2030-01-01T00:00:02.000+00:00"


def test_a_folder_without_a_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        read_status(tmp_path)
    workspace = Workspace(tmp_path, make_experiment(5))
    workspace.describe()
    with pytest.raises(UserError, match="wanted the record of a search"):
        read_status(workspace.folder)


def test_the_driver_is_known_while_it_lives_and_not_afterwards(tmp_path: Path) -> None:
    """From another process, which must not turn a driver away however often it looks."""
    workspace = Workspace(tmp_path, make_experiment(40))
    workspace.describe()
    command = [sys.executable, "-m", "tests.search.synthetic", str(workspace.folder), "40", "0.05", "random"]
    before = datetime.now(UTC)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as driver:
        while (holder := lock_holder(workspace.folder)) is None:
            assert driver.poll() is None
            time.sleep(0.005)
        assert holder.process in {str(driver.pid), "unknown"}
        while not (workspace.folder / RECORD_FILE).exists() or not (workspace.folder / RECORD_FILE).stat().st_size:
            time.sleep(0.01)
        status = read_status(workspace.folder)
        assert status.driver is not None
        assert status.driver.process == str(driver.pid)
        assert before - timedelta(seconds=1) <= status.driver.since <= datetime.now(UTC)
        output, _ = driver.communicate()
    assert "done: 40 of 40" in output
    status = read_status(workspace.folder)
    assert (status.driver, status.rungs[0].scored, status.remaining_seconds) == (None, 40, 0.0)
    assert (workspace.folder / LOCK_FILE).is_file()
