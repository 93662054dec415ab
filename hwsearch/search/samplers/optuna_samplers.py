"""Optuna's samplers as proposers.

They draw from a study in memory that is rebuilt from the record. Its parameters are indices of widths, so that samplers know the
order of the widths.

Optuna's samplers carry a random generator from draw to draw, so a resumed search would go on differently, and a sampler with the
same seed would repeat its first draws. Therefore each draw gets a new sampler, seeded by the experiment's seed and the place of
the draw in the search.
"""

import warnings
from collections.abc import Callable, Mapping

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from hwsearch.search.objectives import objective_values, objectives_of
from hwsearch.search.proposer import Candidate, Proposal, Proposer, Result
from hwsearch.search.samplers.sampler import Searched
from hwsearch.search.space import Point

_GENERATION_KEY = "NSGAIISampler:generation"
"""System attribute with the NSGA-II generation of a trial. A trial without it never becomes a parent."""


def random(searched: Searched) -> Proposer:
    """Draw uniformly at random."""
    return OptunaProposer(searched, lambda seed: RandomSampler(seed=seed))


def nsga2(searched: Searched) -> Proposer:
    """Breed generations of `search.population` candidates. The seeds are the first generation."""
    population = searched.experiment.search.population
    return OptunaProposer(searched, lambda seed: NSGAIISampler(population_size=population, seed=seed))


def tpe(searched: Searched) -> Proposer:
    """Draw at random until `search.population` candidates are scored, then from the estimator.

    Running trials count as bad ones (constant liar), so that parallel workers spread out.
    """
    first = searched.experiment.search.population
    return OptunaProposer(
        searched, lambda seed: TPESampler(n_startup_trials=first, multivariate=True, constant_liar=True, seed=seed)
    )


def gp(searched: Searched) -> Proposer:
    """Draw at random until `search.population` candidates are scored, then from the Gaussian process."""
    first = searched.experiment.search.population

    def sampler(seed: int) -> GPSampler:
        with warnings.catch_warnings():
            # The argument for deterministic objectives is experimental.
            warnings.simplefilter("ignore", ExperimentalWarning)
            return GPSampler(n_startup_trials=first, deterministic_objective=True, seed=seed)

    return OptunaProposer(searched, sampler)


class OptunaProposer:
    """Proposes what a sampler of Optuna draws, given everything scored so far."""

    def __init__(self, searched: Searched, make: Callable[[int], BaseSampler]) -> None:
        """Start with an empty study. `make` makes the sampler from a seed."""
        experiment = searched.experiment
        self._make = make
        self._seed = experiment.seed
        self._strategy = experiment.search.sampler
        self._objectives = objectives_of(experiment.search.objectives)
        self._canonical = searched.space.canonical
        self._distributions: dict[str, BaseDistribution] = {
            name: IntDistribution(0, len(values) - 1) for name, values in searched.space.variables
        }
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(
            sampler=make(self._seed), directions=[objective.direction.value for objective in self._objectives]
        )
        self._heard = 0
        self._repeats = 0
        self._sampled = False
        self._drawn: tuple[int, Point] | None = None
        self._trials: dict[int, int] = {}
        self._generations: set[int] = set()

    def started(self, reference: Mapping[str, float]) -> None:
        """Do nothing: samplers know candidates only."""

    def ask(self) -> Proposal:
        """Draw from the sampler."""
        self._drop_draw()
        sampler = self._make(int(np.random.SeedSequence([self._seed, self._heard, self._repeats]).generate_state(1)[0]))
        # The space is given, not inferred from past trials.
        vars(sampler).update(infer_relative_search_space=lambda _study, _trial: self._distributions)
        self.study.sampler = sampler
        self._repeats += 1
        trial = self.study.ask(self._distributions)
        point = tuple(trial.params[name] for name in self._distributions)
        self._drawn = (trial.number, point)
        generation = self._frozen(trial.number).system_attrs.get(_GENERATION_KEY)
        # The draw of another point than the canonical one is dropped, as it would be in a resumed search.
        return Proposal(self._canonical(point), self._strategy, {} if generation is None else {"generation": generation})

    def asked(self, candidate: Candidate) -> None:
        """Keep the trial just drawn, or add one for a candidate from elsewhere or from the record.

        Candidates that come before the first draw are the first generation. Later ones join the current generation.
        """
        if self._drawn is not None and self._drawn[1] == candidate.point:
            number, self._drawn = self._drawn[0], None
        else:
            self._drop_draw()
            number = self._add_running(candidate)
        self._sampled = self._sampled or "generation" in candidate.state
        self._trials[candidate.number] = number
        self._heard += 1
        self._repeats = 0

    def tell(self, result: Result) -> None:
        """Finish the candidate's trial."""
        number = self._trials[result.candidate.number]
        if result.metrics is None:
            self.study.tell(number, state=TrialState.FAIL)
        else:
            self.study.tell(number, objective_values(self._objectives, result.metrics, result.costs))

    def _add_running(self, candidate: Candidate) -> int:
        generation = candidate.state.get("generation", None if self._sampled else 0)
        self.study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=dict(zip(self._distributions, candidate.point, strict=True)),
                distributions=dict(self._distributions),
                system_attrs={} if generation is None else {_GENERATION_KEY: generation},
            )
        )
        number = len(self.study.get_trials(deepcopy=False)) - 1
        if isinstance(self.study.sampler, NSGAIISampler):
            generation = self.study.sampler.get_trial_generation(self.study, self._frozen(number))
            if generation not in self._generations:
                # Parents are chosen among what is finished when a generation begins, also in a replay.
                self._generations.add(generation)
                self.study.sampler.get_parent_population(self.study, generation)
        return number

    def _drop_draw(self) -> None:
        """Fail a draw that was not accepted; samplers ignore failed trials."""
        if self._drawn is not None:
            self.study.tell(self._drawn[0], state=TrialState.FAIL)
            self._drawn = None

    def _frozen(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]
