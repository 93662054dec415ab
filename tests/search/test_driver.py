import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.errors import UserError
from hwsearch.executor import LocalExecutor, Outcome
from hwsearch.experiment import Fidelity
from hwsearch.results.candidates import read_candidates
from hwsearch.search.driver import Task, run_search
from hwsearch.search.experiment_space import experiment_space
from hwsearch.search.pareto import hypervolume
from hwsearch.search.proposer import Candidate, Plan, Proposal, Result, SeedProposer, new_proposal, unknown_neighbour
from hwsearch.search.record import RECORD_FILE, Asked, Failed, Scored
from hwsearch.search.scoring import ScoringJob
from hwsearch.search.space import Point, SearchSpace, Seed
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.configuration import Configuration
from tests.search.structured import TCN, points
from tests.search.synthetic import (
    cost,
    cut_record,
    default_seeds,
    essence,
    events,
    finished,
    make_experiment,
    make_scorer,
    quality,
    score,
    search,
    space_of,
)

SAMPLERS = ("random", "nsga2", "tpe", "posterior")


class FirstInFirstOut(LocalExecutor):
    """Three candidates in flight, finished in the order they were submitted."""

    capacity = 3


def failing(job: ScoringJob, when: Callable[[BitAllocation], bool]) -> Mapping[str, float]:
    if when(job.configuration.allocation):
        raise RuntimeError("no sound\nat all")
    return score(job)


def scored_allocations(folder: Path) -> list[tuple[tuple[str, int], ...]]:
    return [tuple(event.allocation.items()) for event in events(folder) if isinstance(event, Scored)][1:]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_exactly_the_wanted_number_of_distinct_candidates_is_scored(tmp_path: Path, sampler: str) -> None:
    summary = search(tmp_path, make_experiment(40, sampler=sampler))
    found = scored_allocations(tmp_path)
    assert len(found) == len(set(found)) == summary.scored == 40
    assert str(summary) == f"done: 40 of 40 candidates scored, 0 failed, in {tmp_path}"


def test_full_precision_comes_first_then_the_seeds_then_the_sampler(tmp_path: Path) -> None:
    experiment = make_experiment(20)
    search(tmp_path, experiment)
    scored = [event for event in events(tmp_path) if isinstance(event, Scored)]
    assert scored[0].allocation == space_of(experiment).full_precision.allocation.to_json()
    assert [event.strategy for event in scored[1:]] == ["uniform"] * 6 + ["ends-at-8"] * 5 + ["nsga2"] * 9
    assert [event.allocation["mask_head.weight"] for event in scored[1:7]] == [2, 3, 4, 5, 6, 8]


def test_each_entry_carries_what_made_it(tmp_path: Path) -> None:
    search(tmp_path, make_experiment(3))
    event = events(tmp_path)[-1]
    assert isinstance(event, Scored)
    allocation = BitAllocation.of(event.allocation)
    assert event.metrics == quality(allocation)
    assert event.costs == cost([Configuration(allocation)])[0]
    assert (event.seed, event.fidelity, event.attempts) == (3, Fidelity.POST_TRAINING, 1)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_same_seed_same_record_and_another_seed_another(tmp_path: Path, sampler: str) -> None:
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        search(tmp_path / folder, make_experiment(30, seed, sampler=sampler))
    assert essence(tmp_path / "a") == essence(tmp_path / "b")
    assert scored_allocations(tmp_path / "a") != scored_allocations(tmp_path / "c")


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("executor", [LocalExecutor, FirstInFirstOut])
def test_a_search_cut_at_any_byte_goes_on_as_if_undisturbed(tmp_path: Path, sampler: str, executor: type[LocalExecutor]) -> None:
    experiment = make_experiment(45, sampler=sampler)
    search(tmp_path / "whole", experiment, executor(make_scorer))
    length = (tmp_path / "whole" / RECORD_FILE).stat().st_size
    for cut in np.random.default_rng(0).integers(0, length, 5).tolist():
        folder = tmp_path / f"cut{cut}"
        cut_record(tmp_path / "whole", folder, cut)
        search(folder, experiment, executor(make_scorer))
        assert finished(folder) == finished(tmp_path / "whole"), f"cut at byte {cut}"


def test_a_search_with_the_gaussian_process_goes_on_as_if_undisturbed(tmp_path: Path) -> None:
    """By itself, and few trials: fitting it takes a second for each."""
    experiment = make_experiment(13, sampler="gp")
    search(tmp_path / "whole", experiment)
    content = (tmp_path / "whole" / RECORD_FILE).read_bytes()
    cut_record(tmp_path / "whole", tmp_path / "cut", content.index(b'"strategy":"gp"', len(content) * 3 // 4))
    search(tmp_path / "cut", experiment)
    assert finished(tmp_path / "cut") == finished(tmp_path / "whole")
    assert sum(event.strategy == "gp" for event in events(tmp_path / "whole") if isinstance(event, Scored)) == 2


def test_a_prior_that_is_off_is_corrected_by_what_is_scored(tmp_path: Path) -> None:
    """With as many candidates, the posterior's front dominates more than a random search's, and than the seeds alone."""
    volumes = {}
    for sampler, trials in (("posterior", 60), ("random", 60), ("uniform", 11)):
        search(tmp_path / sampler, make_experiment(trials, sampler="random" if sampler == "uniform" else sampler))
        table = read_candidates(tmp_path / sampler)
        values = np.stack([table.columns["si_snr_improvement_db"], table.columns["size_bytes"]], axis=1)
        volumes[sampler] = hypervolume(values, [objective.direction for objective in table.objectives], (10.0, 5000.0))
    assert volumes["posterior"] > volumes["random"] >= volumes["uniform"]


def test_fewer_trials_than_seeds_score_the_first_seeds(tmp_path: Path) -> None:
    experiment = make_experiment(4, sampler="posterior")
    search(tmp_path, experiment)
    assert [event.strategy for event in events(tmp_path) if isinstance(event, Scored)][1:] == ["uniform"] * 4
    space = space_of(experiment)
    points = [event.point for event in events(tmp_path) if isinstance(event, Asked)][1:]
    assert points == [seed.point for seed in default_seeds(space)[:4]]


def test_seeds_alone_end_when_they_are_scored(tmp_path: Path) -> None:
    experiment = make_experiment(40)
    seeds = default_seeds(space_of(experiment))
    task = Task(experiment, space_of(experiment), cost, tmp_path)
    summary = run_search(task, LocalExecutor(make_scorer), Plan(tuple(seeds)))
    assert summary.scored == len(seeds) == 11
    assert str(summary) == f"no more candidates to propose: 11 of 40 candidates scored, 0 failed, in {tmp_path}"


def test_a_group_shares_a_width_in_every_candidate_of_the_record(tmp_path: Path) -> None:
    group = ("blocks.0.expand.weight", "blocks.1.expand.weight", "mask_head.weight")
    for sampler in SAMPLERS:
        search(tmp_path / sampler, make_experiment(25, sampler=sampler, groups=[["*.expand.weight", "mask_head.weight"]]))
        found = [event for event in events(tmp_path / sampler) if isinstance(event, Scored)][1:]
        assert len(found) == 25
        assert all(len({event.allocation[site] for site in group}) == 1 for event in found)
        assert len({event.allocation[group[0]] for event in found}) == 6


def test_more_trials_continue_a_finished_search(tmp_path: Path) -> None:
    search(tmp_path / "grown", make_experiment(15))
    search(tmp_path / "grown", make_experiment(30))
    search(tmp_path / "whole", make_experiment(30))
    assert essence(tmp_path / "grown") == essence(tmp_path / "whole")
    assert search(tmp_path / "grown", make_experiment(10)).scored == 30


def test_another_experiment_is_refused(tmp_path: Path) -> None:
    search(tmp_path, make_experiment(3))
    with pytest.raises(UserError, match="holds a search of experiment"):
        search(tmp_path, make_experiment(3, sampler="tpe"))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_small_space_is_scored_whole_and_the_search_ends(tmp_path: Path, sampler: str) -> None:
    fixed = {"blocks.*.weight": 4}
    experiment = make_experiment(100, sampler=sampler, fixed=fixed, weight_bits=[2, 3, 4, 8])
    summary = search(tmp_path, experiment)
    assert summary.scored == len(set(scored_allocations(tmp_path))) == 4**2
    assert "no more candidates" in str(summary)


class SecondAttempts(LocalExecutor[ScoringJob, Mapping[str, float]]):
    """As where the worker of every job has died once."""

    def next_outcome(self) -> Outcome[Mapping[str, float]]:
        return replace(super().next_outcome(), attempts=2)


def test_failed_candidates_are_recorded_and_replaced(tmp_path: Path) -> None:
    def bad(allocation: BitAllocation) -> bool:
        return allocation.by_site["mask_head.weight"] == 3

    executor = SecondAttempts(lambda: partial(failing, when=bad))
    summary = search(tmp_path, make_experiment(25), executor)
    failures = [event for event in events(tmp_path) if isinstance(event, Failed)]
    assert {event.attempts for event in events(tmp_path) if isinstance(event, Scored | Failed)} == {2}
    assert summary.scored == len(scored_allocations(tmp_path)) == 25
    assert summary.failed == len(failures) > 0
    assert {event.reason for event in failures} == {"RuntimeError: no sound at all"}
    assert search(tmp_path, make_experiment(25)).failed == len(failures)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_a_candidate_without_a_finite_quality_has_failed(tmp_path: Path, value: float | None) -> None:
    def broken(job: ScoringJob) -> Mapping[str, float]:
        if job.configuration.allocation.by_site["mask_head.weight"] != 2:
            return score(job)
        return {"utterances": 16.0} | ({} if value is None else {"si_snr_improvement_db": value})

    summary = search(tmp_path, make_experiment(8), LocalExecutor(lambda: broken))
    reasons = [event.reason for event in events(tmp_path) if isinstance(event, Failed)]
    found = "absent" if value is None else value
    assert summary.failed > 0
    assert set(reasons) == {f"objective 'si_snr_improvement_db' is {found}; wanted a finite number"}


def test_costs_that_are_not_finite_are_recorded_as_absent(tmp_path: Path) -> None:
    def charge(configurations: Sequence[Configuration]) -> list[dict[str, float]]:
        return [values | {"latency_ms[chip]": math.nan} for values in cost(configurations)]

    search(tmp_path, make_experiment(4), charge=charge)
    event = events(tmp_path)[-1]
    assert isinstance(event, Scored)
    assert event.costs["latency_ms[chip]"] is None
    assert event.costs["size_bytes"] is not None


def test_full_precision_need_not_run_on_the_targets(tmp_path: Path) -> None:
    """Only its quality is compared with; a candidate without an objective has failed."""

    def charge(configurations: Sequence[Configuration]) -> list[dict[str, float]]:
        found = cost(configurations)
        for configuration, values in zip(configurations, found, strict=True):
            if configuration.allocation.by_site["mask_head.weight"] > 6:
                values["latency_ms[chip]"] = math.nan
        return found

    objectives = ["si_snr_improvement_db", "size_bytes", "latency_ms[chip]"]
    summary = search(tmp_path, make_experiment(20, objectives=objectives), charge=charge)
    assert summary.scored == 20
    reasons = {event.reason for event in events(tmp_path) if isinstance(event, Failed)}
    assert reasons == {"objective 'latency_ms[chip]' is absent; wanted a finite number"}
    assert search(tmp_path, make_experiment(20, objectives=objectives), charge=charge).failed == summary.failed


def test_full_precision_that_takes_longer_than_the_time_limit_wants_a_larger_one(tmp_path: Path) -> None:
    slow = LocalExecutor(lambda: partial(score, seconds=60.0), max_attempts=3, time_limit_s=0.05)
    with pytest.raises(UserError) as refused:
        search(tmp_path, make_experiment(10), slow)
    reason = "no answer within 0.05 s, 3 times"
    wanted = "a larger workers.time_limit_s"
    assert str(refused.value) == f"the full-precision network cannot be scored ({reason}); wanted {wanted}"


def test_a_scorer_that_cannot_score_full_precision_stops_the_search_until_it_is_mended(
    tmp_path: Path,
) -> None:
    broken = LocalExecutor(lambda: partial(failing, when=lambda _: True))
    with pytest.raises(UserError, match=r"full-precision network cannot be scored \(RuntimeError: no sound at all\)"):
        search(tmp_path, make_experiment(5), broken)
    assert search(tmp_path, make_experiment(5)).scored == 5


def test_a_search_whose_candidates_all_fail_gives_up(tmp_path: Path) -> None:
    executor = LocalExecutor(lambda: partial(failing, when=lambda allocation: allocation.by_site["mask_head.output"] == 8))
    with pytest.raises(UserError, match="10 candidates failed, as many as were wanted"):
        search(tmp_path, make_experiment(10), executor)


def test_ctrl_c_ends_cleanly_and_says_how_to_continue(tmp_path: Path) -> None:
    calls = []

    def interrupted(job: ScoringJob) -> Mapping[str, float]:
        calls.append(job)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return score(job)

    summary = search(tmp_path / "a", make_experiment(20), LocalExecutor(lambda: interrupted))
    assert summary.interrupted
    assert str(summary) == (
        f"interrupted: 6 of 20 candidates scored, 0 failed; run the same command again to continue in {tmp_path / 'a'}"
    )
    search(tmp_path / "a", make_experiment(20))
    search(tmp_path / "b", make_experiment(20))
    assert essence(tmp_path / "a") == essence(tmp_path / "b")


def test_progress_counts_up_to_the_end(tmp_path: Path) -> None:
    seen = []
    search(tmp_path, make_experiment(6), progress=seen.append)
    assert [progress.scored for progress in seen] == [0, 0, 1, 2, 3, 4, 5, 6]
    assert seen[0].remaining_seconds is None
    assert seen[-1].remaining_seconds == 0.0


def test_a_strategy_of_ones_own_replaces_the_sampler_and_hears_of_every_candidate(tmp_path: Path) -> None:
    class Stubborn:
        """Proposes one point for ever."""

        def __init__(self) -> None:
            self.heard: list[Candidate] = []
            self.told: list[Result] = []
            self.reference: list[Mapping[str, float]] = []

        def started(self, reference: Mapping[str, float]) -> None:
            self.reference.append(reference)

        def ask(self) -> Proposal:
            return Proposal((0, 1, 2, 3, 4, 5, 0, 1), "stubborn", {"note": len(self.heard)})

        def asked(self, candidate: Candidate) -> None:
            self.heard.append(candidate)

        def tell(self, result: Result) -> None:
            self.told.append(result)

    first, second = Stubborn(), Stubborn()
    search(tmp_path, make_experiment(15), proposer=first)
    asked = [event for event in events(tmp_path) if isinstance(event, Asked)]
    assert [event.strategy for event in asked[12:]] == ["stubborn"] + ["stubborn-mutated"] * 3
    assert asked[12].state == {"note": 11}
    search(tmp_path, make_experiment(15), proposer=second)
    assert (second.heard, second.told, second.reference) == (first.heard, first.told, first.reference)
    assert [metrics["si_snr_improvement_db"] for metrics in first.reference] == [pytest.approx(12.0)]


def space_with(shape: tuple[int, ...]) -> SearchSpace:
    """A space with so many widths of each site."""
    return SearchSpace(tuple((f"{number}.weight", tuple(range(2, 2 + count))) for number, count in enumerate(shape)))


SHAPE = (3, 2, 2)
POINTS = st.tuples(*(st.integers(0, n - 1) for n in SHAPE))


@given(st.sets(POINTS, max_size=math.prod(SHAPE) - 1), POINTS, st.integers(0, 9))
def test_a_neighbour_is_found_while_any_point_is_unknown(known: set[tuple[int, ...]], point: tuple[int, ...], seed: int) -> None:
    found = unknown_neighbour(point, space_with(SHAPE), known, np.random.default_rng(seed))
    assert found is not None
    assert found not in known
    assert all(0 <= index < n for index, n in zip(found, SHAPE, strict=True))


@pytest.mark.parametrize("last", [(7, 0, 19), (0, 0, 0)])
def test_the_last_unknown_point_of_a_large_space_is_found(last: tuple[int, ...]) -> None:
    shape = (20, 20, 20)
    known = set(np.ndindex(shape)) - {last}
    assert unknown_neighbour((1, 2, 3), space_with(shape), known, np.random.default_rng(0)) == last


def test_there_is_no_neighbour_where_every_point_is_known() -> None:
    assert unknown_neighbour((1, 0, 1), space_with(SHAPE), set(np.ndindex(SHAPE)), np.random.default_rng(0)) is None


# What proposals mean where parts of the network may be left out

PARTLY = experiment_space(
    make_experiment(
        20,
        separator=TCN,
        weight_bits=[4],
        activation_bits=[8],
        trunk_bits=[8],
        allowed={"blocks.*.expand.weight": [2, 4]},
        structure={"*.kept": [0], "*.channels": [0.5]},
    )
)
MEANT = sorted({PARTLY.canonical(point) for point in np.ndindex(PARTLY.shape)})


def test_most_points_of_a_space_may_mean_what_others_do() -> None:
    assert PARTLY.shape == (2,) * 6
    assert len(MEANT) == 5 * 5  # each block is left out, or has one of two widths and of two numbers of channels


@settings(deadline=None)
@given(st.sets(st.sampled_from(MEANT), max_size=len(MEANT)), points(PARTLY), st.integers(0, 9))
def test_a_neighbour_is_a_canonical_point_that_is_unknown(known: set[Point], point: Point, seed: int) -> None:
    found = unknown_neighbour(point, PARTLY, known, np.random.default_rng(seed))
    if known == set(MEANT):
        assert found is None
    else:
        assert found in set(MEANT) - known


@settings(deadline=None)
@given(st.sets(st.sampled_from(MEANT), max_size=len(MEANT)), points(PARTLY))
def test_a_proposal_is_accepted_under_its_canonical_point(known: set[Point], point: Point) -> None:
    proposer = SeedProposer([Seed("seed", point)])
    found = new_proposal([proposer], known, PARTLY, np.random.default_rng(0))
    if PARTLY.canonical(point) not in known:
        assert found == Proposal(PARTLY.canonical(point), "seed")
    elif known == set(MEANT):
        assert found is None
    else:
        assert found is not None
        assert found.point in set(MEANT) - known
        assert found.strategy == "seed-mutated"
