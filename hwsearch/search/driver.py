"""The driver: asks proposers, keeps the workers busy, writes the record, and promotes candidates to higher fidelities.

Everything that the driver knows follows from the record, so it can be killed at any instant and run again. Candidates that were
asked for but not scored are submitted again under their numbers; none is scored twice. If results arrive in the same order, the
search goes on as if it had never been interrupted. With warm starts, that order also decides where a training starts.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwsearch.errors import UserError
from hwsearch.executor import NO_ANSWER, Executor, Outcome
from hwsearch.experiment import Experiment, Fidelity
from hwsearch.process.interrupts import checkpoint
from hwsearch.search.identity import search_header
from hwsearch.search.known_candidates import KnownCandidates
from hwsearch.search.outcomes import Charged, InFlight, finite, settled
from hwsearch.search.progress import INTERRUPTED, How, SearchProgress, SearchSummary
from hwsearch.search.proposer import Plan, Proposer, Result, SeedProposer, new_proposal
from hwsearch.search.record import (
    REFERENCE,
    REFERENCE_STRATEGY,
    Asked,
    Failed,
    FolderLock,
    Record,
    Scored,
    now,
    read_record,
    versions_here,
)
from hwsearch.search.scoring import ScoringJob, later_rungs
from hwsearch.search.space import Point, SearchSpace
from hwsearch.search.stopping import Budgets
from hwsearch.search.studies.address import StorageAddress
from hwsearch.search.studies.mirror import MIRROR_FILE, StudyMirror
from hwsearch.search.studies.trials import Finished
from hwsearch.search.trained_weights import TrainedWeights
from hwsearch.separator.configuration import Configuration

if TYPE_CHECKING:
    from hwsearch.search.studies.publisher import Published, Publisher

Cost = Callable[[Sequence[Configuration]], list[dict[str, float]]]
"""Costs of configurations by column name, such as `size_bytes` or `latency_ms[ethos-u55-128]`."""

Scorers = Executor[ScoringJob, Mapping[str, float]]

MOST_AT_ONCE = 64
"""The most candidates whose costs are computed together, and the most outcomes that are recorded together. The time that the
driver spends on each candidate limits how many workers it keeps busy; batches shorten it."""


@dataclass(frozen=True)
class Task:
    """What is searched."""

    experiment: Experiment
    space: SearchSpace
    cost: Cost
    """A cost that is not finite is recorded as absent."""
    folder: Path
    """The run folder: the record, the lock, the mirror for Optuna's tools, trained weights."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """What else the candidates depend on, such as the hash of the base; must be the same on a resume."""


def run_search(
    task: Task,
    executor: Scorers,
    plan: Plan,
    progress: Callable[[SearchProgress], None] = lambda _: None,
    *,
    elapsed: Callable[[], float] | None = None,
    storage: StorageAddress | None = None,
    lock: FolderLock | None = None,
) -> SearchSummary:
    """Search, then promote the best candidates.

    The full-precision network is scored first, as candidate 0, which does not count. Then come the seeds, then the proposer's
    candidates, until `search.trials` distinct ones are scored, another budget is spent, or the proposer has no more. Each of
    `search.promotions` then scores the best candidates of the rung below again, together with full precision. If candidates have
    the weights of the shared network, the best ones are last scored without training, for comparison. `search.hours` ends these
    steps as well.

    Ctrl-C ends the search cleanly. Another call with the same folder continues it, also with an experiment that differs only in
    what `search_digest` leaves out.

    Args:
        task: what is searched.
        executor: scores candidates: metrics by column name.
        plan: the seeds, and the proposer that follows them.
        progress: called once at the start of each rung, and after every finished candidate.
        elapsed: seconds of `search.hours` that are spent; by default the time since this call.
        storage: a shared study that every finished candidate is also written to.
        lock: of the folder, if the caller holds it already.

    Raises:
        UserError: the folder belongs to another search or driver, its record is damaged, the full-precision
            network cannot be scored, or as many candidates failed as were wanted.
    """
    experiment, proposer = task.experiment, plan.proposer
    header = search_header(experiment, task.space, task.provenance)
    proposers: list[Proposer] = [SeedProposer(plan.seeds), *([] if proposer is None else [proposer])]
    # Seeds may stall if no proposer follows; otherwise all of them are scored first.
    budgets = Budgets(experiment.search, header.objectives, 0 if proposer is None else len(plan.seeds), elapsed or _clock())
    with Record(task.folder, header, lock) as record:
        search = _Search(task, record, proposers, budgets, executor, progress)
        interrupted = False
        try:
            search.replay()
            if storage is not None:
                search.publish(storage)
            search.run()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            published = search.close_published()
        return search.summary(interrupted=interrupted, published=published)


def run_finetuning(
    task: Task,
    executor: Scorers,
    chosen: Sequence[int],
    steps: int,
    progress: Callable[[SearchProgress], None] = lambda _: None,
    *,
    lock: FolderLock | None = None,
) -> Mapping[int, str]:
    """Train candidates of a finished or running search further, and score them at the fidelity `finetuned`.

    Full precision is scored there first, as at every fidelity. Candidates that are scored there already are left out. A failure
    is not recorded: another call tries the candidate again.

    Args:
        task: what was searched.
        executor: trains and scores candidates.
        chosen: numbers of candidates that were asked for.
        steps: number of training steps.
        progress: called once at the start, and after every finished candidate.
        lock: of the folder, if the caller holds it already.

    Returns:
        Reasons of failures by the number of the candidate.

    Raises:
        UserError: the folder belongs to another search or driver, its record is damaged, or the full-precision network cannot be
            scored.
        KeyboardInterrupt: Ctrl-C. What is finished is in the record; another call goes on.
    """
    experiment = task.experiment
    header = search_header(experiment, task.space, task.provenance)
    budgets = Budgets(experiment.search, header.objectives, 0, _clock())
    with Record(task.folder, header, lock) as record:
        search = _Search(task, record, (), budgets, executor, progress)
        search.replay()
        return search.finetune(chosen, steps)


class _Search:
    """A running search: its known candidates, those in flight, and the listeners that hear of each finished one."""

    def __init__(
        self,
        task: Task,
        record: Record,
        proposers: Sequence[Proposer],
        budgets: Budgets,
        executor: Scorers,
        progress: Callable[[SearchProgress], None],
    ) -> None:
        self._task = task
        self._record = record
        self._proposers = proposers
        self._budgets = budgets
        self._executor = executor
        self._progress = progress
        self._trials = task.experiment.search.trials
        header = record.header
        self._known = KnownCandidates(task.experiment, task.space, header.objectives)
        self._trained = TrainedWeights(
            task.folder,
            header.experiment,
            self._known.configuration,
            warm_start=task.experiment.qat.warm_start,
            shared=task.experiment.search.uses_shared,
        )
        self._in_flight: dict[int, InFlight] = {}
        self._charged: dict[int, Charged] = {}
        """Costs of candidates in flight, as far as they are known."""
        here = versions_here()
        self._versions = None if here == header.versions else here
        self._stopped: tuple[How, str] | None = None
        self._finetune_steps: int | None = None
        self._not_finetuned: dict[int, str] = {}
        self._mirror: StudyMirror
        self._publisher: Publisher | None = None

    def replay(self) -> None:
        """Read the record that is there, and write the mirror anew."""
        self._mirror = StudyMirror(self._task.folder / MIRROR_FILE, self._record.header, self._replayed())

    def publish(self, storage: StorageAddress) -> None:
        """Publish the record to the shared study, and from now on every candidate that finishes."""
        from hwsearch.search.studies.publisher import Publisher

        self._publisher = Publisher(storage, self._task.folder)

    def run(self) -> None:
        """Ask, submit and settle until every rung is done."""
        backlog = deque(sorted(self._known.unfinished))
        below = self._known.first
        self._run_rung(below, lambda: self._next_number(backlog), self._trials)
        for later in later_rungs(self._task.experiment):
            rung = later.fidelity
            done = self._known.finished(rung)
            waiting = deque(number for number in self._known.promoted(below, later.keep) if number not in done)
            if waiting and self._out_of_time():
                return
            self._known.begin(rung)
            total = len({*waiting, *done} - {REFERENCE})

            def next_promoted(waiting: deque[int] = waiting) -> int | None:
                return waiting.popleft() if waiting and not self._out_of_time() else None

            self._run_rung(rung, next_promoted, total)
            below = rung

    def finetune(self, chosen: Sequence[int], steps: int) -> Mapping[int, str]:
        """Train and score candidates at the fidelity `finetuned`; return the reasons of failures."""
        rung = Fidelity.FINETUNED
        self._finetune_steps = steps
        done = self._known.finished(rung)
        waiting = deque(number for number in dict.fromkeys((REFERENCE, *chosen)) if number not in done)
        total = self._known.counts(rung)[0] + len({*waiting} - {REFERENCE})
        self._run_rung(rung, lambda: waiting.popleft() if waiting else None, total)
        return self._not_finetuned

    def close_published(self) -> "Published | None":
        """Bring the shared study up to date, if there is one and its storage answers; Ctrl-C leaves the study as it is."""
        if self._publisher is None:
            return None
        finished = sum(sum(self._known.counts(rung)) for rung in self._known.rungs)
        try:
            return self._publisher.close(finished)
        except KeyboardInterrupt:
            return self._publisher.abandon(finished)

    def summary(self, *, interrupted: bool, published: "Published | None") -> SearchSummary:
        """Return how the search ended."""
        first, *higher = self._known.rungs
        scored, failed = self._known.counts(first)
        how, reason = How.FINISHED, "finished"
        if interrupted:
            how, reason = How.INTERRUPTED, INTERRUPTED
        elif self._stopped is not None:
            how, reason = self._stopped
        elif scored < self._trials:
            how, reason = How.EXHAUSTED, "no more candidates to propose"
        return SearchSummary(
            folder=self._task.folder,
            scored=scored,
            failed=failed,
            trials=self._trials,
            promoted={rung: self._known.counts(rung)[0] for rung in higher},
            how=how,
            reason=reason,
            shared=None if published is None else str(published),
        )

    def _replayed(self) -> Iterator[Finished]:
        """Read the record, entry by entry; yield each finished candidate except the reference."""
        _, events = read_record(self._task.folder)
        for event in events:
            checkpoint()
            if isinstance(event, Asked):
                self._take_in_asked(event)
                continue
            candidate = self._take_in(event).candidate
            if event.candidate != REFERENCE:
                yield event, candidate.point

    def _out_of_time(self) -> bool:
        """Whether the hours are over, so that no candidate may start. Call it only if a candidate is left to start."""
        if (reason := self._budgets.out_of_time()) is None:
            return False
        self._stopped = How.HOURS, reason
        return True

    def _run_rung(self, rung: Fidelity, next_number: Callable[[], int | None], total: int) -> None:
        """Score the candidates that `next_number` gives until it gives None; they are `total` in all."""
        start, before = time.perf_counter(), len(self._known.finished(rung))
        executor = self._executor

        def report(latest: Scored | Failed | None = None) -> None:
            scored, failed = self._known.counts(rung)
            done = len(self._known.finished(rung)) - before
            # Only at the first rung does another candidate replace one that failed.
            left = total - scored - (0 if rung is self._known.first else failed)
            remaining = 0.0 if left <= 0 else left * (time.perf_counter() - start) / done if done else None
            self._progress(SearchProgress(rung, scored, failed, total, remaining, len(self._in_flight), latest))

        report()
        while True:
            while len(self._in_flight) < executor.capacity:
                checkpoint()
                number = next_number()
                if number is None:
                    break
                executor.submit(number, self._begin(number, rung))
            if not self._in_flight:
                return
            outcomes = [executor.next_outcome()]
            outcomes += [executor.next_outcome() for _ in range(min(executor.ready, MOST_AT_ONCE - 1))]
            for event in self._settle(outcomes):
                report(event)
            if rung is self._known.first and self._known.counts(rung)[1] >= self._trials:
                raise UserError(f"{self._trials} candidates failed, as many as were wanted; see the reasons in the record")

    def _next_number(self, backlog: deque[int]) -> int | None:
        """Return the next candidate to submit, first those that an earlier driver left; None if none is due."""
        if not self._known.candidates:
            return self._ask(None, REFERENCE_STRATEGY, {})
        if backlog and backlog[0] == REFERENCE:
            return backlog.popleft()
        expected = self._known.counts(self._known.first)[0] + len(self._in_flight) - (REFERENCE in self._in_flight)
        if expected >= self._trials or self._out_of_time():
            return None
        # Candidates that were in flight when an earlier driver was killed are finished first.
        if backlog:
            return backlog.popleft()
        if (reason := self._budgets.stalled()) is not None:
            self._stopped = How.STALLED, reason
            return None
        return self._propose()

    def _propose(self) -> int | None:
        """Return a new candidate; None if the space is exhausted or no proposer has more."""
        space = self._task.space
        if len(self._known.points) >= space.size:
            return None
        rng = np.random.default_rng([self._task.experiment.seed, len(self._known.candidates)])
        proposal = new_proposal(self._proposers, self._known.points, space, rng)
        return None if proposal is None else self._ask(proposal.point, proposal.strategy, proposal.state)

    def _ask(self, point: Point | None, strategy: str, state: Mapping[str, Any]) -> int:
        """Write a new candidate to the record; return its number."""
        event = Asked(candidate=len(self._known.candidates), strategy=strategy, point=point, state=dict(state), time=now())
        self._record.append(event)
        self._take_in_asked(event)
        return event.candidate

    def _begin(self, number: int, rung: Fidelity) -> ScoringJob:
        """Return the job of a candidate, which counts as in flight from now on."""
        job, start = ScoringJob(self._known.configuration(number), rung), None
        if rung.trained and number != REFERENCE:
            steps = self._finetune_steps if rung is Fidelity.FINETUNED else None
            job, start = self._trained.job(number, job.configuration, rung, steps)
        self._in_flight[number] = InFlight(self._known.candidates[number], job, start)
        return job

    def _settle(self, outcomes: Sequence[Outcome[Mapping[str, float]]]) -> Iterator[Scored | Failed]:
        """Record the outcomes of candidates, then tell proposers and mirrors of each in turn.

        Raises:
            UserError: the full-precision network could not be scored.
        """
        events = [self._settled(outcome, self._charge(outcome.key)) for outcome in outcomes]
        self._record.extend([event for event in events if not _tried_again(event)])
        for event in events:
            del self._charged[event.candidate], self._in_flight[event.candidate]
            if isinstance(event, Failed) and _tried_again(event):
                self._not_finetuned[event.candidate] = event.reason
                yield event
                continue
            candidate = self._take_in(event).candidate
            if event.candidate != REFERENCE:
                self._mirror.add(event, candidate.point)
                if self._publisher is not None:
                    self._publisher.add(event, candidate.point)
            yield event

    def _charge(self, number: int) -> Charged:
        """Return the costs of a candidate. Those of others in flight are computed with it, because many take as long as one."""
        if number not in self._charged:
            others = (other for other in sorted(self._in_flight) if other != number and other not in self._charged)
            numbers = [number, *islice(others, MOST_AT_ONCE - 1)]
            charged = self._task.cost([self._in_flight[each].job.configuration for each in numbers])
            for each, costs in zip(numbers, charged, strict=True):
                self._charged[each] = {name: finite(value) for name, value in costs.items()}
        return self._charged[number]

    def _settled(self, outcome: Outcome[Mapping[str, float]], costs: Charged) -> Scored | Failed:
        # Full precision need not run on the targets: only its quality is used, as the reference.
        objectives = self._record.header.objectives
        wanted = objectives if outcome.key != REFERENCE else objectives[:1]
        event = settled(self._in_flight[outcome.key], outcome, costs, wanted, self._task.experiment.seed, self._versions)
        if isinstance(event, Failed) and event.candidate == REFERENCE:
            mend = "a larger workers.time_limit_s" if event.reason.startswith(NO_ANSWER) else "a scorer that works"
            raise UserError(f"the full-precision network cannot be scored ({event.reason}); wanted {mend}")
        return event

    def _take_in_asked(self, event: Asked) -> None:
        """Remember a candidate, and tell proposers."""
        candidate = self._known.ask(event)
        if event.candidate != REFERENCE:
            for proposer in self._proposers:
                proposer.asked(candidate)

    def _take_in(self, event: Scored | Failed) -> Result:
        """Remember the result of a candidate. Proposers and budgets hear only of the first fidelity."""
        result = self._known.finish(event)
        if isinstance(event, Scored):
            self._trained.note(event)
        if event.fidelity is not self._known.first:
            return result
        if event.candidate == REFERENCE:
            for proposer in self._proposers:
                if result.metrics is not None:
                    proposer.started(result.metrics)
            return result
        if result.metrics is not None:
            self._budgets.add(self._known.values(result) if self._known.fits(result) else None)
        for proposer in self._proposers:
            proposer.tell(result)
        return result


def _tried_again(event: Scored | Failed) -> bool:
    """Whether another call may try a candidate again that has failed."""
    return isinstance(event, Failed) and event.fidelity is Fidelity.FINETUNED


def _clock() -> Callable[[], float]:
    """Return a function that gives the seconds since this call."""
    start = time.monotonic()
    return lambda: time.monotonic() - start
