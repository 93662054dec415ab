"""The searches, and the candidates of their fronts that are worth a training."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from bench import BITS, BOTH, MODES, SIZE_ALONE, Bench

from hwsearch.executor import LocalExecutor
from hwsearch.files.writing import atomic_write_json
from hwsearch.search.costs import CostBook
from hwsearch.search.driver import Task, run_search
from hwsearch.search.objectives import PACKED_SIZE, QUALITY
from hwsearch.search.plan import make_plan
from hwsearch.search.record import REFERENCE, Scored, read_record
from hwsearch.search.scoring import ScorerFactory, ScoringJob
from hwsearch.search.structure_losses import STRUCTURE_FILE, StructureLosses, ensure_structure_losses
from hwsearch.sensitivity.estimate import ensure
from hwsearch.sensitivity.table import SensitivityTable
from hwsearch.separator.configuration import Configuration
from hwsearch.training.pool import pool_path
from hwsearch.workflow.checks import provenance, structure_key

LEVELS_DB = (0.3, 0.5, 0.65, 0.8)
"""Losses on validation, before a candidate's own training, at which the fastest candidate of a front is finished."""

RATIOS = (4.5, 6.0, 8.0, 10.0)
"""Sizes at which modes are compared at equal bytes: the float32 parameters take so many times as much."""

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Winner:
    """A candidate that is finished.

    Attributes:
        mode: what was searched.
        chip: for which chip, or `size`.
        level: the loss it was allowed, or the ratio of its size.
        configuration: of the candidate.
        quality: on the validation mixtures of the search, before its own training.
    """

    mode: str
    chip: str
    level: float
    configuration: Configuration
    quality: float


def search(bench: Bench, mode: str, chip: str, seed: int) -> None:
    """Search, or go on searching. A search that is done takes no time."""
    done = bench.folder("searches", f"{mode}-{chip}-{seed}", "done.json")
    if done.is_file():
        return
    experiment, workspace, space = bench.experiment(mode, chip, seed), bench.workspace(mode), bench.space(mode)
    pool = pool_path(bench.workspace(BOTH))
    tables = _tables(bench, mode)
    costs = CostBook(experiment, space)
    plan = make_plan(experiment, space, costs, tables, structure_losses=_structure_losses(bench, mode))
    # The data belong to the experiment's own seed.
    factory = replace(ScorerFactory.of(workspace, pool), experiment=experiment)
    with LocalExecutor[ScoringJob, Mapping[str, float]](factory) as executor:
        run_search(Task(experiment, space, costs.charge, done.parent, provenance(workspace)), executor, plan)
    atomic_write_json(done, {"trials": experiment.search.trials})


def _tables(bench: Bench, mode: str) -> dict[str, SensitivityTable]:
    """Return the sensitivities of the shared network of a mode, if it has free widths."""
    workspace, space = bench.workspace(mode), bench.space(mode)
    if not space.free:
        return {}
    found = ensure(workspace, list(workspace.experiment.search.priors), space.free_sites, pool=pool_path(bench.workspace(BOTH)))
    return {prior: found[prior] for prior in workspace.experiment.search.priors}


def _structure_losses(bench: Bench, mode: str) -> StructureLosses:
    """Return what leaving out costs on the elastic shared network, the same for both modes that leave out."""
    if mode == BITS:
        return {}
    workspace, space = bench.workspace(BOTH), bench.space(BOTH)
    factory = ScorerFactory.of(workspace, pool_path(workspace))
    path, key = workspace.folder / STRUCTURE_FILE, structure_key(workspace)
    return ensure_structure_losses(space, bench.fidelity, path, key, lambda: LocalExecutor(factory))


def searches(bench: Bench) -> list[tuple[str, str]]:
    """List modes and chips of all searches of a seed."""
    return [*((mode, chip) for chip in bench.chips for mode in MODES), (BITS, SIZE_ALONE), (BOTH, SIZE_ALONE)]


def winners(bench: Bench, mode: str, chip: str, seed: int) -> Iterator[Winner]:
    """Yield the fastest candidate at each loss, the smaller one of equally fast ones; without a chip, the best at each size."""
    _, events = read_record(bench.folder("searches", f"{mode}-{chip}-{seed}"))
    scored = [event for event in events if isinstance(event, Scored)]
    full = next(event.metrics[QUALITY] for event in scored if event.candidate == REFERENCE)
    found = [event for event in scored if event.candidate != REFERENCE]
    if chip == SIZE_ALONE:
        for ratio in RATIOS:
            fits = [event for event in found if float(event.costs[PACKED_SIZE] or 0.0) <= float_bytes(bench) / ratio]
            if fits:
                yield _winner(mode, chip, ratio, max(fits, key=lambda event: event.metrics[QUALITY]))
        return
    for level in LEVELS_DB:
        near = [event for event in found if full - event.metrics[QUALITY] <= level]
        if near:
            fastest = min(near, key=lambda event: (event.costs[f"latency_ms[{chip}]"], event.costs[PACKED_SIZE]))
            yield _winner(mode, chip, level, fastest)


def _winner(mode: str, chip: str, level: float, event: Scored) -> Winner:
    return Winner(mode, chip, level, Configuration.of(event.allocation, event.structure), event.metrics[QUALITY])


def float_bytes(bench: Bench) -> float:
    """Return the bytes of the float32 parameters."""
    graph = bench.networks(BOTH).base.graph
    return float(_FLOAT_BYTES * sum(tensor.numel() for tensor in graph.parameters.values()))


def described(winner: Winner) -> str:
    """Name a winner in lines of progress."""
    return json.dumps([winner.mode, winner.chip, winner.level])
