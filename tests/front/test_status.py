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
from hwsearch.front.status import (
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
from hwsearch.search.hypervolume import hypervolume
from hwsearch.search.objectives import QUALITY_AND_SIZE, Direction
from hwsearch.search.record import LOCK_FILE, RECORD_FILE, Asked, Event, Failed, Header, LockHolder, Record, Scored, lock_holder
from hwsearch.workspace import Workspace
from tests.search.synthetic import make_experiment
from tests.tiny import snapshot

START = datetime(2030, 1, 1, tzinfo=UTC)
FIRST = Fidelity.POST_TRAINING
ROOT = Path(__file__).parents[2]


def at(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


def header() -> Header:
    return Header(
        name="test",
        experiment="a" * 64,
        provenance={},
        seed=0,
        objectives=QUALITY_AND_SIZE,
        widths={"x.weight": (2, 4)},
        fixed=(),
        versions={},
        time=at(0),
    )


def asked(number: int, seconds: float) -> Asked:
    return Asked(candidate=number, strategy="test", point=(0,) if number else None, state={}, time=at(seconds))


def scored(
    number: int,
    seconds: float,
    quality: float = 5.0,
    size: float = 100.0,
    worker: str = "a:1",
    took: float = 2.0,
    strategy: str = "test",
    fidelity: Fidelity = FIRST,
) -> Scored:
    return Scored(
        candidate=number,
        strategy=strategy,
        seed=0,
        allocation={"x.weight": 2},
        metrics={"si_snr_improvement_db": quality},
        costs={"size_bytes": size},
        fidelity=fidelity,
        seconds=took,
        worker=worker,
        attempts=1,
        time=at(seconds),
    )


def failed(number: int, seconds: float, reason: str, worker: str = "a:1", took: float = 1.0) -> Failed:
    return Failed(
        candidate=number,
        strategy="test",
        fidelity=FIRST,
        reason=reason,
        seconds=took,
        worker=worker,
        attempts=3,
        time=at(seconds),
    )


def tally(experiment: Experiment, *events: Event) -> Tally:
    found = Tally(header(), experiment)
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


def test_the_recent_rate_is_over_minutes_or_over_the_last_few() -> None:
    fast = [START + timedelta(seconds=second) for second in range(1, 1001)]
    now = START + timedelta(seconds=1000)
    assert recent_rate(fast, now, START) == pytest.approx(1.0)
    quick_at_last = fast[:100] + [START + timedelta(seconds=800 + index / 4) for index in range(800)]
    assert recent_rate(quick_at_last, now, START) == pytest.approx(800 / RECENT_SECONDS, rel=0.01)
    slow = [START + timedelta(hours=hour) for hour in range(1, 21)]
    now = START + timedelta(hours=20)
    assert recent_rate(slow, now, START) == pytest.approx(1 / 3600)
    assert recent_rate(slow, now + timedelta(hours=10), START) == pytest.approx(RECENT_LEAST / 20 / 3600), "it stands still"
    assert recent_rate(slow, now, START + timedelta(hours=17.5)) == pytest.approx(3 / 2.5 / 3600), "the pause does not count"
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


def test_time_left_ends_with_the_hours_of_a_running_driver() -> None:
    rung = RungStatus(FIRST, scored=40, failed=1, in_flight=2, wanted=100, curve=())
    driver = LockHolder("1", START)
    now = START + timedelta(minutes=50)
    assert remaining_seconds(rung, 0.1, driver, None, now) == pytest.approx(600)
    assert remaining_seconds(rung, 0.01, driver, 1.0, now) == pytest.approx(600)
    assert remaining_seconds(rung, 0.01, None, 1.0, now) == pytest.approx(6000)
    assert remaining_seconds(rung, None, None, None, now) is None
    assert remaining_seconds(RungStatus(FIRST, 100, 0, 0, 100, ()), None, driver, None, now) == 0.0


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
