"""The Optuna study: in memory, to sample from; and its mirror on disk, for Optuna's own tools.

Both are rebuilt from the record. The study in memory holds indices of widths, which are what samplers can
order; the mirror holds finished candidates only, with the widths themselves, so that nothing in it is ever
left running.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from hwsearch.experiment import SearchConfig
from hwsearch.files import atomic_write_bytes
from hwsearch.search.objectives import Objective
from hwsearch.search.proposer import Candidate, Proposal, Result
from hwsearch.search.samplers import GENERATION_KEY, ResumableSampler, sampler_factory
from hwsearch.search.space import Point, SearchSpace

MIRROR_FILE = "optuna-journal.log"


def objective_values(
    objectives: Sequence[Objective], metrics: Mapping[str, float], costs: Mapping[str, float | None]
) -> list[float]:
    """The objectives of a scored candidate, in order.

    Raises:
        KeyError: neither metrics nor costs have a finite value for an objective.
    """
    values = {name: value for name, value in {**costs, **metrics}.items() if value is not None}
    return [values[objective.column] for objective in objectives]


class OptunaProposer:
    """Proposes what one of Optuna's samplers draws from everything scored so far."""

    def __init__(self, search: SearchConfig, space: SearchSpace, objectives: Sequence[Objective], seed: int) -> None:
        self._strategy = search.sampler.value
        self._objectives = objectives
        self._distributions: dict[str, BaseDistribution] = {
            name: IntDistribution(0, len(widths) - 1) for name, widths in space.free
        }
        self._sampler = ResumableSampler(sampler_factory(search.sampler, search.population), self._distributions, seed)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(
            sampler=self._sampler, directions=[objective.direction.value for objective in objectives]
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


class StudyMirror:
    """An Optuna journal file of the finished candidates, made at the start of a driver and appended to."""

    def __init__(
        self,
        path: Path,
        name: str,
        space: SearchSpace,
        objectives: Sequence[Objective],
        results: Iterable[Result],
    ) -> None:
        """Write the results known so far.

        Another process that reads the file sees the old one or the new one, whole.
        """
        self._space = space
        self._objectives = objectives
        self._distributions = {site: CategoricalDistribution(widths) for site, widths in space.free}
        self._journal = _Journal()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            storage=JournalStorage(self._journal),
            study_name=name,
            directions=[objective.direction.value for objective in objectives],
        )
        for result in results:
            self.add(result)
        self._journal.write_to(path)

    def add(self, result: Result) -> None:
        """Add a finished candidate."""
        allocation = self._space.decode(result.candidate.point).by_site
        scored = result.metrics is not None
        self._study.add_trial(
            create_trial(
                state=TrialState.COMPLETE if scored else TrialState.FAIL,
                values=objective_values(self._objectives, result.metrics or {}, result.costs) if scored else None,
                params={site: allocation[site] for site in self._distributions},
                distributions=dict(self._distributions),
                user_attrs={
                    "candidate": result.candidate.number,
                    "strategy": result.candidate.strategy,
                    **(result.metrics or {}),
                    **result.costs,
                },
            )
        )


class _Journal(BaseJournalBackend):
    """The mirror's one writer: lines in memory, and from `write_to` on also appended to a file.

    Optuna's own file backend puts every line on the disk at once and leaves a lock behind when it is killed.
    The mirror needs neither: the record is durable, the folder is locked, and a torn mirror is written anew.
    """

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._path: Path | None = None

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        return [json.loads(line) for line in self._lines[log_number_from:]]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = [json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs]
        self._lines += lines
        if self._path is not None:
            with self._path.open("ab") as stream:
                stream.write(b"".join(lines))

    def write_to(self, path: Path) -> None:
        atomic_write_bytes(path, b"".join(self._lines))
        self._path = path
