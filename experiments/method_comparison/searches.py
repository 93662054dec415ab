"""What is searched: the two searches and the differentiable one, with the sensitivities and the shared network they need."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from bench import POST_TRAINING, SHARED, Bench
from exact import exact

from hwsearch.executor import LocalExecutor
from hwsearch.experiment import Fidelity, Split, with_search
from hwsearch.search.driver import Task, run_search
from hwsearch.search.exact.problem import allocation_problem
from hwsearch.search.nas.expected_cost import nas_cost
from hwsearch.search.nas.sweep import NAS_FILE, NasFactory, ensure_nas
from hwsearch.search.objectives import PACKED_SIZE, QUALITY
from hwsearch.search.plan import make_plan
from hwsearch.search.posterior.engine import PosteriorEngine
from hwsearch.search.proposer import Plan
from hwsearch.search.record import REFERENCE, FolderLock, Scored, read_record
from hwsearch.search.samplers.posterior import PosteriorProposer, posterior_engine
from hwsearch.search.scoring import ScorerFactory, ScoringJob
from hwsearch.search.space import Seed, distinct
from hwsearch.sensitivity.estimate import ensure
from hwsearch.sensitivity.table import SensitivityTable
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.configuration import Configuration
from hwsearch.training.pool import pool_path
from hwsearch.workflow.caller import Listener
from hwsearch.workflow.checks import provenance
from hwsearch.workflow.shared import ensure_shared

METHOD_TABLES = {POST_TRAINING: ("curvature", "kl", "output-noise-ratio"), SHARED: ("output-noise-ratio",)}
"""Sensitivities that are methods themselves, by the network they are measured on."""

NEAR = 0.96
"""A candidate of a search stands for a size if it uses at least this share of the bytes."""

FINALISTS = 3
"""The best such candidates that the whole validation set chooses among,"""

SOLVED = 5
"""beside the optima at the size under the losses that the search has learnt: their mean, and draws."""

Tables = Mapping[str, SensitivityTable]


class _Told(Listener):
    """Prints what is said."""

    def said(self, line: str) -> None:
        print(line, flush=True)


def measured(bench: Bench, kind: str) -> Tables:
    """Return the sensitivities of the rounded base or of the shared network, which is trained if it is missing."""
    workspace, pool = bench.workspaces[kind], pool_path(bench.workspace)
    methods = list(dict.fromkeys((*workspace.experiment.search.priors, *METHOD_TABLES[kind])))
    with FolderLock(workspace.folder):
        if kind == SHARED:
            ensure_shared(workspace, pool, _Told())
        return ensure(workspace, methods, bench.space.free_sites, pool=pool)


def scorer(bench: Bench, kind: str, mixtures: int) -> Callable[[BitAllocation], float]:
    """Return the function that scores allocations as the search does, but on another number of mixtures."""
    workspace = bench.workspaces[kind]
    experiment = with_search(workspace.experiment, {"validation_mixtures": mixtures})
    score = ScorerFactory.of(replace(workspace, experiment=experiment), pool_path(bench.workspace))()
    fidelity = Fidelity.SHARED_SUBSET if kind == SHARED else Fidelity.SUBSET
    return lambda allocation: score(ScoringJob(Configuration(allocation), fidelity))[QUALITY]


def nas_choice(bench: Bench, seed: int, bits: float, score: Callable[[BitAllocation], float]) -> BitAllocation:
    """Return the better of the two largest candidates of the differentiable search that fit; if none fits, all weights at 2."""
    workspace = bench.workspaces[POST_TRAINING]
    zeros = {site: dict.fromkeys(widths, 0.0) for site, widths in bench.space.free_sites}
    factory = NasFactory(
        workspace.experiment.model_copy(update={"seed": seed}),
        workspace.base_path.resolve(),
        workspace.data_folder.resolve(),
        workspace.calibration_path.resolve(),
        pool_path(workspace).resolve(),
        problem=allocation_problem(bench.space, zeros, ()),
        cost=nas_cost(workspace.experiment, bench.space.widths),
    )
    results = ensure_nas(factory, bench.folder / f"seed-{seed}-{NAS_FILE}", LocalExecutor)
    found = dict.fromkeys(allocation for result in results for allocation in (result.allocation, result.halfway))
    fits = sorted((one for one in found if bench.bytes_of(one) <= bench.budget(bits)), key=bench.bytes_of)
    return max(fits[-2:], key=score) if fits else bench.uniform(min(bench.experiment.search.weight_bits))


def search(bench: Bench, kind: str, seed: int, tables: Tables, others: list[BitAllocation]) -> Path:
    """Search, or go on searching; return the folder of the record.

    Args:
        bench: base, data and sizes.
        kind: the network that candidates are scored on.
        seed: seed of the draws.
        tables: sensitivities of that network.
        others: allocations that are scored first, beside the seeds of every search.
    """
    workspace = bench.workspaces[kind]
    experiment = workspace.experiment.model_copy(update={"seed": seed})
    folder = bench.folder / f"search-{kind}-{seed}"
    priors = {prior: tables[prior] for prior in experiment.search.priors}
    plan = make_plan(experiment, bench.space, bench.costs, priors)
    seeds = distinct([*(Seed("other", bench.space.encode(Configuration(one))) for one in others), *plan.seeds])
    # The data belong to the experiment's own seed.
    factory = replace(ScorerFactory.of(workspace, pool_path(workspace)), experiment=experiment)
    run_search(
        Task(experiment, bench.space, bench.costs.charge, folder, provenance(workspace)),
        LocalExecutor[ScoringJob, Mapping[str, float]](factory),
        Plan(tuple(seeds), PosteriorProposer(_engine(bench, priors), seed)),
    )
    return folder


def search_choice(
    bench: Bench, folder: Path, tables: Tables, seed: int, bits: float, score: Callable[[BitAllocation], float]
) -> BitAllocation:
    """Return what a search offers at a size: of its best candidates there and of the solved ones, the best on validation."""
    _, events = read_record(folder)
    scored = [event for event in events if isinstance(event, Scored)]
    budget = bench.budget(bits)
    fits = [event for event in scored if event.candidate != REFERENCE and float(event.costs[PACKED_SIZE] or 0.0) <= budget]
    near = [event for event in fits if float(event.costs[PACKED_SIZE] or 0.0) >= NEAR * budget] or fits
    best = sorted(near, key=lambda event: -event.metrics[QUALITY])[:FINALISTS]
    engine = _engine(bench, {prior: tables[prior] for prior in bench.experiment.search.priors})
    for event in scored:
        if event.candidate == REFERENCE:
            engine.refer(event.metrics[QUALITY])
        else:
            engine.finish(bench.space.encode(Configuration.of(event.allocation)), event.metrics[QUALITY])
    finalists = dict.fromkeys(BitAllocation.of(event.allocation) for event in best)
    for draw in range(SOLVED):
        losses = engine.losses(np.random.default_rng([seed, draw]) if draw else None)
        loss = {
            name: dict(zip(widths, row.tolist(), strict=False))
            for (name, widths), row in zip(bench.space.free, losses, strict=True)
        }
        finalists[exact(bench, loss, bits)] = None
    return max(finalists, key=score)


def _engine(bench: Bench, priors: Tables) -> PosteriorEngine:
    search_config = bench.experiment.search
    return posterior_engine(
        bench.space, list(priors.values()), bench.costs, search_config.objectives, {}, search_config.validation_mixtures
    )


def validation_count(bench: Bench) -> int:
    """Return the number of all validation mixtures."""
    return bench.experiment.data.mixtures.count[Split.VALIDATION]
