"""The Optuna study: in memory, to sample from; and its mirror on disk, for Optuna's own tools.

Both are rebuilt from the record. The study in memory holds indices of widths, which are what samplers can
order; the mirror holds finished candidates only, with the widths themselves, so that nothing in it is ever
left running.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from hwsearch.errors import UserError
from hwsearch.experiment import SearchConfig
from hwsearch.files import atomic_write
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
        self._objectives = objectives
        self._sites = [site for site, _ in space.free]
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        journal = _Journal()
        study = optuna.create_study(
            storage=JournalStorage(journal),
            study_name=name,
            directions=[objective.direction.value for objective in objectives],
        )
        header = list(journal.logs)
        study.add_trial(
            create_trial(
                values=[0.0] * len(objectives),
                params={site: widths[0] for site, widths in space.free},
                distributions={site: CategoricalDistribution(widths) for site, widths in space.free},
            )
        )
        # What Optuna writes for one trial is the form of all: writing hundreds of distributions anew takes it milliseconds.
        self._form = _json({key: value for key, value in journal.logs[-1].items() if key not in _OF_ONE_TRIAL})[:-1]
        self._path = path

        def write(temporary: Path) -> None:
            with temporary.open("wb") as stream:
                stream.writelines(_json(log) + b"\n" for log in header)
                stream.writelines(self._line(result) for result in results)

        atomic_write(path, write)

    def add(self, result: Result) -> None:
        """Add a finished candidate.

        Optuna's own file backend puts every line on the disk at once and leaves a lock behind when it is killed. The mirror needs
        neither: the record is durable, the folder is locked, and a torn mirror is written anew.

        Raises:
            UserError: it cannot be written, for example because the disk is full.
        """
        try:
            with self._path.open("ab") as stream:
                stream.write(self._line(result))
        except OSError as error:
            raise UserError(
                f"{self._path}: cannot be written ({error.strerror}); the record beside it is whole: make room, and the same "
                "command goes on"
            ) from None

    def _line(self, result: Result) -> bytes:
        scored = result.metrics is not None
        time = datetime.now(UTC).isoformat(timespec="microseconds")
        attributes = {"candidate": result.candidate.number, "strategy": result.candidate.strategy}
        values = objective_values(self._objectives, result.metrics or {}, result.costs) if scored else None
        own = {
            "datetime_start": time,
            "datetime_complete": time,
            "state": int(TrialState.COMPLETE if scored else TrialState.FAIL),
            "value": values[0] if values is not None and len(values) == 1 else None,
            "values": values if values is not None and len(values) > 1 else None,
            "params": dict(zip(self._sites, result.candidate.point, strict=True)),
            "user_attrs": {**attributes, **(result.metrics or {}), **result.costs},
        }
        return self._form + b"," + _json(own)[1:] + b"\n"


_OF_ONE_TRIAL = ("datetime_start", "datetime_complete", "state", "value", "values", "params", "user_attrs")
"""What differs from trial to trial in Optuna's journal. Parameters are written as positions of their categories, as in points."""


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


class _Journal(BaseJournalBackend):
    """A journal in memory, to see what Optuna writes."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        return self.logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.logs += [json.loads(_json(log)) for log in logs]
