"""The shared study in every kind of storage: nothing in it is lost or doubled whatever is killed or cut."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage

from hwsearch.errors import UserError
from hwsearch.search import identity
from hwsearch.search.log import LOG_FILE, events_logged, search_log
from hwsearch.search.record import RECORD_FILE, read_record
from hwsearch.search.studies import publisher, storage
from hwsearch.search.studies.address import STORAGE_VARIABLE, parse_address
from hwsearch.search.studies.published_study import check_study, open_study
from hwsearch.search.studies.publisher import Published, Publisher, publish
from hwsearch.search.studies.storage import open_storage
from tests.search.studies.expected import RICH, check_attributes, check_trials, finished, load_mirror, scorer
from tests.search.synthetic import make_experiment, search
from tests.servers import Mortal, Wire, everything_stored, fresh_database, load_study, optuna_storage, wait_for

ROOT = Path(__file__).parents[3]


@pytest.fixture
def postgres() -> Iterator[str]:
    with fresh_database() as address:
        yield address


@pytest.fixture(params=["postgresql", "journal"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres"))
    return f"{request.param}:///{tmp_path_factory.mktemp('storage') / 'studies'}"


@pytest.fixture
def journal(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"journal:///{tmp_path_factory.mktemp('storage') / 'studies'}"


@pytest.fixture
def mortal() -> Iterator[Mortal]:
    server = Mortal()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(autouse=True)
def brief_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(publisher, "LONGEST_PAUSE_SECONDS", 0.5)


def published(folder: Path, address: str) -> Published:
    return publish(parse_address(address), folder, lambda *_: None)


def verify(folder: Path, address: str) -> optuna.Study:
    study = load_study(address)
    check_trials(folder, study)
    return study


@pytest.mark.parametrize("database", ["postgresql", "sqlite", "journal"], indirect=True)
def test_every_finished_candidate_is_there_with_all_that_the_record_says(tmp_path: Path, database: str) -> None:
    address = parse_address(database)
    assert check_study(address, RICH.name, "", None) is None
    states: set[optuna.trial.TrialState] = set()

    def look(number: int) -> None:
        # Not SQLite, which refuses to be read for as long as it is written to.
        if number % 4 == 0 and "sqlite" not in database and RICH.name in optuna.get_all_study_names(optuna_storage(database)):
            states.update(trial.state for trial in load_study(database).trials)

    summary = search(tmp_path, RICH, scorer(fail=9, hook=look), storage=address)
    assert optuna.trial.TrialState.RUNNING not in states
    study = verify(tmp_path, database)
    header, _ = read_record(tmp_path)
    assert check_study(address, header.name, header.experiment, header) == len(study.trials)
    assert summary.shared == f"shared study: all {len(study.trials)} results are in {address}"
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


def test_a_search_is_published_later_as_often_as_one_likes(tmp_path: Path, database: str) -> None:
    search(tmp_path, make_experiment(12))
    told: list[tuple[int, int]] = []
    address = parse_address(database)
    assert str(publish(address, tmp_path, lambda *done: told.append(done))) == f"shared study: all 12 results are in {address}"
    assert told == [(number, 12) for number in range(1, 13)]
    published(tmp_path, database)
    verify(tmp_path, database)
    search(tmp_path, make_experiment(16))
    search(tmp_path, make_experiment(20), storage=address)
    published(tmp_path, database)
    assert len(verify(tmp_path, database).trials) == 20


def test_two_searches_share_a_storage(tmp_path: Path, journal: str) -> None:
    other = make_experiment(12).model_copy(update={"name": "other"})
    search(tmp_path / "a", make_experiment(12), storage=parse_address(journal))
    search(tmp_path / "b", other, storage=parse_address(journal))
    verify(tmp_path / "a", journal)
    assert len(load_study(journal, "other").trials) == 12


def test_a_study_of_another_search_is_refused_and_left_alone(tmp_path: Path, postgres: str) -> None:
    address = parse_address(postgres)
    search(tmp_path / "mine", make_experiment(12), storage=address)
    begun = read_record(tmp_path / "mine")[0].time
    before = everything_stored(postgres)
    for name, experiment, reason in (
        ("a", make_experiment(12, seed=4), "study 'synthetic' belongs to a search of another experiment"),
        ("b", make_experiment(12), f"belongs to the same experiment's search in another run folder, begun {begun}"),
    ):
        summary = search(tmp_path / name, experiment, storage=address)
        assert summary.scored == 12
        assert summary.shared is not None
        assert "12 of 12 results are missing" in summary.shared
        assert reason in summary.shared
        header, _ = read_record(tmp_path / name)
        for record in (header, None):
            with pytest.raises(UserError) as refused:
                check_study(address, header.name, header.experiment, record)
            assert reason in str(refused.value)
        with pytest.raises(UserError) as refused:
            published(tmp_path / name, postgres)
        assert reason in str(refused.value)
        assert "\n" not in str(refused.value)
    assert everything_stored(postgres) == before
    verify(tmp_path / "mine", postgres)


@pytest.mark.parametrize("left", [False, True])
def test_of_two_run_folders_that_begin_at_once_one_gets_the_study(
    tmp_path: Path, postgres: str, monkeypatch: pytest.MonkeyPatch, left: bool
) -> None:
    """Both find that there is none, or one that a killed driver left, before either makes it; both begin in one millisecond."""
    monkeypatch.setattr(identity, "now", lambda: "2030-01-01T00:00:00.000+00:00")
    if left:
        optuna.create_study(storage=optuna_storage(postgres), study_name="synthetic", directions=["maximize", "minimize"])
    else:
        open_storage(parse_address(postgres))
    both, waited = threading.Barrier(2, timeout=30), set[int]()
    name = "delete_study" if left else "create_new_study"
    original: Callable[..., Any] = getattr(RDBStorage, name)

    def late(*arguments: Any) -> Any:
        if threading.get_ident() not in waited:
            waited.add(threading.get_ident())
            both.wait()
        return original(*arguments)

    monkeypatch.setattr(RDBStorage, name, late)
    with ThreadPoolExecutor(2) as pool:
        searches = pool.map(
            lambda name: search(tmp_path / name, make_experiment(12), storage=parse_address(postgres)).shared, "ab"
        )
        said = {name: str(shared) for name, shared in zip("ab", searches, strict=True)}
    winner, loser = sorted("ab", key=lambda name: "all 12 results are in" not in said[name])
    assert "all 12 results are in" in said[winner]
    assert "belongs to the same experiment's search in another run folder" in said[loser]
    check_attributes(tmp_path / winner, verify(tmp_path / winner, postgres))


def test_several_drivers_at_once_find_an_empty_database(postgres: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        for opened in pool.map(open_storage, 4 * [parse_address(postgres)]):
            assert opened.get_all_studies() == []


def test_one_process_at_a_time_publishes_a_run_folder(tmp_path: Path, journal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "PATIENCE_SECONDS", 0.5)
    address = parse_address(journal)
    search(tmp_path, make_experiment(12))
    with open_study(address, tmp_path, read_record(tmp_path)[0]):
        with pytest.raises(UserError, match=f"{tmp_path}: process {os.getpid()} is publishing it"):
            published(tmp_path, journal)
        summary = search(tmp_path, make_experiment(16), storage=address)
        assert "16 of 16 results are missing" in str(summary.shared)
    published(tmp_path, journal)
    verify(tmp_path, journal)


def test_trials_that_others_add_are_left_alone(tmp_path: Path, database: str) -> None:
    address = parse_address(database)
    search(tmp_path, make_experiment(12), storage=address)
    for attributes in ({}, {"candidate": "mine", "fidelity": "by hand"}, {"run": "mine", "candidate": 13, "fidelity": None}):
        load_study(database).add_trial(optuna.trial.create_trial(values=[1.0, 2.0], user_attrs=attributes))
    summary = search(tmp_path, make_experiment(16), storage=address)
    assert "all 16 results are in" in str(summary.shared)
    assert len(load_study(database).trials) == 16 + 3


@pytest.mark.parametrize("entry", ["garbage", '{"op_code":99,"worker_id":"someone"}', "7"])
def test_a_journal_that_cannot_be_read_leaves_the_search_whole(
    tmp_path: Path, journal: str, entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "PATIENCE_SECONDS", 0.5)
    address = parse_address(journal)
    file = address.file
    assert file is not None

    def write(number: int) -> None:
        if number == 8:
            wait_for(file.exists)
            with file.open("a") as stream:
                stream.write(f"{entry}\n{entry}\n")

    summary = search(tmp_path / "run", make_experiment(20), scorer(hook=write), storage=address)
    assert summary.scored == 20
    assert "of 20 results are missing" in str(summary.shared)
    for refuse in (lambda: published(tmp_path / "run", journal), lambda: check_study(address, "synthetic", "", None)):
        with pytest.raises(UserError, match="it holds what Optuna cannot read"):
            refuse()


@pytest.mark.parametrize("content", [b"a line\n", b"a line\nhalf", b'{"json": 1}\n', bytes(range(256))])
def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path: Path, journal: str, content: bytes) -> None:
    search(tmp_path, make_experiment(5))
    file = parse_address(journal).file
    assert file is not None
    file.write_bytes(content)
    for refuse in (lambda: published(tmp_path, journal), lambda: check_study(parse_address(journal), "synthetic", "", None)):
        with pytest.raises(UserError, match="it is no journal of Optuna's"):
            refuse()
    assert file.read_bytes() == content


def test_half_a_line_and_a_lock_that_a_killed_driver_left_do_no_harm(
    tmp_path: Path, journal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "LOCK_SECONDS", 3)
    search(tmp_path, make_experiment(12), storage=parse_address(journal))
    file = parse_address(journal).file
    assert file is not None
    file.write_bytes(file.read_bytes()[:-50])
    file.with_name(f"{file.name}.lock").symlink_to(file)
    published(tmp_path, journal)
    search(tmp_path, make_experiment(16), storage=parse_address(journal))
    verify(tmp_path, journal)


def test_an_emptied_storage_is_written_anew(tmp_path: Path, database: str) -> None:
    """Before the search goes on, and while it runs."""
    search(tmp_path, make_experiment(12), storage=parse_address(database))
    optuna.delete_study(study_name="synthetic", storage=optuna_storage(database))

    def delete(number: int) -> None:
        if number == 10:
            wait_for(lambda: "synthetic" in optuna.get_all_study_names(optuna_storage(database)))
            optuna.delete_study(study_name="synthetic", storage=optuna_storage(database))

    search(tmp_path, make_experiment(30), scorer(hook=delete), storage=parse_address(database))
    check_attributes(tmp_path, verify(tmp_path, database))


def test_a_study_that_something_else_made_is_refused(tmp_path: Path, database: str) -> None:
    search(tmp_path, make_experiment(12))
    study = optuna.create_study(storage=optuna_storage(database), study_name="synthetic", directions=["minimize"])
    for change in (lambda: study.set_user_attr("mine", 1), study.ask):
        with pytest.raises(UserError, match="study 'synthetic' was made by something else"):
            published(tmp_path, database)
        change()
    assert load_study(database).user_attrs == {"mine": 1}
    assert len(load_study(database).trials) == 1


def test_a_study_that_a_killed_driver_had_just_made_is_taken(tmp_path: Path, database: str) -> None:
    optuna.create_study(storage=optuna_storage(database), study_name="synthetic", directions=["maximize", "minimize"])
    search(tmp_path, make_experiment(12), storage=parse_address(database))
    check_attributes(tmp_path, verify(tmp_path, database))


@pytest.mark.parametrize("late", [0.0, 1.0])
def test_a_trial_whose_answer_was_lost_is_stored_once(tmp_path: Path, postgres: str, late: float) -> None:
    """The connection breaks before the server says that it has stored it, or before it has done so."""
    wire = Wire(postgres)

    def hook(number: int) -> None:
        if number in {3, 7}:
            wire.swallow_answer(b"INSERT INTO trials", b"COMMIT", late)
        elif number in {6, 10}:
            wait_for(lambda: wire.swallowed == (number - 2) // 4)

    summary = search(tmp_path, make_experiment(12), scorer(hook=hook), storage=parse_address(wire.address))
    wire.close()
    assert wire.swallowed == 2
    assert "all 12 results" in str(summary.shared)
    verify(tmp_path, postgres)


def test_a_server_that_is_killed_and_comes_back_gets_what_it_missed(tmp_path: Path, mortal: Mortal) -> None:
    shown: list[str] = []

    def hook(number: int) -> None:
        if number in {5, 20}:
            mortal.kill()
        elif number in {15, 21}:
            mortal.start()
        elif number == 14:
            wait_for(lambda: bool(shown))

    with search_log(tmp_path) as log, events_logged(log, shown.append):
        summary = search(tmp_path, make_experiment(30), scorer(hook=hook), storage=parse_address(mortal.address))
    assert summary.scored == 30
    assert "all 30 results" in str(summary.shared)
    assert "the search goes on, results wait" in shown[0]
    assert "reached again" in shown[-1]
    assert all(line in (tmp_path / LOG_FILE).read_text() for line in shown)
    verify(tmp_path, mortal.address)


def test_a_server_that_stays_away_leaves_the_search_whole_and_what_is_missing_is_added_later(
    tmp_path: Path, mortal: Mortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "PATIENCE_SECONDS", 1.0)
    address = parse_address(mortal.address)
    summary = search(tmp_path, make_experiment(20), scorer(hook=lambda n: mortal.kill() if n == 8 else None), storage=address)
    assert summary.scored == 20
    assert f"of 20 results are missing in {address}" in str(summary.shared)
    assert str(summary.shared).endswith(f"'hwsearch publish {tmp_path}' with the same storage adds them")
    # Away before it was ever reached: after hours of sensitivities that ends no search either.
    again = search(tmp_path, make_experiment(20), storage=address)
    assert str(again.shared).startswith(f"shared study: 20 of 20 results are missing in {address}")
    for refuse in (lambda: published(tmp_path, mortal.address), lambda: check_study(address, "synthetic", "", None)):
        with pytest.raises(UserError, match="wanted a storage that can be reached"):
            refuse()
    mortal.start()
    assert str(published(tmp_path, mortal.address)) == f"shared study: all 20 results are in {address}"
    verify(tmp_path, mortal.address)


def test_a_server_that_says_nothing_any_more_keeps_nobody(tmp_path: Path, postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "PATIENCE_SECONDS", 1.0)
    wire = Wire(postgres)
    hooked = scorer(hook=lambda n: wire.block() if n == 8 else None)
    summary = search(tmp_path / "run", make_experiment(20), hooked, storage=parse_address(wire.address))
    assert summary.scored == 20
    assert "results are missing" in str(summary.shared)
    # The thread holds the folder until its connection is lost; another process takes it where this one has ended.
    wire.close()
    wait_for(lambda: not any(thread.name == "publisher" for thread in threading.enumerate()))
    published(tmp_path / "run", postgres)
    verify(tmp_path / "run", postgres)


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
        if "synthetic" in optuna.get_all_study_names(optuna_storage(database)):
            trials = load_study(database).trials
            held_now = Counter(trial.user_attrs["candidate"] for trial in trials)
            assert set(held_now) <= {event.candidate for event in finished(tmp_path)}
            assert max(held_now.values(), default=1) == 1
            assert all(trial.state.is_finished() for trial in trials)
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "all 40 results are in" in ended.stdout
    verify(tmp_path, database)


def test_ctrl_c_while_the_study_is_brought_up_to_date_says_what_is_missing(
    tmp_path: Path, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = Wire(postgres)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Publisher, "close", interrupt)
    hooked = scorer(hook=lambda n: wire.block() if n == 2 else None)
    summary = search(tmp_path, make_experiment(12), hooked, storage=parse_address(wire.address))
    wire.close()
    assert summary.scored == 12
    assert "of 12 results are missing" in str(summary.shared)
