"""Promotions: who is scored again, how, from whose weights, and that a kill loses nothing."""

import math
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from hwsearch.errors import UserError
from hwsearch.executor import LocalExecutor
from hwsearch.experiment import Experiment, Fidelity
from hwsearch.results.candidates import read_candidates, read_without_training
from hwsearch.results.rungs import RungCorrelation, rung_correlations
from hwsearch.search.progress import SearchProgress
from hwsearch.search.record import RECORD_FILE, REFERENCE, Failed, Scored, read_record
from hwsearch.search.scoring import COMPARED, ScoringJob, trained_name
from hwsearch.search.trained_weights import TRAINED_FOLDER
from hwsearch.separator.allocation import is_weight
from hwsearch.separator.configuration import Configuration
from tests.search.synthetic import cut_record, essence, events, finished, make_experiment, quality, search

RUNGS = ((Fidelity.POST_TRAINING, 12), (Fidelity.SHORT_QAT, 6), (Fidelity.FULL_QAT, 3))
ALL = (Fidelity.SUBSET, *(fidelity for fidelity, _ in RUNGS))
ALWAYS = {"uniform", "ends-at-8"}


def experiment_of(*, trials: int = 30, warm_start: bool = True, rungs: int = 3, sampler: str = "nsga2") -> Experiment:
    """Twenty validation mixtures, four of which every candidate is scored on; then three rungs."""
    return make_experiment(
        trials,
        sampler=sampler,
        validation=20,
        validation_mixtures=4,
        promotions=[{"fidelity": fidelity.value, "keep": keep} for fidelity, keep in RUNGS[:rungs]],
        qat={"warm_start": warm_start},
    )


def rough(job: ScoringJob) -> Mapping[str, float]:
    """Fidelities that do not agree on the order of candidates."""
    allocation = job.configuration.allocation
    found = dict(quality(allocation, job.fidelity))
    drawn = np.random.default_rng([list(Fidelity).index(job.fidelity), *(bits for _, bits in allocation.widths)])
    if set(allocation.by_site.values()) != {32}:
        found["si_snr_improvement_db"] -= float(drawn.uniform(0.0, 0.5))
    return found


class Watched(LocalExecutor):
    """Keeps the jobs that were run."""

    def __init__(self) -> None:
        super().__init__(lambda: rough)
        self.jobs: list[tuple[int, ScoringJob]] = []

    def submit(self, key: int, argument: ScoringJob) -> None:
        self.jobs.append((key, argument))
        super().submit(key, argument)


class Parallel(Watched):
    """Three jobs in flight, finished in the order they were submitted."""

    capacity = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Watched]:
    """A search through three rungs."""
    folder, executor = tmp_path_factory.mktemp("rungs"), Watched()
    summary = search(folder, experiment_of(), executor)
    assert summary.scored == 30
    return folder, executor


def scored(folder: Path, fidelity: Fidelity) -> dict[int, Scored]:
    """By number, in the order of the record, the reference among them."""
    return {event.candidate: event for event in events(folder) if isinstance(event, Scored) and event.fidelity is fidelity}


def fronts(candidates: dict[int, Scored]) -> list[set[int]]:
    """Non-dominated sorting by comparing every pair."""
    left = {number: (-event.metrics["si_snr_improvement_db"], event.costs["size_bytes"]) for number, event in candidates.items()}
    found = []
    while left:
        beaten = {
            a for a in left for b in left if left[b] != left[a] and all(x <= y for x, y in zip(left[b], left[a], strict=True))
        }
        found.append(left.keys() - beaten)
        left = {number: value for number, value in left.items() if number in beaten}
    return found


def test_every_rung_scores_the_best_fronts_of_the_one_below_and_the_baselines(run: tuple[Path, Watched]) -> None:
    folder, _ = run
    below = scored(folder, Fidelity.SUBSET)
    for fidelity, keep in RUNGS:
        above = scored(folder, fidelity)
        assert next(iter(above)) == REFERENCE
        contest = {n: event for n, event in below.items() if event.strategy not in ALWAYS and n != REFERENCE}
        baselines = {n for n, event in below.items() if event.strategy in ALWAYS}
        assert baselines <= above.keys()
        chosen = above.keys() - baselines - {REFERENCE}
        assert len(chosen) == min(keep, len(contest))
        room = keep
        for front in fronts(contest):
            assert len(chosen & front) == min(len(front), max(room, 0))
            room -= len(front)
        below = above


SHARED = {"fidelity": "shared", "validation": 20, "trials": 60}
COMPARISONS = [
    ({"validation_mixtures": 20}, Fidelity.SHARED, Fidelity.POST_TRAINING),
    ({"validation_mixtures": 4}, Fidelity.SHARED_SUBSET, Fidelity.SUBSET),
    ({"validation_mixtures": 4, "promotions": [{"fidelity": "shared", "keep": 30}]}, Fidelity.SHARED, Fidelity.POST_TRAINING),
]


@pytest.mark.parametrize(("settings", "trained", "untrained"), COMPARISONS)
def test_a_search_on_the_shared_network_ends_with_its_best_without_training(
    tmp_path: Path, settings: dict[str, Any], trained: Fidelity, untrained: Fidelity
) -> None:
    experiment, executor = make_experiment(**SHARED, **settings), Watched()
    summary = search(tmp_path, experiment, executor)
    with_training, without = scored(tmp_path, trained), scored(tmp_path, untrained)
    contest = {n: event for n, event in with_training.items() if event.strategy not in ALWAYS and n != REFERENCE}
    always = with_training.keys() - contest.keys()
    assert always <= without.keys() <= with_training.keys()
    chosen = without.keys() - always
    assert len(chosen) == COMPARED
    assert len(chosen & fronts(contest)[0]) == min(COMPARED, len(fronts(contest)[0]))
    assert summary.promoted[untrained] == len(without) - 1
    assert executor.jobs[-1][1].fidelity is untrained
    table = read_candidates(tmp_path)
    assert table.fidelity is trained
    found = read_without_training(tmp_path, table)
    assert (found.fidelity, found.candidate.tolist()) == (untrained, list(without)[1:])
    some = read_without_training(tmp_path, table.take(table.candidate <= 3))
    assert set(some.candidate.tolist()) == {1, 2, 3} & without.keys()
    assert some.reference == found.reference
    assert len(read_without_training(tmp_path, found)) == 0
    again = Watched()
    search(tmp_path, experiment, again)
    assert again.jobs == []


def test_only_what_is_within_the_limits_is_promoted_beside_the_baselines(run: tuple[Path, Watched], tmp_path: Path) -> None:
    sizes = [event.costs["size_bytes"] for event in scored(run[0], Fidelity.SUBSET).values() if event.strategy not in ALWAYS]
    limit = float(np.median([size for size in sizes[1:] if size is not None]))
    experiment = experiment_of(rungs=1)
    limited = experiment.model_copy(update={"search": experiment.search.model_copy(update={"limits": {"size_bytes": limit}})})
    search(tmp_path, limited, Watched())
    below, above = (scored(tmp_path, fidelity) for fidelity in (Fidelity.SUBSET, Fidelity.POST_TRAINING))
    assert {n for n, event in below.items() if event.strategy in ALWAYS} <= above.keys()
    chosen = [event for event in above.values() if event.strategy not in ALWAYS and event.candidate != REFERENCE]
    assert chosen
    assert all(float(event.costs["size_bytes"] or 0.0) <= limit for event in chosen)
    assert any(float(event.costs["size_bytes"] or 0.0) > limit for n, event in below.items() if n not in above)


def test_candidates_are_scored_widest_first_and_once_at_each_fidelity(run: tuple[Path, Watched]) -> None:
    folder, executor = run
    for fidelity, _ in RUNGS:
        widths = [sum(event.allocation.values()) for event in scored(folder, fidelity).values()]
        assert widths[1:] == sorted(widths[1:], reverse=True)
    jobs = [(number, job.fidelity) for number, job in executor.jobs]
    assert len(set(jobs)) == len(jobs) == sum(isinstance(event, Scored) for event in events(folder))


def test_jobs_ask_for_what_the_record_says(run: tuple[Path, Watched]) -> None:
    folder, executor = run
    for number, job in executor.jobs:
        event = scored(folder, job.fidelity)[number]
        assert job.configuration == Configuration.of(event.allocation)
        assert event.metrics == rough(job)
        if number == REFERENCE or not job.fidelity.trained:
            assert (job.output, job.start, event.start, event.weights) == (None, None, None, None)
            continue
        assert event.weights is not None
        assert job.output == (folder / TRAINED_FOLDER / event.weights).resolve()
        source = None if job.start is None else job.start.path.name
        assert event.weights == trained_name(read_record(folder)[0].experiment, job.configuration, job.fidelity, source)
        assert (event.start is None) == (job.start is None)
    files = [event.weights for event in events(folder) if isinstance(event, Scored) and event.weights is not None]
    assert len(set(files)) == len(files)


def steps(one: Scored, other: Scored) -> int:
    """Bits between the weights of two candidates."""
    return sum(abs(bits - other.allocation[site]) for site, bits in one.allocation.items() if is_weight(site))


def test_training_starts_from_the_nearest_that_was_trained(run: tuple[Path, Watched]) -> None:
    folder, executor = run
    short, full = (list(scored(folder, fidelity).values())[1:] for fidelity in (Fidelity.SHORT_QAT, Fidelity.FULL_QAT))
    assert short[0].start is None
    for place, event in enumerate(short[1:], start=1):
        before = {other.candidate: steps(event, other) for other in short[:place]}
        assert before[event.start] == min(before.values())
    # Every candidate of the last rung was trained on the one below: it goes on from its own weights there.
    files = {event.candidate: event.weights for event in short}
    jobs = {number: job for number, job in executor.jobs if job.fidelity is Fidelity.FULL_QAT}
    for event in full:
        assert event.start == event.candidate
        start = jobs[event.candidate].start
        assert start is not None
        assert start.path.name == files[event.candidate]
        assert start.configuration == Configuration.of(event.allocation)


def test_the_same_search_trains_the_same_files_elsewhere(run: tuple[Path, Watched], tmp_path: Path) -> None:
    search(tmp_path / "again", experiment_of(), Watched())
    assert essence(tmp_path / "again") == essence(run[0])


def test_without_warm_starts_every_training_starts_from_the_base(tmp_path: Path) -> None:
    executor = Watched()
    search(tmp_path, experiment_of(warm_start=False), executor)
    trained = [event for event in events(tmp_path) if isinstance(event, Scored) and event.weights is not None]
    assert len(trained) > 20
    assert all(event.start is None for event in trained)
    assert all(job.start is None for _, job in executor.jobs)


# Kills and resumes


@pytest.mark.parametrize("sampler", ["nsga2", "posterior"])
def test_a_search_cut_inside_a_rung_goes_on_as_if_undisturbed(tmp_path: Path, sampler: str) -> None:
    experiment = experiment_of(sampler=sampler)
    search(tmp_path / "whole", experiment, Watched())
    content = (tmp_path / "whole" / RECORD_FILE).read_bytes()
    begin = content.index(b'"fidelity":"post-training"')
    for cut in np.random.default_rng(1).integers(begin, len(content), 6).tolist():
        folder, executor = tmp_path / f"cut{cut}", Watched()
        cut_record(tmp_path / "whole", folder, cut)
        search(folder, experiment, executor)
        assert finished(folder) == finished(tmp_path / "whole"), f"cut at byte {cut}"
        done = content[: content.rindex(b"\n", 0, cut) + 1].count(b'"event":"scored"')
        assert len(executor.jobs) == len(finished(folder)) - done


def test_parallel_rungs_cut_anywhere_score_everyone_once(tmp_path: Path) -> None:
    """Whose weights a training starts from depends on what is finished; who is scored, and from the base how, does not."""
    for warm_start in (True, False):
        folder = tmp_path / f"{warm_start}"
        experiment = experiment_of(warm_start=warm_start)
        search(folder / "whole", experiment, Parallel())
        length = (folder / "whole" / RECORD_FILE).stat().st_size
        for cut in np.random.default_rng(2).integers(length // 3, length, 3).tolist():
            cut_record(folder / "whole", folder / f"{cut}", cut)
            search(folder / f"{cut}", experiment, Parallel())
            if not warm_start:
                assert finished(folder / f"{cut}") == finished(folder / "whole")
            keys = [(event["candidate"], event["fidelity"]) for event in finished(folder / f"{cut}")]
            assert keys == [(event["candidate"], event["fidelity"]) for event in finished(folder / "whole")]


def test_rungs_added_later_go_on_with_a_finished_search(tmp_path: Path, run: tuple[Path, Watched]) -> None:
    for rungs in range(4):
        executor = Watched()
        search(tmp_path, experiment_of(rungs=rungs), executor)
        expected = Fidelity.SUBSET if rungs == 0 else RUNGS[rungs - 1][0]
        assert {job.fidelity for _, job in executor.jobs} == {expected}
    assert essence(tmp_path) == essence(run[0])


def test_more_trials_score_only_who_is_newly_promoted(tmp_path: Path) -> None:
    search(tmp_path, experiment_of(trials=20), Watched())
    executor = Watched()
    summary = search(tmp_path, experiment_of(trials=30), executor)
    assert summary.scored == 30
    assert sum(job.fidelity is Fidelity.SUBSET for _, job in executor.jobs) == 10
    keys = [(event["candidate"], event["fidelity"]) for event in finished(tmp_path)]
    assert len(keys) == len(set(keys))


def test_ctrl_c_inside_a_rung_says_how_to_continue(tmp_path: Path) -> None:
    calls: list[ScoringJob] = []

    def interrupted(job: ScoringJob) -> Mapping[str, float]:
        calls.append(job)
        if sum(call.fidelity is Fidelity.SHORT_QAT for call in calls) == 4:
            raise KeyboardInterrupt
        return rough(job)

    summary = search(tmp_path, experiment_of(), LocalExecutor(lambda: interrupted))
    assert summary.interrupted
    assert summary.promoted[Fidelity.SHORT_QAT] == 2
    assert "30 of 30 candidates scored, 0 failed, 23 at 'post-training', 2 at 'short-qat'; run the same command" in str(summary)


# Failures


def diverging(job: ScoringJob, fidelity: Fidelity) -> Mapping[str, float]:
    if job.fidelity is fidelity and job.configuration.allocation.by_site["mask_head.weight"] in (2, 3):
        raise ValueError("the loss became nan")
    return rough(job)


def test_a_training_that_fails_is_recorded_at_its_fidelity_only(tmp_path: Path) -> None:
    executor = LocalExecutor(lambda: partial(diverging, fidelity=Fidelity.SHORT_QAT))
    summary = search(tmp_path, experiment_of(), executor)
    failures = [event for event in events(tmp_path) if isinstance(event, Failed)]
    assert len(failures) > 0
    assert {(event.fidelity, event.reason) for event in failures} == {(Fidelity.SHORT_QAT, "ValueError: the loss became nan")}
    assert (summary.scored, summary.failed) == (30, 0)
    numbers = {event.candidate for event in failures}
    assert numbers <= scored(tmp_path, Fidelity.POST_TRAINING).keys()
    assert not numbers & scored(tmp_path, Fidelity.SHORT_QAT).keys()
    assert not numbers & scored(tmp_path, Fidelity.FULL_QAT).keys()
    starts = {event.start for event in events(tmp_path) if isinstance(event, Scored)}
    assert not numbers & starts
    assert read_candidates(tmp_path, Fidelity.SHORT_QAT).failures.keys() == numbers
    assert read_candidates(tmp_path, Fidelity.POST_TRAINING).failures == {}
    again = Watched()
    search(tmp_path, experiment_of(), again)
    assert again.jobs == []


def test_full_precision_that_fails_on_a_rung_stops_the_search_until_it_is_mended(tmp_path: Path) -> None:
    def broken(job: ScoringJob) -> Mapping[str, float]:
        if job.fidelity is Fidelity.POST_TRAINING:
            return {"si_snr_improvement_db": math.nan}
        return rough(job)

    with pytest.raises(UserError, match=r"full-precision network cannot be scored \(objective 'si_snr_improvement_db' is nan"):
        search(tmp_path, experiment_of(), LocalExecutor(lambda: broken))
    summary = search(tmp_path, experiment_of(), Watched())
    assert set(summary.promoted) == {fidelity for fidelity, _ in RUNGS}


# What is seen of it


def test_progress_goes_from_rung_to_rung(tmp_path: Path) -> None:
    seen = []
    search(tmp_path, experiment_of(), Watched(), progress=seen.append)
    assert list(dict.fromkeys(progress.fidelity for progress in seen)) == list(ALL)
    for fidelity in ALL:
        counts = [(progress.scored, progress.trials) for progress in seen if progress.fidelity is fidelity]
        assert counts[0] == (0, counts[0][1])
        assert counts[-1][0] == counts[-1][1] == len(scored(tmp_path, fidelity)) - 1


def test_no_time_is_left_of_a_rung_above_where_some_failed(tmp_path: Path) -> None:
    """Nobody takes their place; a driver that finds the rung finished says so at once."""
    executor = LocalExecutor(lambda: partial(diverging, fidelity=Fidelity.SHORT_QAT))
    seen: list[SearchProgress] = []
    search(tmp_path, experiment_of(rungs=2), executor, progress=seen.append)
    last = [progress for progress in seen if progress.fidelity is Fidelity.SHORT_QAT][-1]
    assert last.failed > 0
    assert (last.scored + last.failed, last.remaining_seconds) == (last.trials, 0.0)
    again: list[SearchProgress] = []
    search(tmp_path, experiment_of(rungs=2), executor, progress=again.append)
    assert [(progress.latest, progress.remaining_seconds) for progress in again] == [(None, 0.0)] * 3


def test_where_every_mixture_is_scored_there_is_no_subset(tmp_path: Path) -> None:
    promotions = [{"fidelity": "post-training", "keep": 5}]
    experiment = make_experiment(12, validation=4, validation_mixtures=4, promotions=promotions)
    search(tmp_path, experiment, Watched())
    assert {event.fidelity for event in events(tmp_path) if isinstance(event, Scored)} == {Fidelity.POST_TRAINING}
    assert len(scored(tmp_path, Fidelity.POST_TRAINING)) == 13


def test_candidates_are_read_by_fidelity(run: tuple[Path, Watched]) -> None:
    folder, _ = run
    for fidelity in ALL:
        table, wanted = read_candidates(folder, fidelity), scored(folder, fidelity)
        assert table.fidelity is fidelity
        assert table.candidate.tolist() == list(wanted)[1:]
        assert table.columns["si_snr_improvement_db"].tolist() == [
            event.metrics["si_snr_improvement_db"] for event in list(wanted.values())[1:]
        ]
        assert table.reference["si_snr_improvement_db"] == wanted[REFERENCE].metrics["si_snr_improvement_db"]
        assert table.weights == {number: event.weights for number, event in wanted.items() if event.weights is not None}
    assert read_candidates(folder).fidelity is Fidelity.FULL_QAT


def test_a_rung_of_which_nobody_is_scored_yet_is_not_what_is_read(tmp_path: Path, run: tuple[Path, Watched]) -> None:
    content = (run[0] / RECORD_FILE).read_bytes()
    lines = content.splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if b'"fidelity":"short-qat"' in line)
    cut_record(run[0], tmp_path / "cut", sum(map(len, lines[: first + 1])))  # full precision only
    assert read_candidates(tmp_path / "cut").fidelity is Fidelity.POST_TRAINING
    with pytest.raises(UserError) as refused:
        read_candidates(tmp_path / "cut", Fidelity.SHORT_QAT)
    assert str(refused.value) == (
        f"{tmp_path / 'cut'}: nothing was scored at fidelity 'short-qat'; it has 'post-training-subset', 'post-training'"
    )


def test_rung_correlations_are_those_of_the_ranks(run: tuple[Path, Watched], tmp_path: Path) -> None:
    folder, _ = run
    found = rung_correlations(folder)
    assert [(item.below, item.above) for item in found] == list(pairwise(ALL))
    for item in found:
        below, above = scored(folder, item.below), scored(folder, item.above)
        both = sorted(above.keys() - {REFERENCE})
        ranks = [stats.rankdata([rung[number].metrics["si_snr_improvement_db"] for number in both]) for rung in (below, above)]
        assert item.candidates == len(both)
        assert item.spearman == pytest.approx(np.corrcoef(*ranks)[0, 1])
        assert str(item) == f"{item.below} to {item.above}: rank correlation {item.spearman:.2f} over {len(both)} candidates"
    search(tmp_path, experiment_of(trials=3, rungs=1), Watched())
    (few,) = rung_correlations(tmp_path)
    assert math.isnan(few.spearman)
    assert str(few) == "post-training-subset to post-training: too few to rank over 3 candidates"
    assert isinstance(few, RungCorrelation)
