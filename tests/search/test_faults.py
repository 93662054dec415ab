"""Searches whose parts are killed at random moments keep what they promise (`tests.search.faults` says what that is)."""

import os
import shutil
from collections import deque
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import pytest

from hwsearch.errors import UserError
from hwsearch.executor import Outcome
from hwsearch.search.record import RECORD_FILE, Record, read_record
from hwsearch.search.scoring import ScoringJob
from tests.search.faults import LOCAL_FAULTS, RAY_FAULTS, Campaign, Fault, kill_driver, kill_server
from tests.search.studies.expected import check_trials, finished, load_mirror
from tests.search.synthetic import cut_record, essence, events, make_experiment, score, search

TRIALS = 24


def test_faults_without_ray(tmp_path: Path) -> None:
    campaign = Campaign(LOCAL_FAULTS)
    campaign.run(tmp_path, kills=8, seed=1)
    assert campaign.struck.keys() == {fault.name for fault in LOCAL_FAULTS}


def test_faults_on_ray(tmp_path: Path) -> None:
    campaign = Campaign(RAY_FAULTS[:2], workers=2)
    campaign.run(tmp_path, kills=2, seed=2)
    assert campaign.struck.total() == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("faults", "workers", "kills"),
    [(LOCAL_FAULTS, 0, 63), (RAY_FAULTS, 2, 16), (RAY_FAULTS, 1, 8)],
    ids=["local", "ray2", "ray1"],
)
def test_many_faults(tmp_path: Path, faults: tuple[Fault, ...], workers: int, kills: int) -> None:
    campaign = Campaign(faults, workers)
    campaign.run(tmp_path, kills, seed=100 + workers)
    report(campaign)
    assert campaign.struck.total() >= kills


def report(campaign: Campaign) -> None:
    print(f"{campaign.struck.total()} faults in {campaign.searches} searches, {campaign.repeated} scorings repeated:")  # noqa: T201
    for name, count in campaign.struck.items():
        print(f"{count:4d}  {name}")  # noqa: T201


@pytest.mark.slow
def test_many_faults_with_a_shared_study(tmp_path: Path) -> None:
    """A server of the test's own is killed, and drivers that write to it."""
    if "HWSEARCH_TEST_POSTGRES" not in os.environ:
        pytest.skip("no HWSEARCH_TEST_POSTGRES: wanted PostgreSQL on this machine; .ci/services starts one")
    from tests.servers import Mortal

    server = Mortal()
    try:
        server.start()
        faults = (Fault("PostgreSQL", partial(kill_server, server=server)), Fault("driver beside PostgreSQL", kill_driver))
        campaign = Campaign(faults, storage=server.address)
        campaign.run(tmp_path, kills=10, seed=300)
    finally:
        server.remove()
    assert campaign.struck.keys() == {fault.name for fault in faults}
    report(campaign)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed search."""
    folder = tmp_path_factory.mktemp("whole")
    search(folder, make_experiment(TRIALS, sampler="posterior"))
    return folder


def last_line(folder: Path) -> tuple[int, int]:
    """Where the record's last line begins and ends."""
    content = (folder / RECORD_FILE).read_bytes()
    return content[:-1].rfind(b"\n") + 1, len(content)


def test_every_torn_prefix_of_the_last_line_is_cut_off(tmp_path: Path, whole: Path) -> None:
    begin, end = last_line(whole)
    header, _ = read_record(whole)
    kept = (whole / RECORD_FILE).read_bytes()[:begin]
    for cut in range(begin, end):
        folder = tmp_path / str(cut)
        cut_record(whole, folder, cut)
        assert essence(folder) == essence(whole)[:-1], "a reader sees the torn line"
        with Record(folder, header):
            pass
        assert (folder / RECORD_FILE).read_bytes() == kept
        shutil.rmtree(folder)


def resume_from_prefixes(tmp_path: Path, whole: Path, step: int) -> None:
    begin, end = last_line(whole)
    for cut in range(begin, end, step):
        folder = tmp_path / str(cut)
        cut_record(whole, folder, cut)
        search(folder, make_experiment(TRIALS, sampler="posterior"))
        assert essence(folder) == essence(whole)
        shutil.rmtree(folder)


def test_a_search_goes_on_from_torn_prefixes_of_the_last_line(tmp_path: Path, whole: Path) -> None:
    resume_from_prefixes(tmp_path, whole, step=97)


@pytest.mark.slow
def test_a_search_goes_on_from_every_torn_prefix_of_the_last_line(tmp_path: Path, whole: Path) -> None:
    resume_from_prefixes(tmp_path, whole, step=1)


class Batches:
    """Everything in flight is ready at once, so that the driver writes it in one go."""

    capacity = 8

    def __init__(self) -> None:
        self._queue: deque[tuple[int, ScoringJob]] = deque()

    @property
    def ready(self) -> int:
        return len(self._queue)

    def submit(self, key: int, argument: ScoringJob) -> None:
        self._queue.append((key, argument))

    def next_outcome(self) -> Outcome[Mapping[str, float]]:
        key, job = self._queue.popleft()
        return Outcome(key, score(job), None, attempts=1, seconds=0.0, worker="here")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.clear()


def test_a_torn_batch_of_results_loses_none_that_was_whole_and_counts_none_twice(tmp_path: Path) -> None:
    experiment = make_experiment(TRIALS, sampler="random")
    search(tmp_path / "whole", experiment, Batches())
    kinds = "".join(event.event[0] for event in events(tmp_path / "whole"))
    assert "aaaaaaaassssssss" in kinds, "asked and scored eight at a time"
    content = (tmp_path / "whole" / RECORD_FILE).read_bytes()
    for cut in range(content.index(b'"scored"'), len(content), 701):
        folder = tmp_path / str(cut)
        cut_record(tmp_path / "whole", folder, cut)
        kept = content[: content.rfind(b"\n", 0, cut) + 1]
        search(folder, experiment, Batches())
        assert (folder / RECORD_FILE).read_bytes().startswith(kept)
        assert sorted(event.candidate for event in finished(folder)) == list(range(1, TRIALS + 1))
        check_trials(folder, load_mirror(folder))
        shutil.rmtree(folder)


@pytest.mark.parametrize("garbage", [b"\0" * 4096, b'{"event":"scored","candidate":', bytes(range(128, 256))])
def test_garbage_behind_the_last_line_is_cut_off(tmp_path: Path, whole: Path, garbage: bytes) -> None:
    cut_record(whole, tmp_path / "run", last_line(whole)[1])
    with (tmp_path / "run" / RECORD_FILE).open("ab") as stream:
        stream.write(garbage)
    search(tmp_path / "run", make_experiment(TRIALS, sampler="posterior"))
    assert (tmp_path / "run" / RECORD_FILE).read_bytes() == (whole / RECORD_FILE).read_bytes()


def test_a_whole_line_of_garbage_is_refused_by_its_number_and_left_alone(tmp_path: Path, whole: Path) -> None:
    """No kill leaves one, so nobody but the user may say what it was."""
    cut_record(whole, tmp_path / "run", last_line(whole)[1])
    path = tmp_path / "run" / RECORD_FILE
    garbage = np.random.default_rng(0).bytes(200).replace(b"\n", b"") + b"\n"
    with path.open("ab") as stream:
        stream.write(garbage)
    damaged = path.read_bytes()
    lines = damaged.count(b"\n")
    with pytest.raises(UserError, match=f"line {lines}: changed since it was written"):
        search(tmp_path / "run", make_experiment(TRIALS, sampler="posterior"))
    assert path.read_bytes() == damaged
    os.truncate(path, len(damaged) - len(garbage))
    search(tmp_path / "run", make_experiment(TRIALS, sampler="posterior"))
    assert essence(tmp_path / "run") == essence(whole)
