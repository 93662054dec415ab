import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.samplers import NSGAIISampler
from optuna.trial import TrialState, create_trial

from hwsearch.experiment import SearchConfig, SeparatorConfig
from hwsearch.extensions import SAMPLERS
from hwsearch.search.objectives import QUALITY, QUALITY_AND_SIZE, SIZE, objective_values
from hwsearch.search.proposer import Candidate, Result, SeedProposer
from hwsearch.search.samplers.optuna_samplers import OptunaProposer
from hwsearch.search.samplers.sampler import Searched
from hwsearch.search.space import SearchSpace, Seed, build_space, uniform_seeds
from tests.search import structured
from tests.search.synthetic import make_experiment
from tests.separator.small import sites_of

POPULATION = 5


def make_space() -> SearchSpace:
    return build_space(SearchConfig(), sites_of(SeparatorConfig(X=1, R=1)))


def make_proposer(space: SearchSpace, sampler: str = "nsga2") -> OptunaProposer:
    experiment = make_experiment(9, seed=0, sampler=sampler, population=POPULATION)
    proposer = SAMPLERS.load(sampler)(Searched(experiment, space, costs=None, tables={}))
    assert isinstance(proposer, OptunaProposer)
    return proposer


def finish(proposer: OptunaProposer, candidate: Candidate) -> None:
    """Score on a line, where no candidate dominates another."""
    value = float(sum(candidate.point) + candidate.number / 1000)
    proposer.tell(Result(candidate, {QUALITY: value}, {SIZE: value}))


def plant_seeds(proposer: OptunaProposer, space: SearchSpace) -> list[Candidate]:
    seeds = [
        Candidate(number, seed.point, seed.strategy, {}) for number, seed in enumerate(uniform_seeds(space)[:POPULATION], start=1)
    ]
    for candidate in seeds:
        proposer.asked(candidate)
        finish(proposer, candidate)
    return seeds


def test_seeds_become_the_parents_of_nsga2() -> None:
    space = make_space()
    proposer = make_proposer(space)
    seeds = plant_seeds(proposer, space)
    proposal = proposer.ask()
    parents = NSGAIISampler(population_size=POPULATION).get_parent_population(proposer.study, 1)
    assert proposal.state == {"generation": 1}
    assert {tuple(parent.params.values()) for parent in parents} == {seed.point for seed in seeds}


def test_without_a_generation_optuna_ignores_added_trials_as_parents() -> None:
    """Why seeds are given one; when this fails, Optuna has changed and the attribute may go."""
    study = optuna.create_study(directions=["maximize", "minimize"])
    space = {"x": IntDistribution(0, 5)}
    for index in range(6):
        study.add_trial(create_trial(params={"x": index}, distributions=dict(space), values=[float(index), float(index)]))
    sampler = NSGAIISampler(population_size=POPULATION, seed=0)
    study.sampler = sampler
    study.ask(dict(space))
    assert sampler.get_parent_population(study, 1) == []


def test_a_candidate_from_elsewhere_joins_the_current_generation() -> None:
    space = make_space()
    proposer = make_proposer(space)
    plant_seeds(proposer, space)
    proposal = proposer.ask()
    own = Candidate(POPULATION + 1, proposal.point, proposal.strategy, proposal.state)
    proposer.asked(own)
    finish(proposer, own)
    foreign = Candidate(POPULATION + 2, (1, 2, 3, 4, 5), "elsewhere", {})
    proposer.asked(foreign)
    finish(proposer, foreign)
    population = NSGAIISampler(population_size=POPULATION).get_population(proposer.study, 1)
    assert {tuple(trial.params.values()) for trial in population} == {own.point, foreign.point}


@pytest.mark.parametrize("sampler", ["random", "nsga2", "tpe", "gp"])
def test_samplers_stay_in_the_space_and_differ_from_ask_to_ask(sampler: str) -> None:
    space = make_space()
    proposer = make_proposer(space, sampler)
    plant_seeds(proposer, space)
    points = [proposer.ask().point for _ in range(8)]
    for point in points:
        space.decode(point)
    assert len(set(points)) > 2


@pytest.mark.parametrize("sampler", ["random", "nsga2", "tpe"])
def test_what_is_proposed_is_canonical_where_parts_may_be_left_out(sampler: str) -> None:
    space = structured.space_of("tcn")
    proposer = make_proposer(space, sampler)
    seeds = plant_seeds(proposer, space)
    points = [proposer.ask().point for _ in range(12)]
    assert [space.canonical(point) for point in points] == points
    assert any(space.decode(point).structure for point in points)
    assert [tuple(trial.params.values()) for trial in proposer.study.trials[: len(seeds)]] == [seed.point for seed in seeds]


@pytest.mark.parametrize("sampler", ["random", "nsga2", "tpe", "gp"])
def test_draws_that_were_not_accepted_are_not_left_running(sampler: str) -> None:
    space = make_space()
    proposer = make_proposer(space, sampler)
    proposer.ask()
    proposer.ask()
    plant_seeds(proposer, space)
    states = [trial.state for trial in proposer.study.trials]
    assert states == [TrialState.FAIL] * 2 + [TrialState.COMPLETE] * POPULATION


def test_seeds_are_proposed_once_and_not_when_they_are_candidates_already() -> None:
    seeds = SeedProposer([Seed("a", (0,)), Seed("b", (1,)), Seed("c", (2,))])
    seeds.asked(Candidate(1, (1,), "elsewhere", {}))
    asked = []
    while (proposal := seeds.ask()) is not None:
        asked.append(proposal.point)
        seeds.asked(Candidate(len(asked) + 1, proposal.point, proposal.strategy, {}))
    assert asked == [(0,), (2,)]


def test_objectives_may_be_metrics_or_costs_and_must_be_there() -> None:
    assert objective_values(QUALITY_AND_SIZE, {QUALITY: 3.0}, {SIZE: 7.0}) == [3.0, 7.0]
    with pytest.raises(KeyError):
        objective_values(QUALITY_AND_SIZE, {QUALITY: 3.0}, {SIZE: None})
