"""The driver: asks proposers, keeps the workers busy, and writes the record.

Everything it knows follows from the record, so it can be killed at any instant and run again: what was asked
and not scored is submitted again under its number, nothing is scored twice, and with results in the same
order the search goes on as if it had never been interrupted.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from platform import python_version

import numpy as np

import hwsearch
from hwsearch.errors import UserError
from hwsearch.executor import Executor, Outcome
from hwsearch.experiment import FLOAT_BITS, Experiment
from hwsearch.files import digest
from hwsearch.search.objectives import QUALITY_AND_SIZE, Objective
from hwsearch.search.proposer import Candidate, Proposal, Proposer, Result, SeedProposer
from hwsearch.search.record import (
    REFERENCE,
    REFERENCE_STRATEGY,
    Asked,
    Failed,
    Header,
    Record,
    Scored,
    now,
    read_record,
)
from hwsearch.search.space import Point, SearchSpace, ends_seeds, uniform_seeds
from hwsearch.search.study import MIRROR_FILE, OptunaProposer, StudyMirror
from hwsearch.separator.allocation import BitAllocation, uniform

Cost = Callable[[Sequence[BitAllocation]], list[dict[str, float]]]
"""Costs of allocations by column name, such as `size_bytes` or `latency_ms[ethos-u55-128]`."""

POST_TRAINING = "post-training"
"""The fidelity of a network that was quantized and not trained again."""

ASKS_BEFORE_MUTATION = 8
"""Proposals already known after which the last one is mutated instead of asking again."""

MUTATIONS_BEFORE_COUNTING = 100
"""Mutations to known points after which the space counts as nearly full, and is counted through."""


@dataclass(frozen=True)
class SearchProgress:
    """Where a search stands, after each finished candidate."""

    scored: int
    failed: int
    trials: int
    seconds: float
    """Since this driver started."""
    candidates_per_second: float
    """Finished by this driver."""
    remaining_seconds: float | None
    """None until this driver has finished a candidate."""


@dataclass(frozen=True)
class SearchSummary:
    """How a search ended."""

    folder: Path
    scored: int
    """Distinct candidates scored in all, the full-precision reference not among them."""
    failed: int
    trials: int
    seconds: float
    interrupted: bool

    def __str__(self) -> str:
        """One line for the user."""
        counts = f"{self.scored} of {self.trials} candidates scored, {self.failed} failed"
        if self.interrupted:
            return f"interrupted: {counts}; run the same command again to continue in {self.folder}"
        if self.scored < self.trials:
            return f"no more allocations to propose: {counts}, in {self.folder}"
        return f"done: {counts}, in {self.folder}"


def run_search(
    experiment: Experiment,
    space: SearchSpace,
    executor: Executor[BitAllocation, Mapping[str, float]],
    cost: Cost,
    folder: Path,
    progress: Callable[[SearchProgress], None],
    *,
    proposer: Proposer | None = None,
    provenance: Mapping[str, str] | None = None,
) -> SearchSummary:
    """Search until `experiment.search.trials` distinct candidates are scored, or the space is exhausted.

    The full-precision network is scored first, as candidate 0 outside the count. Then come the uniform
    allocations and those that keep the ends at 8 bits; then `proposer`, by default the Optuna sampler that
    the experiment names. Ctrl-C ends the search cleanly; calling this again with the same folder continues
    it. An experiment that differs only in `search.trials`, `search.max_attempts`, `export` or `evaluation`
    continues it too.

    Args:
        experiment: what to search.
        space: the space of its search.
        executor: scores allocations; gives metrics by column name.
        cost: charges allocations. A cost that is not finite is recorded as absent.
        folder: the run folder: the record, the lock, the mirror for Optuna's tools.
        progress: called once at the start, and after every finished candidate.
        proposer: the strategy behind the seeds.
        provenance: what else the candidates depend on, such as the hash of the base; must be the same on a
            resume.

    Raises:
        UserError: the folder belongs to another search or driver, its record is damaged, the full-precision
            network cannot be scored, or as many candidates failed as were wanted.
    """
    header = Header(
        name=experiment.name,
        experiment=search_digest(experiment),
        provenance=dict(provenance or {}),
        seed=experiment.seed,
        objectives=QUALITY_AND_SIZE,
        widths=dict(space.widths),
        fixed=tuple(sorted(space.fixed)),
        versions=_versions(),
        time=now(),
    )
    strategy = proposer or OptunaProposer(experiment.search, space, QUALITY_AND_SIZE, experiment.seed)
    seeds = SeedProposer(uniform_seeds(space) + ends_seeds(space))
    with Record(folder, header) as record:
        search = _Search(experiment, space, record, [seeds, strategy])
        interrupted = False
        try:
            search.replay(folder)
            search.run(executor, cost, progress)
        except KeyboardInterrupt:
            interrupted = True
        return search.summary(folder, interrupted=interrupted)


def search_digest(experiment: Experiment) -> str:
    """Hash of what candidates and the order of proposals depend on, and not when the search ends or where files lie.

    Targets are left out by name: what they say belongs to the provenance.
    """
    return digest(
        experiment.model_dump(
            mode="json",
            exclude={
                "base": True,
                "data": {"corpora": {"__all__": {"root"}}},
                "search": {"trials", "max_attempts", "targets"},
                "export": True,
                "evaluation": True,
            },
        )
    )


class _Search:
    """The state of a search: what was asked, what is finished, what is in flight."""

    def __init__(
        self,
        experiment: Experiment,
        space: SearchSpace,
        record: Record,
        proposers: Sequence[Proposer],
    ) -> None:
        self._experiment = experiment
        self._trials = experiment.search.trials
        self._space = space
        self._record = record
        self._proposers = proposers
        self._asked = 0
        self._known: set[Point] = set()
        self._unfinished: dict[int, Candidate | None] = {}
        """Asked and not finished, by number; None is the reference."""
        self._finished: list[Result] = []
        self._scored = 0
        self._start = time.perf_counter()
        self._mirror: StudyMirror

    def replay(self, folder: Path) -> None:
        """Take in the record as it is."""
        _, events = read_record(folder)
        for event in events:
            if isinstance(event, Asked):
                self._note_asked(event)
                continue
            candidate = self._unfinished.pop(event.candidate)
            if candidate is None:
                continue
            if isinstance(event, Scored):
                self._note_finished(Result(candidate, event.metrics, event.costs))
            else:
                self._note_finished(Result(candidate, None, {}))
        self._mirror = StudyMirror(folder / MIRROR_FILE, self._experiment.name, self._space, QUALITY_AND_SIZE, self._finished)

    def run(
        self,
        executor: Executor[BitAllocation, Mapping[str, float]],
        cost: Cost,
        progress: Callable[[SearchProgress], None],
    ) -> None:
        """Ask, submit and settle until the search is done."""
        before = len(self._finished)
        progress(self._progress(before))
        backlog = deque(sorted(self._unfinished))
        in_flight: set[int] = set()
        while True:
            while len(in_flight) < executor.capacity:
                number = self._next_number(backlog, in_flight)
                if number is None:
                    break
                executor.submit(number, self._allocation(number))
                in_flight.add(number)
            if not in_flight:
                return
            outcome = executor.next_outcome()
            in_flight.remove(outcome.key)
            self._settle(outcome, cost)
            progress(self._progress(before))
            if len(self._finished) - self._scored >= self._trials:
                raise UserError(f"{self._trials} candidates failed, as many as were wanted; see the reasons in the record")

    def summary(self, folder: Path, *, interrupted: bool) -> SearchSummary:
        """How it ended."""
        return SearchSummary(
            folder=folder,
            scored=self._scored,
            failed=len(self._finished) - self._scored,
            trials=self._trials,
            seconds=time.perf_counter() - self._start,
            interrupted=interrupted,
        )

    def _next_number(self, backlog: deque[int], in_flight: set[int]) -> int | None:
        """The next candidate to submit, first those an earlier driver left; None if none is due."""
        if self._asked == REFERENCE:
            self._ask(None, REFERENCE_STRATEGY, {})
            return REFERENCE
        if backlog and backlog[0] == REFERENCE:
            return backlog.popleft()
        if self._scored + len(in_flight - {REFERENCE}) >= self._trials:
            return None
        if backlog:
            return backlog.popleft()
        proposal = self._propose()
        if proposal is None:
            return None
        number = self._asked
        self._ask(proposal.point, proposal.strategy, proposal.state)
        return number

    def _propose(self) -> Proposal | None:
        """A proposal that is no candidate yet; None if the space is exhausted or no proposer has more."""
        if len(self._known) >= self._space.size:
            return None
        for proposer in self._proposers:
            proposal = proposer.ask()
            for _ in range(ASKS_BEFORE_MUTATION - 1):
                if proposal is None or proposal.point not in self._known:
                    break
                proposal = proposer.ask()
            if proposal is not None:
                return self._made_new(proposal)
        return None

    def _made_new(self, proposal: Proposal) -> Proposal:
        """The proposal, mutated if it repeats a candidate."""
        if proposal.point not in self._known:
            return proposal
        rng = np.random.default_rng([self._experiment.seed, self._asked])
        point = unknown_neighbour(proposal.point, self._space.shape, self._known, rng)
        return Proposal(point, f"{proposal.strategy}-mutated", proposal.state)

    def _ask(self, point: Point | None, strategy: str, state: Mapping[str, object]) -> None:
        event = Asked(candidate=self._asked, strategy=strategy, point=point, state=dict(state), time=now())
        self._record.append(event)
        self._note_asked(event)

    def _allocation(self, number: int) -> BitAllocation:
        candidate = self._unfinished[number]
        if candidate is None:
            return uniform(self._experiment.separator, FLOAT_BITS, FLOAT_BITS)
        return self._space.decode(candidate.point)

    def _settle(self, outcome: Outcome[Mapping[str, float]], cost: Cost) -> None:
        """Record what became of a candidate, then tell the proposers and the mirror."""
        number = outcome.key
        allocation = self._allocation(number)
        costs = {name: _finite(value) for name, value in cost([allocation])[0].items()}
        metrics = {
            name: value
            for name, value in ((name, _finite(value)) for name, value in (outcome.result or {}).items())
            if value is not None
        }
        reason = outcome.error or _missing_objective(QUALITY_AND_SIZE, metrics, costs, outcome.result)
        candidate = self._unfinished[number]
        if candidate is None and reason is not None:
            raise UserError(f"the full-precision network cannot be scored ({reason}); wanted a scorer that works")
        strategy = REFERENCE_STRATEGY if candidate is None else candidate.strategy
        if reason is None:
            self._record.append(
                Scored(
                    candidate=number,
                    strategy=strategy,
                    seed=self._experiment.seed,
                    allocation=allocation.to_json(),
                    metrics=metrics,
                    costs=costs,
                    fidelity=POST_TRAINING,
                    seconds=outcome.seconds,
                    worker=outcome.worker,
                    attempts=outcome.attempts,
                    time=now(),
                )
            )
        else:
            self._record.append(
                Failed(
                    candidate=number,
                    strategy=strategy,
                    reason=reason,
                    seconds=outcome.seconds,
                    worker=outcome.worker,
                    attempts=outcome.attempts,
                    time=now(),
                )
            )
        del self._unfinished[number]
        if candidate is not None:
            result = Result(candidate, metrics if reason is None else None, costs)
            self._note_finished(result)
            self._mirror.add(result)

    def _note_asked(self, event: Asked) -> None:
        self._asked += 1
        if event.point is None:
            self._unfinished[event.candidate] = None
            return
        candidate = Candidate(event.candidate, event.point, event.strategy, event.state)
        self._unfinished[event.candidate] = candidate
        self._known.add(event.point)
        for proposer in self._proposers:
            proposer.asked(candidate)

    def _note_finished(self, result: Result) -> None:
        self._finished.append(result)
        self._scored += result.metrics is not None
        for proposer in self._proposers:
            proposer.tell(result)

    def _progress(self, before: int) -> SearchProgress:
        seconds = time.perf_counter() - self._start
        done = len(self._finished) - before
        rate = done / seconds if seconds > 0 else 0.0
        return SearchProgress(
            scored=self._scored,
            failed=len(self._finished) - self._scored,
            trials=self._trials,
            seconds=seconds,
            candidates_per_second=rate,
            remaining_seconds=(self._trials - self._scored) / rate if done else None,
        )


def unknown_neighbour(point: Point, shape: tuple[int, ...], known: set[Point], rng: np.random.Generator) -> Point:
    """A point near `point` that is not among the known ones: a random walk, one site at a time, until one is
    met.

    Where the space is nearly full the walk gives way to counting on from where it stands, which always ends:
    `known` must not hold the whole space.
    """
    walk = list(point)
    for _ in range(MUTATIONS_BEFORE_COUNTING):
        site = int(rng.integers(len(shape)))
        walk[site] = (walk[site] + int(rng.integers(1, shape[site]))) % shape[site]
        if tuple(walk) not in known:
            return tuple(walk)
    while tuple(walk) in known:
        site = len(shape) - 1
        while walk[site] == shape[site] - 1:
            walk[site] = 0
            site -= 1
        walk[site] += 1
    return tuple(walk)


def _missing_objective(
    objectives: Sequence[Objective],
    metrics: Mapping[str, float],
    costs: Mapping[str, float | None],
    result: Mapping[str, float] | None,
) -> str | None:
    """Why a candidate cannot take part, or None if every objective is there and finite."""
    for objective in objectives:
        if metrics.get(objective.column, costs.get(objective.column)) is None:
            found = (result or {}).get(objective.column, "absent")
            return f"objective '{objective.column}' is {found}; wanted a finite number"
    return None


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _versions() -> dict[str, str]:
    names = ("optuna", "ray", "numpy", "torch", "brevitas")
    return {"hwsearch": hwsearch.__version__, "python": python_version()} | {name: metadata.version(name) for name in names}
