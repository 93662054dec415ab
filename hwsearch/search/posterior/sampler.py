"""The posterior engine as an Optuna sampler, for studies that Optuna itself drives.

The study has one integer parameter for each free choice and each option of structure, the index of its value. Its first objective
is the quality in dB, to be maximised; the others are the costs of the engine, to be minimised. The driver of this package uses
`PosteriorProposer` instead, which needs no study.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hwsearch.search.posterior.engine import PosteriorEngine
from hwsearch.search.space import Point, SearchSpace, Seed

STRATEGY_KEY = "hwsearch:strategy"
"""System attribute with the origin of a trial: the strategy of a seed, or `prior-corrected`."""


class PriorCorrectedSampler(BaseSampler):
    """Proposes the seeds, each once, and then the points of the engine.

    It learns from all finished trials of the study, so that several processes can share a study through a storage.
    """

    def __init__(
        self, space: SearchSpace, engine: PosteriorEngine, seeds: Sequence[Seed], reference_db: float, seed: int = 0
    ) -> None:
        """Make a sampler for one study.

        Args:
            space: its free choices and options of structure are the parameters.
            engine: a new one, with one cost for each objective of the study except quality.
            seeds: the points to score first.
            reference_db: quality of the full-precision network, dB.
            seed: of the draws.
        """
        engine.refer(reference_db)
        self._engine = engine
        self._space: dict[str, BaseDistribution] = {name: IntDistribution(0, len(values) - 1) for name, values in space.variables}
        self._canonical = space.canonical
        self._seeds = list(seeds)
        self._seed = seed
        self._rng = np.random.default_rng(seed)
        self._heard: set[int] = set()
        self._known: set[Point] = set()

    def reseed_rng(self) -> None:
        """Draw differently from now on; Optuna calls this in parallel threads."""
        self._rng = np.random.default_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the whole space."""
        return self._space

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """Return the next seed that is not known yet, or else the proposal of the engine.

        Raises:
            ValueError: the study has other directions.
        """
        if study.directions[0] is not StudyDirection.MAXIMIZE or set(study.directions[1:]) != {StudyDirection.MINIMIZE}:
            raise ValueError("wanted a study that maximises quality and minimises one to three costs")
        self._hear(study)
        proposed = next((seed for seed in self._seeds if seed.point not in self._known), None)
        point = self._engine.propose(self._rng) if proposed is None else proposed.point
        if point is None:
            random = (int(self._rng.integers(d.high + 1)) for d in self._space.values() if isinstance(d, IntDistribution))
            point = self._canonical(tuple(random))
        self._known.add(point)
        self._engine.start(point)
        strategy = "prior-corrected" if proposed is None else proposed.strategy
        study._storage.set_trial_system_attr(trial._trial_id, STRATEGY_KEY, strategy)  # noqa: SLF001 (as Optuna's own samplers do)
        return dict(zip(self._space, point, strict=True))

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """Refuse: every parameter is a choice of the space.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"parameter '{param_name}' is no choice of the space; wanted its choices only, from 0 to widths - 1")

    def _hear(self, study: Study) -> None:
        """Learn from the trials that have finished since the last draw."""
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED)):
            if trial.number in self._heard or trial.params.keys() != self._space.keys():
                continue
            self._heard.add(trial.number)
            point = tuple(int(trial.params[name]) for name in self._space)
            self._known.add(point)
            self._engine.finish(point, trial.values[0] if trial.state is TrialState.COMPLETE and trial.values else None)
