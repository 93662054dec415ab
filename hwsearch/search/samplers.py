"""Optuna's samplers, made to draw the same for the same record.

Optuna's samplers carry a random generator from draw to draw, so a search resumed from its record would go on
differently, and one seeded as before would repeat its first draws. `ResumableSampler` builds the sampler anew
for every draw, seeded by the experiment's seed and the draw's place in the search.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from hwsearch.experiment import SamplerKind

GENERATION_KEY = "NSGAIISampler:generation"
"""System attribute with a trial's NSGA-II generation. A trial without it never becomes a parent."""


def sampler_factory(kind: SamplerKind, population: int) -> Callable[[int], BaseSampler]:
    """A function from seed to one of Optuna's samplers.

    TPE is multivariate and treats running trials as bad ones (constant liar), so that parallel workers spread
    out; it and the Gaussian process draw at random until `population` candidates are scored, seeds among them.

    Raises:
        ValueError: the posterior sampler, which is not Optuna's.
    """
    match kind:
        case SamplerKind.RANDOM:
            return lambda seed: RandomSampler(seed=seed)
        case SamplerKind.NSGA2:
            return lambda seed: NSGAIISampler(population_size=population, seed=seed)
        case SamplerKind.TPE:
            return lambda seed: TPESampler(n_startup_trials=population, multivariate=True, constant_liar=True, seed=seed)
        case SamplerKind.GP:
            return lambda seed: _gaussian_process(population, seed)
        case SamplerKind.POSTERIOR:
            raise ValueError("the posterior sampler is not one of Optuna's")


def _gaussian_process(population: int, seed: int) -> GPSampler:
    with warnings.catch_warnings():
        # That it knows a deterministic objective is an experimental argument; it is the one that fits.
        warnings.simplefilter("ignore", ExperimentalWarning)
        return GPSampler(n_startup_trials=population, deterministic_objective=True, seed=seed)


class ResumableSampler(BaseSampler):
    """Delegates each draw to a sampler made for it; the space is given, not inferred from past trials.

    Not for `study.optimize`: `begin_draw` must come before every `study.ask`.
    """

    def __init__(self, make: Callable[[int], BaseSampler], space: Mapping[str, BaseDistribution], seed: int) -> None:
        self._make = make
        self._space = dict(space)
        self._seed = seed
        self._sampler = make(seed)
        self._generations: set[int] = set()

    def begin_draw(self, place: int, repeat: int) -> None:
        """Seed the next draw by its place in the search, and how often that place was drawn for already."""
        self._sampler = self._make(int(np.random.SeedSequence([self._seed, place, repeat]).generate_state(1)[0]))

    def register(self, study: Study, trial: FrozenTrial) -> None:
        """Let NSGA-II count a trial that it did not draw as a parent; other samplers do so anyway."""
        if isinstance(self._sampler, NSGAIISampler):
            generation = self._sampler.get_trial_generation(study, trial)
            if generation not in self._generations:
                # Parents are chosen from what is finished when a generation begins, also in a replay.
                self._generations.add(generation)
                self._sampler.get_parent_population(study, generation)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space, always."""
        return self._space

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """Delegate."""
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """Delegate."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Delegate."""
        self._sampler.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Delegate."""
        self._sampler.after_trial(study, trial, state, values)
