"""The mirror in the run folder: what it holds, and that it always follows from the record."""

from pathlib import Path

import pytest

from hwsearch.search import driver
from hwsearch.search.record import Failed, read_record
from hwsearch.search.studies.mirror import MIRROR_FILE
from tests.search.studies.expected import RICH, check_attributes, check_trials, finished, load_mirror, scorer
from tests.search.synthetic import make_experiment, search


def test_every_finished_candidate_is_there_with_all_that_the_record_says(tmp_path: Path) -> None:
    search(tmp_path, RICH, scorer(fail=9))
    study = load_mirror(tmp_path)
    check_trials(tmp_path, study)
    check_attributes(tmp_path, study)
    assert {event.fidelity.value for event in finished(tmp_path)} == {"post-training-subset", "post-training"}
    assert any(isinstance(event, Failed) for event in finished(tmp_path))
    assert [(trial.user_attrs["candidate"], trial.user_attrs["fidelity"]) for trial in study.trials] == [
        (event.candidate, event.fidelity.value) for event in finished(tmp_path)
    ], "in the order of the record"


def test_candidates_say_with_what_versions_they_were_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of a search that goes on after something was brought up to date."""
    search(tmp_path, make_experiment(12), scorer(fail=4))
    before = read_record(tmp_path)[0].versions
    later = before | {"torch": "99.0"}
    with monkeypatch.context() as patch:
        patch.setattr(driver, "versions_here", lambda: later)
        search(tmp_path, make_experiment(14), scorer(fail=2))
    search(tmp_path, make_experiment(15))
    study = load_mirror(tmp_path)
    check_trials(tmp_path, study)
    check_attributes(tmp_path, study)
    assert [trial.user_attrs["versions"] for trial in study.trials] == 13 * [before] + 3 * [later] + [before]


@pytest.mark.parametrize("damage", ["missing", "torn", "stale lock", "of an earlier version"])
def test_it_is_made_anew_from_the_record(tmp_path: Path, damage: str) -> None:
    search(tmp_path, make_experiment(10))
    path = tmp_path / MIRROR_FILE
    whole = path.read_bytes()
    match damage:
        case "missing":
            path.unlink()
        case "torn":
            path.write_bytes(whole[:-7])
        case "stale lock":
            (tmp_path / f"{MIRROR_FILE}.lock").symlink_to(path)
        case _:
            path.write_bytes(b"".join(line.replace(b'"fidelity"', b'"other"') for line in whole.splitlines(keepends=True)[:5]))
    search(tmp_path, make_experiment(12))
    check_trials(tmp_path, load_mirror(tmp_path))


def test_a_tool_that_has_it_open_reads_on_when_a_driver_starts_again(tmp_path: Path) -> None:
    """It is replaced by what stood there, to the byte: tools remember where they have read to."""
    search(tmp_path, make_experiment(10))
    before = (tmp_path / MIRROR_FILE).read_bytes()
    dashboard = load_mirror(tmp_path)
    assert len(dashboard.trials) == 10
    search(tmp_path, make_experiment(14))
    assert (tmp_path / MIRROR_FILE).read_bytes().startswith(before)
    assert len(dashboard.trials) == 14
    check_trials(tmp_path, dashboard)


def test_what_a_driver_left_that_was_killed_as_it_wrote_it_goes(tmp_path: Path) -> None:
    left = tmp_path / f".{MIRROR_FILE}-part" / MIRROR_FILE
    left.parent.mkdir()
    left.write_bytes(b"half")
    search(tmp_path, make_experiment(10))
    assert not left.exists()
    assert not list(tmp_path.glob(".*"))
