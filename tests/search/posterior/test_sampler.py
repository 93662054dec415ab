"""The posterior engine as a sampler of plain Optuna studies."""

import numpy as np
import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.trial import TrialState

from hwsearch.search.posterior.engine import PosteriorEngine
from hwsearch.search.posterior.sampler import STRATEGY_KEY, PriorCorrectedSampler
from hwsearch.search.space import SearchSpace, Seed
from tests.search.posterior.problems import BITS, REFERENCE_DB, Problem, make_problem, score

PROBLEM = make_problem(0, choices=8)
NAMES = [f"s{index}.weight" for index in range(8)]
SPACE = SearchSpace(tuple((name, tuple(BITS.tolist())) for name in NAMES))
SEEDS = [Seed("uniform", (option,) * 8) for option in range(6)] + [
    Seed("kl", tuple(row)) for row in PROBLEM.prior_front(4).tolist()
]
DISTINCT = [seed for number, seed in enumerate(SEEDS) if seed.point not in {other.point for other in SEEDS[:number]}]


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def sampler(problem: Problem = PROBLEM, seed: int = 0, objectives: int = 1) -> PriorCorrectedSampler:
    return PriorCorrectedSampler(SPACE, problem.engine(objectives=objectives), SEEDS, REFERENCE_DB, seed)


def study(sampler: PriorCorrectedSampler, *costs: str) -> optuna.Study:
    return optuna.create_study(directions=["maximize", *(costs or ("minimize",))], sampler=sampler)


def objective(trial: optuna.Trial) -> tuple[float, float]:
    point = np.array([trial.suggest_int(name, 0, 5) for name in NAMES])
    return float(PROBLEM.quality(point)[0]), float(PROBLEM.cost(point)[0])


def points(found: optuna.Study) -> list[tuple[int, ...]]:
    return [tuple(trial.params[name] for name in NAMES) for trial in found.get_trials()]


def test_seeds_come_first_each_once_and_then_what_the_engine_proposes() -> None:
    found = study(sampler())
    found.optimize(objective, n_trials=40, n_jobs=1)
    assert points(found)[: len(DISTINCT)] == [seed.point for seed in DISTINCT]
    assert len(set(points(found))) == 40
    strategies = [trial.system_attrs[STRATEGY_KEY] for trial in found.get_trials()]
    assert strategies == [seed.strategy for seed in DISTINCT] + ["prior-corrected"] * (40 - len(DISTINCT))
    assert PROBLEM.hypervolume(np.array(points(found))) > PROBLEM.hypervolume(PROBLEM.prior_front(40))


def test_several_trials_asked_for_at_once_differ() -> None:
    found = study(sampler())
    space = {name: IntDistribution(0, 5) for name in NAMES}
    for _ in range(25):
        found.ask(space)
    assert len(set(points(found))) == 25


def test_a_study_that_holds_finished_trials_goes_on_from_them() -> None:
    """Trials of another process: its seeds are not scored again, and what it found is known to the engine."""
    first = study(sampler())
    first.optimize(objective, n_trials=25, n_jobs=1)
    second = study(sampler(seed=5))
    second.add_trials(first.get_trials())
    second.optimize(objective, n_trials=10, n_jobs=1)
    assert len(set(points(second))) == 35
    assert all(trial.system_attrs[STRATEGY_KEY] == "prior-corrected" for trial in second.get_trials()[25:])
    told = PROBLEM.engine()
    told.refer(REFERENCE_DB)
    for point in points(first):
        score(PROBLEM, told, np.array([point]))
    assert told.propose(np.random.default_rng(5)) == points(second)[25]


def test_trials_that_failed_are_not_repeated() -> None:
    found = study(sampler())

    def broken(trial: optuna.Trial) -> tuple[float, float]:
        values = objective(trial)
        if trial.number % 3 == 0:
            raise RuntimeError("no sound")
        return values

    found.optimize(broken, n_trials=30, n_jobs=1, catch=RuntimeError)
    assert {trial.state for trial in found.get_trials()} == {TrialState.COMPLETE, TrialState.FAIL}
    assert len(set(points(found))) == 30


@pytest.mark.parametrize(
    "directions", [["maximize"], ["minimize", "minimize"], ["maximize", "maximize"], ["maximize", "minimize", "maximize"]]
)
def test_other_directions_are_refused(directions: list[str]) -> None:
    found = optuna.create_study(directions=directions, sampler=sampler())
    with pytest.raises(ValueError, match="maximises quality and minimises one to three costs"):
        found.ask({name: IntDistribution(0, 5) for name in NAMES})


def test_a_parameter_that_is_no_choice_is_refused() -> None:
    found = study(sampler())
    with pytest.raises(ValueError, match="parameter 'colour' is no choice of the space"):
        found.ask().suggest_float("colour", 0.0, 1.0)


def test_the_same_seed_gives_the_same_study_and_reseeding_another() -> None:
    runs = []
    for seed, reseed in ((0, False), (0, False), (1, False), (0, True)):
        mine = sampler(seed=seed)
        if reseed:
            mine.reseed_rng()
        found = study(mine)
        found.optimize(objective, n_trials=len(DISTINCT) + 12, n_jobs=1)
        runs.append(points(found))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert runs[0] != runs[3]


def test_a_space_that_is_known_whole_gives_known_points() -> None:
    """Optuna wants a point from every draw."""
    problem = make_problem(1, counts=(2, 2))
    space = SearchSpace((("a.weight", (2, 3)), ("b.weight", (2, 3))))
    engine: PosteriorEngine = problem.engine()
    found = study(PriorCorrectedSampler(space, engine, [], REFERENCE_DB))
    parameters = {"a.weight": IntDistribution(0, 1), "b.weight": IntDistribution(0, 1)}
    for _ in range(6):
        trial = found.ask(parameters)
        found.tell(trial, (1.0, 2.0))
    drawn = [tuple(trial.params.values()) for trial in found.get_trials()]
    assert set(drawn[:4]) == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_three_costs_are_minimised_together() -> None:
    found = study(sampler(objectives=3), "minimize", "minimize", "minimize")

    def several(trial: optuna.Trial) -> tuple[float, ...]:
        quality, size = objective(trial)
        point = np.array([trial.params[name] for name in NAMES])
        return quality, size, float(PROBLEM.cost(point, 1)[0]), float(PROBLEM.cost(point, 2)[0])

    found.optimize(several, n_trials=25, n_jobs=1)
    assert len(set(points(found))) == 25
