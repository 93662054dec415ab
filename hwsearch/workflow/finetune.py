"""The training of chosen candidates of a search."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hwsearch.errors import UserError
from hwsearch.executor import check_workers, ray_session
from hwsearch.experiment import Fidelity
from hwsearch.search.costs import CostBook
from hwsearch.search.driver import Task, run_finetuning
from hwsearch.search.driver_account import Step, driver_account
from hwsearch.search.experiment_space import experiment_space
from hwsearch.search.log import events_logged, search_log
from hwsearch.search.objectives import QUALITY
from hwsearch.search.record import Failed, FolderLock, Scored, check_unlocked, read_record
from hwsearch.sensitivity.recoverability import check_trainable
from hwsearch.training.pool import build_pool
from hwsearch.workflow.caller import DEFAULTS, SILENT, Listener, Resources
from hwsearch.workflow.checks import check_provenance, check_searched, provenance
from hwsearch.workflow.search import Recorded, open_scorers
from hwsearch.workflow.training import build, prepare
from hwsearch.workspace import Workspace


@dataclass(frozen=True)
class Finetuned:
    """A candidate that was trained further."""

    candidate: int
    fidelity: Fidelity
    """The highest fidelity at which the search itself had scored it."""
    before_db: float
    """Its SI-SNR improvement there."""
    after_db: float


def finetune(
    workspace: Workspace,
    candidates: Sequence[int],
    steps: int | None = None,
    resources: Resources = DEFAULTS,
    listener: Listener = SILENT,
) -> list[Finetuned]:
    """Train candidates of a search further, and score them. The same call continues an interrupted training.

    A candidate that was trained so before is left as it is, whatever its number of steps was.

    Args:
        workspace: the run.
        candidates: numbers of candidates.
        steps: number of training steps; None: `qat.finetune_steps`.
        resources: processes and workers to use.
        listener: hears of every step.

    Returns:
        All these candidates, in the order of their numbers.

    Raises:
        UserError: nothing was done, because a candidate was not scored, there is nothing to train on, the base or the data have
            changed or another driver works there; or the training of a candidate failed, such as by a diverging loss.
    """
    check_workers(resources.workers, resources.ray_address, workspace.experiment.workers)
    check_unlocked(workspace.folder)
    chosen = sorted(set(candidates))
    scores = _scores(workspace.folder, chosen)
    finished = [number for number in chosen if Fidelity.FINETUNED in scores[number]]
    for number in finished:
        listener.said(f"candidate {number} is finetuned already")
    if finished == chosen:
        return _finetuned(scores)
    check_trainable(workspace.experiment, "finetuning trains")
    check_searched(workspace)
    failures: dict[int, str] = {}
    with FolderLock(workspace.folder) as lock, driver_account(workspace.folder) as account:
        account.step(Step.DATA)
        build(workspace, resources.processes, Recorded(listener, account))
        check_provenance(workspace)
        account.step(Step.PREPARATION)
        with search_log(workspace.folder) as log, events_logged(log, listener.said):
            heard = Recorded(listener, account, log, workspace.experiment.search.objectives)
            failures |= _train(workspace, chosen, steps, resources, heard, lock)
    if failures:
        number, reason = min(failures.items())
        others = f", and {len(failures) - 1} more" if len(failures) > 1 else ""
        raise UserError(f"candidate {number} was not finetuned: {reason}{others}; the others are in the record")
    return _finetuned(_scores(workspace.folder, chosen))


def _train(
    workspace: Workspace,
    chosen: Sequence[int],
    steps: int | None,
    resources: Resources,
    listener: Listener,
    lock: FolderLock,
) -> dict[int, str]:
    """Train and score candidates; return the reasons of failures."""
    experiment = workspace.experiment
    space = experiment_space(experiment)
    costs = CostBook(experiment, space)
    prepare(workspace, experiment.search.weight_bits)
    with ray_session(resources.workers, experiment.workers):
        pool = build_pool(workspace, resources.processes, listener.progress(Step.POOL.value))
        with open_scorers(workspace, pool, resources) as executor:
            task = Task(experiment, space, costs.charge, workspace.folder, provenance(workspace))
            wanted = steps or experiment.qat.finetune_steps
            return dict(run_finetuning(task, executor, chosen, wanted, listener.scored, lock=lock))


def _scores(folder: Path, chosen: Sequence[int]) -> dict[int, dict[Fidelity, float]]:
    """Read the SI-SNR improvements of candidates by fidelity.

    Raises:
        UserError: no record, or a damaged one; or a candidate that does not exist or was not scored.
    """
    scores: dict[int, dict[Fidelity, float]] = {number: {} for number in chosen}
    failures: dict[int, str] = {}
    asked = 0
    for event in read_record(folder)[1]:
        asked = max(asked, event.candidate + 1)
        if isinstance(event, Scored) and event.candidate in scores:
            scores[event.candidate][event.fidelity] = event.metrics[QUALITY]
        elif isinstance(event, Failed):
            failures[event.candidate] = event.reason
    for number in chosen:
        if number >= asked:
            raise UserError(f"{folder}: no candidate {number}; 'hwsearch pareto {folder}' lists them")
        if scores[number].keys() <= {Fidelity.FINETUNED}:
            why = f"failed ({failures[number]})" if number in failures else "is not scored yet"
            raise UserError(f"{folder}: candidate {number} {why}; wanted one that was scored")
    return scores


def _finetuned(scores: dict[int, dict[Fidelity, float]]) -> list[Finetuned]:
    found = []
    for number, by_fidelity in scores.items():
        before = [fidelity for fidelity in Fidelity if fidelity in by_fidelity and fidelity is not Fidelity.FINETUNED][-1]
        found.append(Finetuned(number, before, by_fidelity[before], by_fidelity[Fidelity.FINETUNED]))
    return found
