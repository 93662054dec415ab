"""The driver: asks proposers, keeps the workers busy, writes the record, and promotes candidates to higher fidelities.

Everything it knows follows from the record, so it can be killed at any instant and run again: what was asked
and not scored is submitted again under its number, nothing is scored twice, and with results in the same
order the search goes on as if it had never been interrupted. Where trainings start from the nearest one that
has finished, whose that is depends on that order too.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from hwsearch.errors import UserError
from hwsearch.executor import Executor, Outcome
from hwsearch.experiment import FLOAT_BITS, Experiment, Fidelity
from hwsearch.files import digest
from hwsearch.search.address import StorageAddress
from hwsearch.search.mirror import MIRROR_FILE, StudyMirror
from hwsearch.search.objectives import Objective, objectives_of
from hwsearch.search.progress import SearchProgress, SearchSummary
from hwsearch.search.promotion import ALWAYS_PROMOTED, promoted
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
    versions_here,
)
from hwsearch.search.scoring import ScoringJob, TrainedFile, first_fidelity, trained_name
from hwsearch.search.shared_study import SharedStudy, SharedSummary
from hwsearch.search.space import Point, SearchSpace, Seed
from hwsearch.search.stopping import Budgets
from hwsearch.search.study import objective_values
from hwsearch.search.trials import Finished
from hwsearch.separator.allocation import BitAllocation, is_weight, uniform

Cost = Callable[[Sequence[BitAllocation]], list[dict[str, float]]]
"""Costs of allocations by column name, such as `size_bytes` or `latency_ms[ethos-u55-128]`."""

TRAINED_FOLDER = "trained"
"""Folder of a run with the weights of candidates that were trained."""

ASKS_BEFORE_MUTATION = 8
"""Proposals already known after which the last one is mutated instead of asking again."""

MOST_AT_ONCE = 64
"""Candidates that are charged at once, and outcomes that are settled at once, where so many are there: how many workers a driver
keeps busy is decided by what it does for each candidate by itself."""

MUTATIONS_BEFORE_COUNTING = 100
"""Mutations to known points after which the space counts as nearly full, and is counted through."""


def run_search(  # noqa: PLR0913 (what is searched, by whom, and where it goes)
    experiment: Experiment,
    space: SearchSpace,
    executor: Executor[ScoringJob, Mapping[str, float]],
    cost: Cost,
    folder: Path,
    progress: Callable[[SearchProgress], None],
    *,
    seeds: Iterable[Seed],
    proposer: Proposer | None = None,
    provenance: Mapping[str, str] | None = None,
    elapsed: Callable[[], float] | None = None,
    storage: StorageAddress | None = None,
) -> SearchSummary:
    """Search until `experiment.search.trials` distinct candidates are scored, another budget ends, or nobody proposes more;
    then promote.

    The full-precision network is scored first, as candidate 0 outside the count. Then come the seeds, then `proposer`. Each of
    `search.promotions` then scores its share of the rung below again, and full precision with it. Ctrl-C ends the search
    cleanly; calling this again with the same folder continues it. An experiment that differs only in its budgets
    (`search.trials`, `search.hours`, `search.stall_candidates`), `search.promotions`, `search.max_attempts`, `workers`,
    `export` or `evaluation` continues it too. `search.hours` ends the promotions as well.

    Args:
        experiment: what to search.
        space: the space of its search.
        executor: scores candidates; gives metrics by column name.
        cost: charges allocations. A cost that is not finite is recorded as absent.
        folder: the run folder: the record, the lock, the mirror for Optuna's tools, trained weights.
        progress: called once at the start of each rung, and after every finished candidate.
        seeds: what is scored before anyone proposes.
        proposer: the strategy behind the seeds.
        provenance: what else the candidates depend on, such as the hash of the base; must be the same on a
            resume.
        elapsed: seconds since the run began whose `search.hours` count; by default since this call.
        storage: where a shared study of everything finished is kept, too.

    Raises:
        UserError: the folder belongs to another search or driver, its record is damaged, the full-precision
            network cannot be scored, or as many candidates failed as were wanted.
    """
    objectives = objectives_of(experiment.search.objectives)
    header = Header(
        name=experiment.name,
        experiment=search_digest(experiment),
        provenance=dict(provenance or {}),
        seed=experiment.seed,
        objectives=objectives,
        widths=dict(space.widths),
        fixed=tuple(sorted(space.fixed)),
        groups=space.groups,
        versions=versions_here(),
        time=now(),
    )
    first = tuple(seeds)
    proposers: list[Proposer] = [SeedProposer(first), *([] if proposer is None else [proposer])]
    # Seeds alone may stop growing; where somebody proposes behind them, they are scored in any case.
    budgets = Budgets(experiment.search, objectives, 0 if proposer is None else len(first), elapsed or _clock())
    with Record(folder, header) as record:
        search = _Search(experiment, space, record, objectives, proposers, folder, budgets)
        interrupted = False
        try:
            search.replay(storage)
            search.run(executor, cost, progress)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            shared = search.close_shared()
        return search.summary(interrupted=interrupted, shared=shared)


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
                "search": {"trials", "hours", "stall_candidates", "stall_growth", "promotions", "max_attempts", "targets"},
                "workers": True,
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
        objectives: tuple[Objective, ...],
        proposers: Sequence[Proposer],
        folder: Path,
        budgets: Budgets,
    ) -> None:
        self._experiment = experiment
        self._budgets = budgets
        self._stopped: str | None = None
        self._trials = experiment.search.trials
        self._first = first_fidelity(experiment)
        self._space = space
        self._record = record
        self._objectives = objectives
        self._proposers = proposers
        self._folder = folder
        self._asked: dict[int, Candidate | None] = {}
        """By number; None is the reference."""
        self._known: set[Point] = set()
        self._unfinished: set[int] = set()
        """Asked and not finished at the first fidelity."""
        self._rungs: dict[Fidelity, dict[int, Result | None]] = {self._first: {}}
        """What became of candidates at each fidelity, by number; None for one that failed."""
        self._scored: Counter[Fidelity] = Counter()
        """How many of these were scored, the reference not among them: looked at several times for each candidate."""
        self._charged: dict[int, Mapping[str, float | None]] = {}
        """Costs of candidates in flight, as far as they are known."""
        self._training: dict[int, tuple[int | None, str]] = {}
        """Of candidates whose training is in flight: whose weights it started from, and the file of its own."""
        self._weights: dict[tuple[Fidelity, int], str] = {}
        """Files of the weights of finished trainings."""
        self._start = time.perf_counter()
        self._mirror: StudyMirror
        self._shared: SharedStudy | None = None

    def replay(self, storage: StorageAddress | None) -> None:
        """Take in the record as it is, and open its studies."""
        finished = self._replayed()
        if storage is None:
            self._mirror = StudyMirror(self._folder / MIRROR_FILE, self._record.header, finished)
            return
        both = list(finished)
        self._mirror = StudyMirror(self._folder / MIRROR_FILE, self._record.header, both)
        self._shared = SharedStudy(storage, self._record.header, self._folder, both)

    def _replayed(self) -> Iterator[Finished]:
        """Take in the record, entry by entry; gives what was finished, the reference not among it."""
        _, events = read_record(self._folder)
        for event in events:
            if isinstance(event, Asked):
                self._note_asked(event)
                continue
            candidate = self._asked[event.candidate] or _REFERENCE_CANDIDATE
            if isinstance(event, Scored) and event.weights is not None:
                self._weights[event.fidelity, event.candidate] = event.weights
            scored = Result(candidate, event.metrics, event.costs) if isinstance(event, Scored) else None
            self._note_finished(event.fidelity, scored or Result(candidate, None, {}))
            if candidate is not _REFERENCE_CANDIDATE:
                yield event, candidate.point

    def run(
        self,
        executor: Executor[ScoringJob, Mapping[str, float]],
        cost: Cost,
        progress: Callable[[SearchProgress], None],
    ) -> None:
        """Ask, submit and settle until every rung is done."""
        backlog = deque(sorted(self._unfinished))
        self._run_rung(self._first, lambda in_flight: self._next_number(backlog, in_flight), executor, cost, progress)
        below = self._first
        for promotion in self._experiment.search.promotions:
            if promotion.fidelity is below:
                continue
            if self._out_of_time():
                return
            rung = self._rungs.setdefault(promotion.fidelity, {})
            waiting = deque(number for number in self._promoted(below, promotion.keep) if number not in rung)

            def next_promoted(_: set[int], waiting: deque[int] = waiting) -> int | None:
                return waiting.popleft() if waiting and not self._out_of_time() else None

            total = len(waiting) + len(rung.keys() - {REFERENCE})
            self._run_rung(promotion.fidelity, next_promoted, executor, cost, progress, total - (REFERENCE in waiting))
            below = promotion.fidelity

    def close_shared(self) -> SharedSummary | None:
        """Bring the shared study up to date, if there is one and its server takes anything; Ctrl-C leaves it as it is."""
        if self._shared is None:
            return None
        try:
            return self._shared.close()
        except KeyboardInterrupt:
            return self._shared.abandon()

    def summary(self, *, interrupted: bool, shared: SharedSummary | None) -> SearchSummary:
        """How it ended."""
        scored, failed = self._counts(self._first)
        return SearchSummary(
            folder=self._folder,
            scored=scored,
            failed=failed,
            trials=self._trials,
            promoted={fidelity: self._counts(fidelity)[0] for fidelity in self._rungs if fidelity is not self._first},
            seconds=time.perf_counter() - self._start,
            interrupted=interrupted,
            stopped=self._stopped,
            shared=None if shared is None else str(shared),
        )

    def _out_of_time(self) -> bool:
        """Whether nothing may be begun any more; asked only where something is left to begin."""
        reason = self._budgets.out_of_time()
        self._stopped = reason or self._stopped
        return reason is not None

    def _has_stalled(self) -> bool:
        """Whether no more candidates are worth asking for."""
        self._stopped = self._budgets.stalled()
        return self._stopped is not None

    def _run_rung(
        self,
        fidelity: Fidelity,
        next_number: Callable[[set[int]], int | None],
        executor: Executor[ScoringJob, Mapping[str, float]],
        cost: Cost,
        progress: Callable[[SearchProgress], None],
        total: int | None = None,
    ) -> None:
        """Score what `next_number` gives, given what is in flight, until it gives no more."""
        trials = self._trials if total is None else total
        start, before = time.perf_counter(), len(self._rungs[fidelity])

        def report(latest: Scored | Failed | None = None) -> None:
            seconds = time.perf_counter() - start
            scored, failed = self._counts(fidelity)
            done = len(self._rungs[fidelity]) - before
            rate = done / seconds if seconds > 0 else 0.0
            remaining = (trials - scored) / rate if done else None
            progress(SearchProgress(fidelity, scored, failed, trials, seconds, rate, remaining, len(in_flight), latest))

        in_flight: set[int] = set()
        report()
        while True:
            while len(in_flight) < executor.capacity:
                number = next_number(in_flight)
                if number is None:
                    break
                executor.submit(number, self._job(number, fidelity))
                in_flight.add(number)
            if not in_flight:
                return
            outcomes = [executor.next_outcome()]
            outcomes += [executor.next_outcome() for _ in range(min(executor.ready, MOST_AT_ONCE - 1))]
            for event in self._settle(outcomes, in_flight, fidelity, cost):
                in_flight.remove(event.candidate)
                report(event)
            if fidelity is self._first and self._counts(fidelity)[1] >= self._trials:
                raise UserError(f"{self._trials} candidates failed, as many as were wanted; see the reasons in the record")

    def _counts(self, fidelity: Fidelity) -> tuple[int, int]:
        """Candidates scored and failed at a fidelity, the reference not among them."""
        rung, scored = self._rungs[fidelity], self._scored[fidelity]
        return scored, len(rung) - (REFERENCE in rung) - scored

    def _promoted(self, below: Fidelity, keep: int) -> list[int]:
        """Who is scored again, first the reference; widest first, so that narrow ones find trained neighbours to start from."""
        scored = {
            number: result
            for number, result in self._rungs[below].items()
            if result is not None and number != REFERENCE and (result.candidate.strategy in ALWAYS_PROMOTED or self._fits(result))
        }
        if not scored:
            return []
        values = np.array([self._values(result) for result in scored.values()])
        always = {number for number, result in scored.items() if result.candidate.strategy in ALWAYS_PROMOTED}
        chosen = promoted(values, [objective.direction for objective in self._objectives], keep, list(scored), always)
        widths = {number: sum(bits for _, bits in self._allocation(number).widths) for number in chosen}
        return [REFERENCE, *sorted(chosen, key=lambda number: (-widths[number], number))]

    def _fits(self, result: Result) -> bool:
        """Whether a candidate is within the limits."""
        costs = {name: value for name, value in result.costs.items() if value is not None}
        return all(costs.get(name, math.inf) <= limit for name, limit in self._experiment.search.limits.items())

    def _values(self, result: Result) -> list[float]:
        return objective_values(self._objectives, result.metrics or {}, result.costs)

    def _job(self, number: int, fidelity: Fidelity) -> ScoringJob:
        allocation = self._allocation(number)
        if not fidelity.trained or number == REFERENCE:
            return ScoringJob(allocation, fidelity)
        start = self._nearest_trained(number, fidelity)
        source = None if start is None else TrainedFile(self._trained_path(self._weights[start]), self._allocation(start[1]))
        name = trained_name(self._record.header.experiment, allocation, fidelity, None if source is None else source.path.name)
        self._training[number] = (None if start is None else start[1], name)
        return ScoringJob(allocation, fidelity, self._trained_path(name), source)

    def _trained_path(self, name: str) -> Path:
        return (self._folder / TRAINED_FOLDER / name).resolve()

    def _nearest_trained(self, number: int, fidelity: Fidelity) -> tuple[Fidelity, int] | None:
        """The trained candidate with the fewest steps between its widths and this one's: its own weights of the trained rung
        below, or of the same rung; None while there is none, or where warm starts are off.
        """
        if not self._experiment.qat.warm_start:
            return None
        trained = [key for key in self._weights if key[0] is not Fidelity.FULL_QAT or fidelity is Fidelity.FULL_QAT]
        own = next((key for key in trained if key[1] == number), None)
        if own is not None or not trained:
            return own
        mine = self._allocation(number).by_site

        def distance(key: tuple[Fidelity, int]) -> int:
            theirs = self._allocation(key[1]).by_site
            return sum(abs(bits - theirs[site]) for site, bits in mine.items() if is_weight(site))

        return min(trained, key=distance)

    def _next_number(self, backlog: deque[int], in_flight: set[int]) -> int | None:
        """The next candidate to submit, first those an earlier driver left; None if none is due."""
        if not self._asked:
            self._ask(None, REFERENCE_STRATEGY, {})
            return REFERENCE
        if backlog and backlog[0] == REFERENCE:
            return backlog.popleft()
        enough = self._counts(self._first)[0] + len(in_flight) - (REFERENCE in in_flight) >= self._trials
        if enough or self._out_of_time() or self._has_stalled():
            return None
        if backlog:
            return backlog.popleft()
        proposal = self._propose()
        if proposal is None:
            return None
        number = len(self._asked)
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
        rng = np.random.default_rng([self._experiment.seed, len(self._asked)])
        point = unknown_neighbour(proposal.point, self._space.shape, self._known, rng)
        return Proposal(point, f"{proposal.strategy}-mutated", proposal.state)

    def _ask(self, point: Point | None, strategy: str, state: Mapping[str, object]) -> None:
        event = Asked(candidate=len(self._asked), strategy=strategy, point=point, state=dict(state), time=now())
        self._record.append(event)
        self._note_asked(event)

    def _allocation(self, number: int) -> BitAllocation:
        candidate = self._asked[number]
        if candidate is None:
            return uniform(self._experiment.separator, FLOAT_BITS, FLOAT_BITS)
        return self._space.decode(candidate.point)

    def _settle(
        self, outcomes: Sequence[Outcome[Mapping[str, float]]], in_flight: set[int], fidelity: Fidelity, cost: Cost
    ) -> Iterator[Scored | Failed]:
        """Record what became of candidates, then tell proposers and mirrors of one after another."""
        events = [self._event(outcome, self._charge(outcome.key, in_flight, cost), fidelity) for outcome in outcomes]
        self._record.extend(events)
        for event in events:
            self._take_in(event, self._charged.pop(event.candidate))
            yield event

    def _charge(self, number: int, in_flight: set[int], cost: Cost) -> Mapping[str, float | None]:
        """Costs of a candidate; those of others in flight come with it, because many take as long as one."""
        if number not in self._charged:
            others = (other for other in sorted(in_flight) if other != number and other not in self._charged)
            numbers = [number, *islice(others, MOST_AT_ONCE - 1)]
            for charged, costs in zip(numbers, cost([self._allocation(each) for each in numbers]), strict=True):
                self._charged[charged] = {name: _finite(value) for name, value in costs.items()}
        return self._charged[number]

    def _event(
        self, outcome: Outcome[Mapping[str, float]], costs: Mapping[str, float | None], fidelity: Fidelity
    ) -> Scored | Failed:
        """What became of a candidate, as the record has it.

        Raises:
            UserError: the full-precision network could not be scored.
        """
        number = outcome.key
        allocation = self._allocation(number)
        metrics = {
            name: value
            for name, value in ((name, _finite(value)) for name, value in (outcome.result or {}).items())
            if value is not None
        }
        # Full precision need not run on the targets: only its quality is compared with.
        wanted = self._objectives if number != REFERENCE else self._objectives[:1]
        reason = outcome.error or _missing_objective(wanted, metrics, costs, outcome.result)
        candidate, (start, weights) = self._asked[number], self._training.pop(number, (None, None))
        if candidate is None and reason is not None:
            raise UserError(f"the full-precision network cannot be scored ({reason}); wanted a scorer that works")
        strategy = REFERENCE_STRATEGY if candidate is None else candidate.strategy
        if reason is None:
            return Scored(
                candidate=number,
                strategy=strategy,
                seed=self._experiment.seed,
                allocation=allocation.to_json(),
                metrics=metrics,
                costs=dict(costs),
                fidelity=fidelity,
                start=start,
                weights=weights,
                seconds=outcome.seconds,
                worker=outcome.worker,
                attempts=outcome.attempts,
                time=now(),
            )
        return Failed(
            candidate=number,
            strategy=strategy,
            fidelity=fidelity,
            reason=reason,
            seconds=outcome.seconds,
            worker=outcome.worker,
            attempts=outcome.attempts,
            time=now(),
        )

    def _take_in(self, event: Scored | Failed, costs: Mapping[str, float | None]) -> None:
        """Remember what became of a candidate, and tell proposers and mirrors."""
        candidate = self._asked[event.candidate]
        metrics = event.metrics if isinstance(event, Scored) else None
        if isinstance(event, Scored) and event.weights is not None:
            self._weights[event.fidelity, event.candidate] = event.weights
        result = Result(candidate or _REFERENCE_CANDIDATE, metrics, costs)
        self._note_finished(event.fidelity, result)
        if candidate is not None:
            self._mirror.add(event, candidate.point)
            if self._shared is not None:
                self._shared.add(event, candidate.point)

    def _note_asked(self, event: Asked) -> None:
        self._unfinished.add(event.candidate)
        if event.point is None:
            self._asked[event.candidate] = None
            return
        candidate = Candidate(event.candidate, event.point, event.strategy, event.state)
        self._asked[event.candidate] = candidate
        self._known.add(event.point)
        for proposer in self._proposers:
            proposer.asked(candidate)

    def _note_finished(self, fidelity: Fidelity, result: Result) -> None:
        number = result.candidate.number
        self._rungs.setdefault(fidelity, {})[number] = None if result.metrics is None else result
        self._scored[fidelity] += number != REFERENCE and result.metrics is not None
        if fidelity is not self._first:
            return
        self._unfinished.discard(number)
        if number != REFERENCE and result.metrics is not None:
            self._budgets.add(self._values(result) if self._fits(result) else None)
        for proposer in self._proposers:
            if number != REFERENCE:
                proposer.tell(result)
            elif result.metrics is not None:
                proposer.started(result.metrics)


def _clock() -> Callable[[], float]:
    """Seconds since this call."""
    start = time.monotonic()
    return lambda: time.monotonic() - start


_REFERENCE_CANDIDATE = Candidate(REFERENCE, (), REFERENCE_STRATEGY, {})


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
