"""What a study outside the process must say of a search, wherever it lies."""

from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from hwsearch.executor import LocalExecutor
from hwsearch.search.record import REFERENCE, SCHEMA_VERSION, Failed, Scored, read_record
from hwsearch.search.scoring import ScoringJob
from hwsearch.search.studies.mirror import MIRROR_FILE
from tests.search.synthetic import events, make_experiment, score

RICH = make_experiment(
    20,
    validation=4,
    validation_mixtures=2,
    promotions=[{"fidelity": "post-training", "keep": 6}],
    allowed={"input_proj.output": [4, 8]},
    groups=[["blocks.0.expand.weight", "blocks.1.expand.weight"]],
)
"""Two fidelities, a free activation, and sites that share a width."""


def scorer(fail: int | None = None, hook: Callable[[int], None] = lambda _: None) -> LocalExecutor:
    """Calls `hook` with the number of each job, and fails one of them."""
    count = 0

    def work(job: ScoringJob) -> Mapping[str, float]:
        nonlocal count
        count += 1
        hook(count)
        if count == fail:
            raise RuntimeError("no sound")
        return score(job)

    return LocalExecutor(lambda: work)


def load_mirror(folder: Path) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(folder / MIRROR_FILE)))
    return optuna.load_study(study_name="synthetic", storage=storage)


def finished(folder: Path) -> list[Scored | Failed]:
    """What the record holds, the reference not among it."""
    return [event for event in events(folder) if isinstance(event, Scored | Failed) and event.candidate != REFERENCE]


def check_trials(folder: Path, study: optuna.Study) -> None:
    """It holds what the record has finished, each once, and nothing that is running."""
    held = Counter((trial.user_attrs["candidate"], trial.user_attrs["fidelity"]) for trial in study.trials)
    assert held == Counter((event.candidate, event.fidelity.value) for event in finished(folder))
    assert {trial.state for trial in study.trials} <= {TrialState.COMPLETE, TrialState.FAIL}


def check_attributes(folder: Path, study: optuna.Study) -> None:
    """All that the record says stands in the study, and the allocations follow from parameters and the study's attributes."""
    header, _ = read_record(folder)
    assert {trial.user_attrs["run"] for trial in study.trials} == {header.identity}
    described = study.user_attrs["hwsearch"]
    assert described["experiment"] == header.experiment
    assert described["versions"] == header.versions
    assert study.metric_names == [objective.column for objective in header.objectives]
    assert [direction.name.lower() for direction in study.directions] == [o.direction.value for o in header.objectives]
    by_key = {(event.candidate, event.fidelity.value): event for event in finished(folder)}
    for trial in study.trials:
        found = trial.user_attrs
        event = by_key[found["candidate"], found["fidelity"]]
        assert found["strategy"] == event.strategy
        assert (found["seed"], found["worker"], found["attempts"]) == (header.seed, event.worker, event.attempts)
        assert found["seconds"] == event.seconds
        assert found["versions"] == (event.versions or header.versions)
        assert found["schema_version"] == SCHEMA_VERSION
        assert trial.datetime_complete == datetime.fromisoformat(event.time).astimezone().replace(tzinfo=None)
        if isinstance(event, Failed):
            assert found["reason"] == event.reason == "RuntimeError: no sound"
            assert trial.state is TrialState.FAIL
            continue
        assert (event.metrics | event.costs).items() <= found.items()
        assert trial.values == [event.metrics["si_snr_improvement_db"], event.costs["size_bytes"]]
        implied = dict(described["fixed_widths"]) | trial.params
        for name, members in described["groups"].items():
            implied |= dict.fromkeys(members, trial.params[name])
        assert implied == event.allocation
