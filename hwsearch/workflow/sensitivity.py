"""The sensitivities of an experiment, and the allocations that follow from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hwsearch.executor import check_workers
from hwsearch.experiment import Experiment
from hwsearch.search.costs import size_cost
from hwsearch.search.exact.front import front_at
from hwsearch.search.exact.problem import allocation_problem
from hwsearch.search.experiment_space import experiment_space
from hwsearch.search.objectives import SIZE
from hwsearch.search.priors import separable_loss
from hwsearch.search.space import SearchSpace
from hwsearch.sensitivity.estimate import DEFAULT_METHODS, check_sensitivity, ensure, kept_tables, needs_pool, parse_methods
from hwsearch.sensitivity.table import SensitivityTable
from hwsearch.separator.allocation import BitAllocation
from hwsearch.workflow.caller import DEFAULTS, SILENT, Listener, Resources
from hwsearch.workflow.checks import check
from hwsearch.workflow.training import build
from hwsearch.workspace import Workspace

SIZES_SHOWN = 3
"""Number of exact allocations, with sizes between the smallest and the largest possible."""


@dataclass(frozen=True)
class Sensitivities:
    """Sensitivities of an experiment.

    Attributes:
        tables: the wanted tables, by method.
        kept: all tables in the run folder.
        exact: by size, the allocations that lose least according to `method`.
    """

    tables: Mapping[str, SensitivityTable]
    kept: Sequence[SensitivityTable]
    method: str
    exact: Mapping[str, BitAllocation]


def estimate_sensitivities(
    workspace: Workspace, methods: Sequence[str] = (), resources: Resources = DEFAULTS, listener: Listener = SILENT
) -> Sensitivities:
    """Estimate what each site loses at each width. The same call continues an interrupted one.

    Args:
        workspace: the experiment and its folders.
        methods: names such as `kl`; by default `DEFAULT_METHODS`.
        resources: processes and workers to use.
        listener: hears of data, training examples and sensitivities.

    Raises:
        UserError: a method is unknown, experiment or base cannot be used, or the kept sensitivities depend on other inputs.
    """
    experiment = workspace.experiment
    wanted = parse_methods(methods) or DEFAULT_METHODS
    space = experiment_space(experiment)
    check_sensitivity(experiment, wanted, space.free_sites)
    check_workers(resources.workers, resources.ray_address, experiment.workers.one_core)
    check(workspace, may_train=False)
    build(workspace, resources.processes, listener)
    pool = None
    if needs_pool(wanted) or experiment.search.uses_shared:
        from hwsearch.training.pool import build_pool

        pool = build_pool(workspace, resources.processes, listener.progress("training examples"))
    if experiment.search.uses_shared and pool is not None:
        from hwsearch.workflow.shared import ensure_shared

        ensure_shared(workspace, pool, listener)
    tables = ensure(
        workspace,
        wanted,
        space.free_sites,
        pool=pool,
        workers=resources.workers,
        ray_address=resources.ray_address,
        progress=listener.progress("sensitivities"),
    )
    chosen = "output-noise-ratio" if "output-noise-ratio" in tables else wanted[0]
    exact = _exact_allocations(tables[chosen], space, experiment)
    return Sensitivities(tables, kept_tables(workspace, space.free_sites), chosen, exact)


def _exact_allocations(table: SensitivityTable, space: SearchSpace, experiment: Experiment) -> dict[str, BitAllocation]:
    cost = size_cost(experiment, space.widths)
    problem = allocation_problem(space, separable_loss(table, space), [cost])
    narrowest = np.zeros((1, len(space.widths)), np.int8)
    widest = np.array([[len(widths) - 1 for _, widths in space.widths]], np.int8)
    least, most = (float(problem.cost_of(SIZE, indices)[0]) for indices in (narrowest, widest))
    front = front_at(problem, SIZE, np.geomspace(least, most, SIZES_SHOWN + 2)[1:-1].tolist())
    return {
        f"{size / 1000:.1f} kB": problem.allocation(indices)
        for size, indices in zip(front.costs.tolist(), front.indices, strict=True)
    }
