"""The shared study on real servers: what it holds, and that nothing in it is lost or doubled whatever is killed or cut."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
import pytest
import redis

from hwsearch.errors import UserError
from hwsearch.search import identity
from hwsearch.search.log import LOG_FILE, events_logged, search_log
from hwsearch.search.record import RECORD_FILE, read_record
from hwsearch.search.studies import shared_study
from hwsearch.search.studies.address import STORAGE_VARIABLE, parse_address
from hwsearch.search.studies.storage import SharedStorage, StorageError, open_storage
from tests.search.studies.expected import RICH, check_attributes, check_trials, finished, load_mirror, scorer
from tests.search.synthetic import make_experiment, search
from tests.servers import Mortal, Wire, everything_stored, fresh_database, load_study, optuna_storage, wait_for

KINDS = ("postgresql", "redis")
ROOT = Path(__file__).parents[3]
WRITES = {"postgresql": (b"INSERT INTO trials", b"COMMIT"), "redis": (b"hsetnx", b"hsetnx")}
"""How a trial is written, and what ends that."""


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest) -> Iterator[str]:
    with fresh_database(request.param) as address:
        yield address


@pytest.fixture(params=KINDS)
def mortal(request: pytest.FixtureRequest) -> Iterator[Mortal]:
    server = Mortal(request.param)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(autouse=True)
def brief_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_study, "FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(shared_study, "LONGEST_PAUSE_SECONDS", 0.5)


def check_study(folder: Path, address: str) -> optuna.Study:
    study = load_study(address)
    check_trials(folder, study)
    return study


def test_every_finished_candidate_is_there_with_all_that_the_record_says(tmp_path: Path, database: str) -> None:
    summary = search(tmp_path, RICH, scorer(fail=9), storage=parse_address(database))
    shown = str(parse_address(database))
    study = check_study(tmp_path, database)
    header, _ = read_record(tmp_path)
    held = shared_study.check_shared_study(parse_address(database), header.name, header.experiment, header)
    assert held == len(study.trials)
    assert summary.shared == f"shared study: all {len(study.trials)} results are in {shown}"
    assert {event.fidelity.value for event in finished(tmp_path)} == {"post-training-subset", "post-training"}
    check_attributes(tmp_path, study)
    check_attributes(tmp_path, load_mirror(tmp_path))
    for theirs, ours in zip(by_key(study), by_key(load_mirror(tmp_path)), strict=True):
        assert (theirs.user_attrs, theirs.params, theirs.distributions) == (ours.user_attrs, ours.params, ours.distributions)
        assert (theirs.values, theirs.datetime_start, theirs.datetime_complete) == (
            ours.values,
            ours.datetime_start,
            ours.datetime_complete,
        )


def by_key(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return sorted(study.trials, key=lambda trial: (trial.user_attrs["candidate"], trial.user_attrs["fidelity"]))


def test_a_search_without_a_shared_study_gets_one_later_and_goes_on_with_it(tmp_path: Path, database: str) -> None:
    address = parse_address(database)
    search(tmp_path, make_experiment(12))
    search(tmp_path, make_experiment(12), storage=address)
    check_study(tmp_path, database)
    search(tmp_path, make_experiment(16))
    search(tmp_path, make_experiment(20), storage=address)
    assert len(check_study(tmp_path, database).trials) == 20


def test_two_searches_share_a_storage(tmp_path: Path, database: str) -> None:
    other = make_experiment(12).model_copy(update={"name": "other"})
    search(tmp_path / "a", make_experiment(12), storage=parse_address(database))
    search(tmp_path / "b", other, storage=parse_address(database))
    check_study(tmp_path / "a", database)
    assert len(load_study(database, "other").trials) == 12


def test_a_study_of_someone_else_is_refused_and_left_alone(tmp_path: Path, database: str) -> None:
    address = parse_address(database)
    search(tmp_path / "mine", make_experiment(12), storage=address)
    begun = read_record(tmp_path / "mine")[0].time
    before = everything_stored(database)
    for experiment, reason in (
        (make_experiment(12, seed=4), "study 'synthetic' belongs to a search of another experiment"),
        (make_experiment(12), f"belongs to the same experiment's search in another run folder, begun {begun}"),
    ):
        for folder in ("theirs", "theirs"):
            with pytest.raises(UserError) as refused:
                search(tmp_path / folder, experiment, storage=address)
            assert reason in str(refused.value)
            assert "\n" not in str(refused.value)
        (tmp_path / "theirs" / RECORD_FILE).unlink()
    assert everything_stored(database) == before
    check_study(tmp_path / "mine", database)


def test_of_two_run_folders_that_begin_at_once_one_gets_the_study(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have found it new before either says that it is theirs, and both begin in the same millisecond."""
    monkeypatch.setattr(identity, "now", lambda: "2030-01-01T00:00:00.000+00:00")
    open_storage(parse_address(database)).close()
    both = threading.Barrier(2, timeout=30)
    claim = SharedStorage.claim

    def late(storage: SharedStorage, *arguments: Any) -> None:
        both.wait()
        claim(storage, *arguments)

    monkeypatch.setattr(SharedStorage, "claim", late)

    def begin(name: str) -> str:
        try:
            return str(search(tmp_path / name, make_experiment(12), storage=parse_address(database)).shared)
        except UserError as refused:
            return str(refused)

    with ThreadPoolExecutor(2) as pool:
        said = dict(zip("ab", pool.map(begin, "ab"), strict=True))
    winner, loser = sorted("ab", key=lambda name: "all 12 results are in" not in said[name])
    assert "all 12 results are in" in said[winner]
    assert "belongs to the same experiment's search in another run folder" in said[loser]
    check_attributes(tmp_path / winner, check_study(tmp_path / winner, database))


def test_several_drivers_at_once_find_an_empty_database() -> None:
    with fresh_database("postgresql") as database, ThreadPoolExecutor(4) as pool:
        for storage in pool.map(open_storage, 4 * [parse_address(database)]):
            storage.close()


def test_trials_that_others_add_are_left_alone(tmp_path: Path, database: str) -> None:
    address = parse_address(database)
    search(tmp_path, make_experiment(12), storage=address)
    for attributes in ({}, {"candidate": "mine", "fidelity": "by hand"}, {"candidate": 3, "fidelity": None}):
        load_study(database).add_trial(optuna.trial.create_trial(values=[1.0, 2.0], user_attrs=attributes))
    summary = search(tmp_path, make_experiment(16), storage=address)
    assert summary.shared is not None
    assert "all 16 results are in" in summary.shared
    assert len(load_study(database).trials) == 16 + 3


@pytest.mark.parametrize("entry", ["garbage", '{"op_code":99,"worker_id":"someone"}', '{"op_code":6}', "7"])
def test_a_journal_that_cannot_be_read_leaves_the_search_whole(
    tmp_path: Path, entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_study, "PATIENCE_SECONDS", 0.5)
    with fresh_database("redis") as database, redis.Redis.from_url(database) as client:

        def write(number: int) -> None:
            if number == 8:
                client.set(f":log:{client.incr(':log_number')}", entry)

        summary = search(tmp_path, make_experiment(20), scorer(hook=write), storage=parse_address(database))
        assert summary.scored == 20
        assert summary.shared is not None
        assert "of 20 results are missing" in summary.shared
        with pytest.raises(UserError, match="storage redis://"):
            shared_study.check_shared_study(parse_address(database), make_experiment(20).name, "", None)


@pytest.mark.parametrize("when", [None, 10])
def test_a_journal_that_someone_emptied_is_written_anew(tmp_path: Path, when: int | None) -> None:
    """Optuna's keys are gone, and those are left that say what was written once."""
    with fresh_database("redis") as database, redis.Redis.from_url(database) as client:

        def empty(number: int | None) -> None:
            if number == when:
                client.delete(*client.scan_iter(":log*"))

        search(tmp_path, make_experiment(12), storage=parse_address(database))
        empty(None)
        search(tmp_path, make_experiment(30), scorer(hook=empty), storage=parse_address(database))
        assert list(client.scan_iter(":hwsearch:*"))
        check_attributes(tmp_path, check_study(tmp_path, database))


def test_a_study_that_optuna_made_is_refused_where_it_holds_trials(tmp_path: Path, database: str) -> None:
    study = optuna.create_study(storage=optuna_storage(database), study_name="synthetic", directions=["maximize", "minimize"])
    study.ask()
    with pytest.raises(UserError, match="study 'synthetic' was made by something else"):
        search(tmp_path, make_experiment(12), storage=parse_address(database))


def test_an_empty_study_with_other_objectives_is_refused(tmp_path: Path, database: str) -> None:
    optuna.create_study(storage=optuna_storage(database), study_name="synthetic", directions=["minimize"])
    with pytest.raises(UserError, match="study 'synthetic' was made by something else"):
        search(tmp_path, make_experiment(12), storage=parse_address(database))
    assert load_study(database).user_attrs == {}


def test_a_study_that_a_killed_driver_had_just_made_is_taken(tmp_path: Path, database: str) -> None:
    optuna.create_study(storage=optuna_storage(database), study_name="synthetic", directions=["maximize", "minimize"])
    search(tmp_path, make_experiment(12), storage=parse_address(database))
    check_study(tmp_path, database)


@pytest.mark.parametrize("lost", [1, 2])
def test_a_trial_whose_answer_was_lost_is_stored_once(tmp_path: Path, database: str, lost: int) -> None:
    """The server has stored it, and the connection breaks before it says so."""
    wire = Wire(database)
    kind = urlsplit(database).scheme

    def hook(number: int) -> None:
        if number in range(3, 3 + 4 * lost, 4):
            wire.swallow_answer(*WRITES[kind])
        elif number in range(6, 6 + 4 * lost, 4):
            wait_for(lambda: wire.swallowed == 1 + (number - 6) // 4)

    summary = search(tmp_path, make_experiment(12), scorer(hook=hook), storage=parse_address(wire.address))
    wire.close()
    assert wire.swallowed == lost
    assert summary.shared is not None
    assert "all 12 results" in summary.shared
    check_study(tmp_path, database)


@pytest.mark.parametrize("kind", KINDS)
def test_an_encrypted_connection_is_made_to_a_server_that_is_trusted_alone(tmp_path: Path, kind: str) -> None:
    server, other = Mortal(kind, encrypted=True), Mortal(kind, encrypted=True)
    try:
        server.start()
        address = parse_address(server.address)
        summary = search(tmp_path, make_experiment(5), storage=address)
        assert summary.shared == f"shared study: all 5 results are in {address}"
        check_study(tmp_path, server.address)
        distrusting = parse_address(server.address.replace(str(server.authority), str(other.authority)))
        with pytest.raises(StorageError, match=r"certificate verify failed"):
            open_storage(distrusting)
    finally:
        server.remove()
        other.remove()


def test_a_server_that_is_killed_and_comes_back_gets_what_it_missed(tmp_path: Path, mortal: Mortal) -> None:
    def hook(number: int) -> None:
        if number in {5, 20}:
            mortal.kill()
        elif number in {15, 21}:
            mortal.start()

    shown: list[str] = []
    with search_log(tmp_path) as log, events_logged(log, shown.append):
        summary = search(tmp_path, make_experiment(30), scorer(hook=hook), storage=parse_address(mortal.address))
    assert summary.scored == 30
    assert summary.shared is not None
    assert "all 30 results" in summary.shared
    if mortal.address.startswith("redis"):  # Optuna's PostgreSQL tries again for seconds before it says anything
        assert "the search goes on, results wait" in shown[0]
        assert "reached again" in shown[-1]
    assert all(line in (tmp_path / LOG_FILE).read_text() for line in shown)
    check_study(tmp_path, mortal.address)


def test_a_server_that_stays_away_leaves_the_search_whole_and_the_same_command_adds_what_is_missing(
    tmp_path: Path, mortal: Mortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = parse_address(mortal.address)
    with monkeypatch.context() as patch:
        patch.setattr(shared_study, "PATIENCE_SECONDS", 1.0)
        summary = search(tmp_path, make_experiment(20), scorer(hook=lambda n: mortal.kill() if n == 8 else None), storage=address)
    assert summary.scored == 20
    assert summary.shared is not None
    assert f"of 20 results are missing in {address}" in summary.shared
    # Away before it was ever reached: after hours of sensitivities that ends no search either.
    with monkeypatch.context() as patch:
        patch.setattr(shared_study, "PATIENCE_SECONDS", 1.0)
        again = search(tmp_path, make_experiment(20), storage=address)
    assert again.shared is not None
    assert again.shared.startswith(f"shared study: 20 of 20 results are missing in {address}")
    with pytest.raises(UserError, match="wanted a server that answers there"):
        shared_study.check_shared_study(address, make_experiment(20).name, "", None)
    mortal.start()
    summary = search(tmp_path, make_experiment(20), storage=address)
    assert summary.shared == f"shared study: all 20 results are in {address}"
    check_study(tmp_path, mortal.address)


def test_a_server_that_says_nothing_any_more_keeps_nobody(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(database)
    with monkeypatch.context() as patch:
        patch.setattr(shared_study, "PATIENCE_SECONDS", 1.0)
        summary = search(
            tmp_path,
            make_experiment(20),
            scorer(hook=lambda n: wire.block() if n == 8 else None),
            storage=parse_address(wire.address),
        )
    wire.close()
    assert summary.scored == 20
    assert summary.shared is not None
    assert "results are missing" in summary.shared
    search(tmp_path, make_experiment(20), storage=parse_address(database))
    check_study(tmp_path, database)


def test_a_study_deleted_while_the_search_runs_is_made_again(tmp_path: Path, database: str) -> None:
    def hook(number: int) -> None:
        if number == 10:
            optuna.delete_study(study_name="synthetic", storage=optuna_storage(database))

    search(tmp_path, make_experiment(20), scorer(hook=hook), storage=parse_address(database))
    check_study(tmp_path, database)


@pytest.mark.parametrize(
    "kills",
    [pytest.param((25, 60), id="twice"), pytest.param((5, 15, 25, 35, 45, 55, 65, 75), id="often", marks=pytest.mark.slow)],
)
def test_a_driver_killed_again_and_again_leaves_every_candidate_once(tmp_path: Path, database: str, kills: Sequence[int]) -> None:
    environment = {**os.environ, STORAGE_VARIABLE: database}
    command = [sys.executable, "-m", "tests.search.synthetic", str(tmp_path), "40", "0.03", "nsga2"]

    def held() -> int:
        record = tmp_path / RECORD_FILE
        return record.read_bytes().count(b"\n") if record.exists() else 0

    for count in kills:
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as driver:
            while held() < count:
                assert driver.poll() is None, driver.stderr.read() if driver.stderr else ""
                time.sleep(0.005)
            driver.send_signal(signal.SIGKILL)
        if optuna_storage(database).get_all_studies():
            trials = load_study(database).trials
            held_now = Counter(trial.user_attrs["candidate"] for trial in trials)
            assert set(held_now) <= {event.candidate for event in finished(tmp_path)}
            assert max(held_now.values(), default=1) == 1
            assert all(trial.state.is_finished() for trial in trials)
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "all 40 results are in" in ended.stdout
    check_study(tmp_path, database)


def test_ctrl_c_while_the_study_is_brought_up_to_date_says_what_is_missing(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = Wire(database)

    def interrupt(study: shared_study.SharedStudy) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shared_study.SharedStudy, "close", interrupt)
    summary = search(
        tmp_path,
        make_experiment(12),
        scorer(hook=lambda n: wire.block() if n == 2 else None),
        storage=parse_address(wire.address),
    )
    wire.close()
    assert summary.scored == 12
    assert summary.shared is not None
    assert "of 12 results are missing" in summary.shared
