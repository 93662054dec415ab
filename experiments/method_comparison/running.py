"""The work of `run`: proposals and judgements, in processes that a kill of the command ends, too."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from bench import POST_TRAINING, SHARED, Bench, Choice, Settings, bench_of
from judging import digits_of, is_judged, judge
from methods import Choices, all_choices, propose, uniform_choices, untrained_choices

from hwsearch.data.processes import in_processes
from hwsearch.training.pool import build_pool
from hwsearch.workflow.training import build

EARLY = 2
"""Sizes that are measured before full precision's own training."""

_ENDED = "a process of the comparison was ended from outside; the same command goes on where it stopped"


@dataclass(frozen=True)
class Proposal:
    """All proposals that read one network, at one seed."""

    kind: str
    seed: int
    sizes: tuple[float, ...]

    def __str__(self) -> str:
        return f"proposals on the {self.kind} network, seed {self.seed}"

    def do(self, bench: Bench) -> None:
        """Make them."""
        propose(bench, self.kind, self.seed, self.sizes)


@dataclass(frozen=True)
class Judgement:
    """The training and the figures of one choice. Equal choices of several methods are one judgement."""

    choice: Choice
    seed: int
    steps: int
    name: str

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}, {self.steps} steps"

    def do(self, bench: Bench) -> None:
        """Train and judge."""
        judge(bench, self.choice, self.seed, self.steps)


def run(settings: Settings, seeds: Sequence[int], sizes: tuple[float, ...], control: Sequence[int], workers: int) -> None:
    """Measure all that is missing, seed after seed, size after size."""
    bench = bench_of(settings)
    make_data(settings, workers)
    for seed in seeds:
        # Proposals take long, and uniform allocations need not wait for them.
        uniform = judgements(bench, uniform_choices(bench, sizes), seed)
        work_off(settings, [Proposal(POST_TRAINING, seed, sizes), *uniform], workers)
        work_off(settings, [Proposal(SHARED, seed, sizes)], workers)
        choices = all_choices(bench, seed, sizes)
        early = {place: choice for place, choice in choices.items() if place[1] in sizes[:EARLY]}
        controls = [Judgement(Choice(bench.full_precision), seed, steps, "full precision") for steps in control]
        untrained = judgements(bench, untrained_choices(bench, choices), seed, 0)
        found = [*judgements(bench, early, seed), *controls, *untrained, *judgements(bench, choices, seed)]
        work_off(settings, missing(bench, found), workers)


def make_data(settings: Settings, workers: int) -> None:
    """Make the data and the training mixtures that are missing, and those of the digits if they are wanted."""
    bench = bench_of(settings)
    build(bench.workspace, workers)
    build_pool(bench.workspace, workers, lambda _done, _all: None)
    if settings.digits:
        build(digits_of(settings).workspace, workers)


def judgements(bench: Bench, choices: Choices, seed: int, steps: int | None = None) -> list[Judgement]:
    """List what is missing for choices, each once; by default after the training steps of all methods."""
    steps = bench.steps if steps is None else steps
    found = [Judgement(choice, seed, steps, f"{method}, {bits:g} bits") for (method, bits), choice in choices.items()]
    return missing(bench, found)


def missing(bench: Bench, wanted: Iterable[Judgement]) -> list[Judgement]:
    """Leave out what is judged, and what is wanted twice."""
    found: dict[str, Judgement] = {}
    for one in wanted:
        key = bench.key(one.choice, one.seed, one.steps)
        if not is_judged(bench, key):
            found.setdefault(key, one)
    return list(found.values())


class Task(Protocol):
    """Work that is done once and kept. Its text is its name."""

    def do(self, bench: Bench) -> None:
        """Do what is missing of it."""
        ...


def work_off(settings: Settings, tasks: Sequence[Task], workers: int) -> None:
    """Do tasks in processes, the first ones first."""
    if not tasks:
        return
    results = in_processes(_work, [(settings, task) for task in tasks], workers, _ENDED)
    for number, name in enumerate(results, start=1):
        print(f"{number}/{len(tasks)}: {name}", flush=True)


def _work(settings: Settings, task: Task) -> str:
    """Do a task in this process; return its name."""
    task.do(bench_of(settings))
    return str(task)
