"""The Optuna study in memory, to sample from: rebuilt from the record, with indices of widths, which samplers can order."""

from collections.abc import Callable, Mapping

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from hwsearch.search.objectives import objective_values, objectives_of
from hwsearch.search.proposer import Candidate, Proposal, Result
from hwsearch.search.samplers.resumable import GENERATION_KEY, ResumableSampler
from hwsearch.search.samplers.sampler import Searched
from hwsearch.search.space import Point


class OptunaProposer:
    """Proposes what one of Optuna's samplers draws from everything scored so far."""

    def __init__(self, searched: Searched, make: Callable[[int], BaseSampler]) -> None:
        """Start a study that is empty.

        Args:
            searched: the search.
            make: one of Optuna's samplers from its seed.
        """
        experiment = searched.experiment
        self._strategy = experiment.search.sampler
        self._objectives = objectives_of(experiment.search.objectives)
        self._distributions: dict[str, BaseDistribution] = {
            name: IntDistribution(0, len(widths) - 1) for name, widths in searched.space.free
        }
        self._sampler = ResumableSampler(make, self._distributions, experiment.seed)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(
            sampler=self._sampler, directions=[objective.direction.value for objective in self._objectives]
        )
        self._heard = 0
        self._repeats = 0
        self._sampled = False
        self._drawn: tuple[int, Point] | None = None
        self._trials: dict[int, int] = {}

    def started(self, reference: Mapping[str, float]) -> None:
        """Samplers know candidates only."""

    def ask(self) -> Proposal:
        """Draw from the sampler."""
        self._drop_draw()
        self._sampler.begin_draw(self._heard, self._repeats)
        self._repeats += 1
        trial = self.study.ask(self._distributions)
        point = tuple(trial.params[site] for site in self._distributions)
        self._drawn = (trial.number, point)
        generation = self._frozen(trial.number).system_attrs.get(GENERATION_KEY)
        return Proposal(point, self._strategy, {} if generation is None else {"generation": generation})

    def asked(self, candidate: Candidate) -> None:
        """Keep the trial just drawn, or add one for a candidate from elsewhere or from the record.

        Candidates that come before the sampler has drawn anything are its first generation; later ones join
        the current one.
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
                system_attrs={} if generation is None else {GENERATION_KEY: generation},
            )
        )
        number = len(self.study.get_trials(deepcopy=False)) - 1
        self._sampler.register(self.study, self._frozen(number))
        return number

    def _drop_draw(self) -> None:
        """Fail a draw that was not accepted; samplers ignore failed trials."""
        if self._drawn is not None:
            self.study.tell(self._drawn[0], state=TrialState.FAIL)
            self._drawn = None

    def _frozen(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]
