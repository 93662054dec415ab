"""Optuna's samplers, made to draw the same for the same record.

Optuna's samplers carry a random generator from draw to draw, so a search resumed from its record would go on
differently, and one seeded as before would repeat its first draws. `ResumableSampler` builds the sampler anew
for every draw, seeded by the experiment's seed and the draw's place in the search.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

GENERATION_KEY = "NSGAIISampler:generation"
"""System attribute with a trial's NSGA-II generation. A trial without it never becomes a parent."""


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
