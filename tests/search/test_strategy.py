"""What a search tries in any case, whatever its sampler finds: the final front is nowhere below any prior's."""

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.errors import UserError
from hwsearch.executor import LocalExecutor
from hwsearch.experiment import Experiment
from hwsearch.results.candidates import read_candidates
from hwsearch.results.query import query
from hwsearch.search.costs import CostBook
from hwsearch.search.driver import Task, run_search
from hwsearch.search.plan import make_plan, wanted_priors, wants_nas
from hwsearch.search.priors import separable_loss
from hwsearch.search.progress import SearchSummary
from hwsearch.search.proposer import Plan
from hwsearch.search.record import Scored
from hwsearch.search.samplers.optuna_samplers import OptunaProposer
from hwsearch.search.samplers.posterior import PosteriorProposer, posterior_engine
from hwsearch.search.scoring import ScoringJob
from hwsearch.search.space import Point, SearchSpace, ends_seeds, uniform_seeds
from hwsearch.sensitivity.table import SensitivityTable
from tests.search.synthetic import events, make_experiment, noise, prior_table, space_of

PRIORS = ("output-noise-ratio", "kl", "curvature")
CONFIG: dict[str, object] = {"weight_bits": [2, 4, 8], "targets": [], "priors": list(PRIORS)}


def experiment_of(trials: int = 40, **search: object) -> Experiment:
    return make_experiment(trials, **{**CONFIG, **search})


def tables_of(space: SearchSpace) -> dict[str, SensitivityTable]:
    """Three priors, each off in another way; two of them only rank."""
    found = {}
    for number, prior in enumerate(PRIORS):
        table = prior_table(space, seed=number)
        found[prior] = SensitivityTable(prior, table.sites, table.widths, table.value * 10.0**number, table.standard_error, 4)
    return found


def planned(experiment: Experiment, tables: Mapping[str, SensitivityTable] | None = None, nas: Sequence[Point] = ()) -> Plan:
    space = space_of(experiment)
    return make_plan(experiment, space, CostBook(experiment, space), tables_of(space) if tables is None else tables, nas)


@cache
def plan_of(sampler: str, trials: int = 40, **search: object) -> Plan:
    return planned(experiment_of(trials, sampler=sampler, **search))


@cache
def book() -> CostBook:
    """The costs of all experiments here that share the widths."""
    return CostBook(experiment_of(), space_of(experiment_of()))


@cache
def everything() -> tuple[list[Point], np.ndarray]:
    """Every point of the space, and the size it is charged."""
    space = space_of(experiment_of())
    points = list(product(*(range(count) for count in space.shape)))
    return points, np.array([row["size_bytes"] for row in book().charge([space.decode(point) for point in points])])


@cache
def prior_front(prior: str) -> tuple[tuple[float, float], ...]:
    """Budget and least loss of a prior at 8 sizes evenly spread on a log scale, from all 6561 allocations."""
    space = space_of(experiment_of())
    points, sizes = everything()
    by_site = separable_loss(tables_of(space)[prior], space)
    table = np.array([[by_site[name][bits] for bits in widths] for name, widths in space.free])
    losses = table[np.arange(len(space.free)), np.array(points)].sum(axis=1)
    budgets = sizes.min() * (sizes.max() / sizes.min()) ** (np.arange(1, 9) / 9)
    return tuple((float(budget), float(losses[sizes <= budget * (1 + 1e-12)].min())) for budget in budgets)


def run(experiment: Experiment, plan: Plan, folder: Path, score: Callable[[ScoringJob], Mapping[str, float]]) -> SearchSummary:
    return run_search(Task(experiment, space_of(experiment), book().charge, folder), LocalExecutor(lambda: score), plan)


def scores_of(seed: int, levels: int) -> Callable[[ScoringJob], Mapping[str, float]]:
    """Qualities without any sense, many of them equal; the same allocation always has the same."""

    def score(job: ScoringJob) -> Mapping[str, float]:
        drawn = np.random.default_rng([seed, *(bits for _, bits in job.configuration.allocation.widths)]).integers(levels)
        return {"si_snr_improvement_db": 30.0 * float(drawn) / levels - 3.0, "utterances": 4.0}

    return score


@settings(deadline=None, max_examples=16)
@given(
    st.sampled_from(["random", "nsga2", "tpe", "posterior"]),
    st.integers(0, 6),
    st.integers(0, 2**20),
    st.sampled_from([2, 5, 1000]),
)
def test_whatever_is_found_the_front_is_nowhere_below_uniform_ends_or_any_priors_front(
    sampler: str, more: int, seed: int, levels: int
) -> None:
    seeds = len(plan_of("random").seeds)
    experiment = experiment_of(seeds + more, sampler=sampler)
    plan = planned(experiment)
    with tempfile.TemporaryDirectory() as folder:
        run(experiment, plan, Path(folder), scores_of(seed, levels))
        table = read_candidates(Path(folder))
        front = query(table)
        strategies = [event.strategy for event in events(Path(folder)) if isinstance(event, Scored)][1:]
    # Everything that is scored in any case comes before anything a sampler proposes.
    assert strategies[:seeds] == [seed.strategy for seed in plan.seeds]
    name = "prior-corrected" if sampler == "posterior" else sampler
    assert {strategy.removesuffix("-mutated") for strategy in strategies[seeds:]} <= {name}
    space = space_of(experiment)
    scored = {space.encode(table.configuration(row)): row for row in range(len(table))}
    wanted = {seed.point for seed in [*uniform_seeds(space), *ends_seeds(space)]}
    assert wanted <= scored.keys()
    # A prior's front at each size is scored too: some candidate within the budget loses as little by that prior.
    losses = {prior: separable_loss(found, space) for prior, found in tables_of(space).items()}
    sizes = table.columns["size_bytes"]
    quality, cheap = front.columns["si_snr_improvement_db"], front.columns["size_bytes"]
    for prior in PRIORS:
        allocations = [table.configuration(row).allocation for row in range(len(table))]
        by_prior = np.array(
            [sum(losses[prior][site][bits] for site, bits in each.widths if site in losses[prior]) for each in allocations]
        )
        for budget, least in prior_front(prior):
            reached = np.flatnonzero((sizes <= budget * (1 + 1e-9)) & (by_prior <= least * (1 + 1e-9) + 1e-12))
            assert len(reached) > 0
            for row in reached:
                assert ((quality >= table.columns["si_snr_improvement_db"][row]) & (cheap <= sizes[row])).any()
    for point in wanted:
        row = scored[point]
        assert ((quality >= table.columns["si_snr_improvement_db"][row]) & (cheap <= sizes[row])).any()


def test_the_seeds_of_the_default_are_uniform_ends_and_every_priors_front_in_that_order() -> None:
    plan = plan_of("posterior")
    order = list(dict.fromkeys(seed.strategy for seed in plan.seeds))
    assert order == ["uniform", "ends-at-8", "output-noise-ratio", "kl", "curvature"]
    assert len({seed.point for seed in plan.seeds}) == len(plan.seeds)
    assert isinstance(plan.proposer, PosteriorProposer)
    for sampler in ("random", "nsga2", "tpe", "gp"):
        assert plan_of(sampler).seeds == plan.seeds
        assert isinstance(plan_of(sampler).proposer, OptunaProposer)


def test_more_sizes_are_more_seeds() -> None:
    few, many = (sum(seed.strategy == "kl" for seed in plan_of("random", seed_sizes=sizes).seeds) for sizes in (8, 40))
    assert few <= 8 < many <= 40


def noisy(job: ScoringJob) -> Mapping[str, float]:
    lost = sum(noise(index, bits) for index, (_, bits) in enumerate(job.configuration.allocation.widths))
    return {"si_snr_improvement_db": 12.0 - 10 * float(np.log10(1 + lost)), "utterances": 4.0}


@pytest.mark.parametrize(("strategy", "prior"), [("uniform", None), ("curvature", "curvature"), ("kl", "kl"), ("nas", None)])
def test_a_strategy_proposes_what_it_says_and_no_more(tmp_path: Path, strategy: str, prior: str | None) -> None:
    experiment = experiment_of(30, strategy=strategy)
    space = space_of(experiment)
    assert wanted_priors(experiment) == (() if prior is None else (prior,))
    assert wants_nas(experiment) == (strategy == "nas")
    found_by_nas = [(0, 0, 1, 1, 2, 2, 1, 0), (2, 1, 0, 1, 2, 0, 0, 1)]
    tables = {wanted: tables_of(space)[wanted] for wanted in wanted_priors(experiment)}
    plan = planned(experiment, tables, found_by_nas if wants_nas(experiment) else [])
    assert plan.proposer is None
    summary = run(experiment, plan, tmp_path, noisy)
    scored = [event for event in events(tmp_path) if isinstance(event, Scored)][1:]
    by_strategy: dict[str, list[Point]] = {}
    for event in scored:
        point = tuple(widths.index(event.allocation[site]) for site, widths in space.free)
        by_strategy.setdefault(event.strategy, []).append(point)
    own = by_strategy.pop(strategy, [])
    baselines = uniform_seeds(space) + ends_seeds(space)
    if strategy == "uniform":
        assert by_strategy.keys() == {"ends-at-8"}
        assert own + by_strategy["ends-at-8"] == [seed.point for seed in baselines]
        assert str(summary).startswith("no more candidates to propose")
        return
    assert by_strategy["uniform"] + by_strategy["ends-at-8"] == [seed.point for seed in baselines]
    if strategy == "nas":
        assert own == found_by_nas
        return
    # As many of the front as are wanted, and each of them on it: by going through every allocation.
    assert prior is not None
    assert len(scored) == 30
    points, sizes = everything()
    by_site = separable_loss(tables_of(space)[prior], space)
    table = np.array([[by_site[name][bits] for bits in widths] for name, widths in space.free])
    losses = table[np.arange(len(space.free)), np.array(points)].sum(axis=1)
    place = {point: number for number, point in enumerate(points)}
    for point in own:
        number = place[point]
        assert losses[number] <= losses[sizes <= sizes[number]].min() + 1e-12


@pytest.mark.parametrize("trials", [1, 20, 33, 50])
def test_a_prior_alone_plans_as_many_candidates_as_are_wanted_and_always_the_baselines_and_its_front(trials: int) -> None:
    plan, least = (
        planned(experiment, {"kl": prior_table(space_of(experiment))})
        for experiment in (experiment_of(n, strategy="kl", weight_bits=[2, 3, 4, 5, 6, 8]) for n in (trials, 1))
    )
    assert len(plan.seeds) == max(trials, len(least.seeds))
    assert plan.seeds[: len(least.seeds)] == least.seeds
    assert sum(seed.strategy == "kl" for seed in least.seeds) <= 8


def test_nas_candidates_join_the_default_where_they_are_wanted() -> None:
    experiment = experiment_of(nas=True)
    assert wants_nas(experiment)
    assert not wants_nas(experiment_of())
    point = (0, 1, 2, 0, 1, 2, 0, 1)
    assert [seed.point for seed in planned(experiment, nas=[point]).seeds if seed.strategy == "nas"] == [point]


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"priors": []}, "search.priors: empty; the posterior sampler wants one to start from"),
        ({"objectives": ["si_snr_improvement_db", "latency_ms[abacus]"]}, "no cost 'latency_ms[abacus]'; wanted size_bytes"),
        ({"limits": {"colour": 3.0}}, "no cost 'colour'; wanted size_bytes"),
    ],
)
def test_what_cannot_propose_is_refused(search: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        planned(experiment_of(**search, sampler="posterior"))


def test_another_sampler_needs_no_priors() -> None:
    assert {seed.strategy for seed in planned(experiment_of(priors=[], sampler="random"), {}).seeds} == {"uniform", "ends-at-8"}


def test_a_space_of_constants_has_one_seed_and_nobody_to_propose() -> None:
    plan = planned(experiment_of(weight_bits=[4], sampler="posterior"), {})
    assert [seed.point for seed in plan.seeds] == [()]
    assert plan.proposer is None


def test_the_posterior_of_an_experiment_stays_within_its_limits(tmp_path: Path) -> None:
    _, sizes = everything()
    limit = float(np.quantile(sizes, 0.3))
    seeds = len(plan_of("random").seeds)
    experiment = experiment_of(seeds + 15, sampler="posterior", limits={"size_bytes": limit})
    run(experiment, planned(experiment), tmp_path, noisy)
    own = [event for event in events(tmp_path) if isinstance(event, Scored) and event.strategy == "prior-corrected"]
    assert len(own) == 15
    assert max(event.costs["size_bytes"] for event in own) <= limit


def test_an_engine_of_priors_that_only_rank_may_be_off_by_more() -> None:
    """Its scale is a guess: what it believes of an allocation's loss is less certain."""
    experiment = experiment_of()
    space, relative = space_of(experiment), []
    for prior in PRIORS[:2]:
        engine = posterior_engine(space, [tables_of(space)[prior]], book(), experiment.search.objectives, {}, 16)
        mean, deviation = engine._posterior.predict(np.zeros((1, len(space.free)), np.int64))
        relative.append(float(deviation[0] / mean[0]))
    assert relative[1] > 2 * relative[0]
