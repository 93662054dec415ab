"""Candidates that are trained further: whose weights they start from, what the record says, and what a failure leaves."""

import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hwsearch.errors import UserError
from hwsearch.executor import LocalExecutor
from hwsearch.experiment import Experiment, Fidelity
from hwsearch.results.candidates import read_candidates
from hwsearch.results.status import Tally
from hwsearch.search.driver import Task, run_finetuning
from hwsearch.search.progress import SearchProgress
from hwsearch.search.record import RECORD_FILE, REFERENCE, Failed, FolderLock, Scored, read_record
from hwsearch.search.scoring import ScoringJob
from tests.search.synthetic import cost, essence, events, make_experiment, quality, search, space_of


def experiment_of(keep: int = 3) -> Experiment:
    rungs = [{"fidelity": "short-qat", "keep": keep}, {"fidelity": "full-qat", "keep": 1}]
    return make_experiment(20, validation=4, validation_mixtures=4, promotions=rungs)


class Watched(LocalExecutor):
    """Keeps the jobs that were run; some fail."""

    def __init__(self, *failing: int) -> None:
        super().__init__(lambda: self._score)
        self.jobs: dict[int, ScoringJob] = {}
        self._failing = failing

    def submit(self, key: int, argument: ScoringJob) -> None:
        self.jobs[key] = argument
        super().submit(key, argument)

    def _score(self, job: ScoringJob) -> Mapping[str, float]:
        if any(self.jobs.get(number) is job for number in self._failing):
            raise ValueError("the loss became nan")
        return quality(job.configuration.allocation, job.fidelity)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searched")
    search(folder, experiment_of())
    return folder


@pytest.fixture
def folder(searched: Path, tmp_path: Path) -> Path:
    shutil.copytree(searched, tmp_path / "run")
    return tmp_path / "run"


def finetune(
    folder: Path, chosen: list[int], executor: Watched, steps: int = 300
) -> tuple[Mapping[int, str], list[SearchProgress]]:
    experiment, seen = experiment_of(), list[SearchProgress]()
    task = Task(experiment, space_of(experiment), cost, folder)
    return run_finetuning(task, executor, chosen, steps, seen.append), seen


def scored(folder: Path, fidelity: Fidelity) -> dict[int, Scored]:
    return {event.candidate: event for event in events(folder) if isinstance(event, Scored) and event.fidelity is fidelity}


def by_training(folder: Path) -> tuple[int, int, int]:
    """A candidate at each of `full-qat`, `short-qat` alone and neither."""
    full, short, all_ = (
        scored(folder, fidelity).keys() - {REFERENCE}
        for fidelity in (Fidelity.FULL_QAT, Fidelity.SHORT_QAT, Fidelity.POST_TRAINING)
    )
    return min(full), min(short - full), min(all_ - short)


def test_a_candidate_starts_from_its_own_best_weights(folder: Path) -> None:
    before, chosen, executor = essence(folder), by_training(folder), Watched()
    failures, seen = finetune(folder, [*chosen], executor)
    assert failures == {}
    assert list(executor.jobs) == [REFERENCE, *chosen]
    after = essence(folder)
    assert after[: len(before)] == before
    found = scored(folder, Fidelity.FINETUNED)
    assert list(found) == [REFERENCE, *chosen]
    full, short, neither = chosen
    for number, fidelity in ((full, Fidelity.FULL_QAT), (short, Fidelity.SHORT_QAT)):
        start = executor.jobs[number].start
        assert start is not None
        assert start.path.name == scored(folder, fidelity)[number].weights
        assert found[number].start == number
    assert executor.jobs[neither].start is None
    assert found[neither].start is None
    for number in chosen:
        job = executor.jobs[number]
        assert (job.fidelity, job.steps, found[number].weights) == (Fidelity.FINETUNED, 300, job.output and job.output.name)
    assert executor.jobs[REFERENCE].output is None
    assert [(progress.scored, progress.trials) for progress in seen] == [(0, 3), (0, 3), (1, 3), (2, 3), (3, 3)]
    table = read_candidates(folder)
    assert (table.fidelity, table.candidate.tolist()) == (Fidelity.FINETUNED, list(chosen))
    assert table.columns["drop_db"].min() > 0.0


def test_what_is_finetuned_is_not_trained_again(folder: Path) -> None:
    first, second, third = by_training(folder)
    finetune(folder, [first], Watched())
    content, executor = (folder / RECORD_FILE).read_bytes(), Watched()
    finetune(folder, [first], executor, steps=500)
    assert executor.jobs == {}
    assert (folder / RECORD_FILE).read_bytes() == content
    _, seen = finetune(folder, [third, first, second], executor)
    assert list(executor.jobs) == [third, second]
    assert (seen[-1].scored, seen[-1].trials, seen[-1].remaining_seconds) == (3, 3, 0.0)


def test_other_numbers_of_steps_have_other_weights(folder: Path, tmp_path: Path) -> None:
    number, _, _ = by_training(folder)
    shutil.copytree(folder, tmp_path / "other")
    names = set()
    for place, steps in ((folder, 300), (tmp_path / "other", 301)):
        executor = Watched()
        finetune(place, [number], executor, steps)
        output = executor.jobs[number].output
        assert output is not None
        names.add(output.name)
    assert len(names) == 2


def test_a_failure_is_told_and_not_recorded(folder: Path) -> None:
    first, second, third = by_training(folder)
    failures, _ = finetune(folder, [first, second, third], Watched(second))
    assert failures == {second: "ValueError: the loss became nan"}
    assert scored(folder, Fidelity.FINETUNED).keys() == {REFERENCE, first, third}
    assert not any(isinstance(event, Failed) for event in events(folder))
    executor = Watched()
    failures, _ = finetune(folder, [first, second, third], executor)
    assert (failures, list(executor.jobs)) == ({}, [second])
    assert scored(folder, Fidelity.FINETUNED).keys() == {REFERENCE, first, second, third}


def test_a_search_goes_on_as_if_nothing_had_been_finetuned(folder: Path, searched: Path, tmp_path: Path) -> None:
    """Its trainings start from weights that it has trained itself."""
    shutil.copytree(searched, tmp_path / "plain")
    finetune(folder, sorted(scored(folder, Fidelity.POST_TRAINING).keys() - {REFERENCE}), Watched())
    before = len(scored(folder, Fidelity.SHORT_QAT))
    found = []
    for place in (folder, tmp_path / "plain"):
        search(place, experiment_of(keep=8))
        found.append([event for event in essence(place) if event.get("fidelity") is not Fidelity.FINETUNED])
    assert found[0] == found[1]
    assert len(scored(folder, Fidelity.SHORT_QAT)) > before


def test_the_status_of_a_search_shows_what_is_finetuned(folder: Path) -> None:
    def rungs() -> list[tuple[Fidelity, int, int]]:
        header, found = read_record(folder)
        tally = Tally(header, experiment_of())
        for event in found:
            tally.add(event)
        status = tally.status(folder, None, datetime.now(UTC))
        assert status.remaining_seconds == 0.0
        return [(rung.fidelity, rung.scored, rung.wanted) for rung in status.rungs]

    before = rungs()
    first, second, _ = by_training(folder)
    finetune(folder, [first, second], Watched())
    assert rungs() == [*before, (Fidelity.FINETUNED, 2, 2)]


def test_a_folder_that_a_driver_holds_is_refused(folder: Path) -> None:
    with FolderLock(folder), pytest.raises(UserError, match="is searching here"):
        finetune(folder, [1], Watched())
