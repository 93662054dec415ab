"""The costs that a search minimises or limits, in the two forms that the search needs: exact sums, and tables for proposals."""

import math
from collections.abc import Callable, Mapping

import numpy as np

from hw_models.compile import CostTable
from hw_models.cost import evaluate_runnable
from hw_models.packed import average_weight_bits, packed_size_bytes
from hw_models.workload import Workload
from hwsearch.errors import UserError
from hwsearch.experiment import Experiment
from hwsearch.search.costing import compile_targets, experiment_workload, inner_weight_sites
from hwsearch.search.exact.costs import NotSeparableError, peak_activation_cost, separable_cost, site_changes
from hwsearch.search.exact.milp import optimum
from hwsearch.search.exact.problem import AllocationProblem, Cost, FloatArray, IntArray
from hwsearch.search.objectives import SIZE
from hwsearch.search.posterior.engine import KnownCost, table_cost
from hwsearch.search.posterior.model import OptionArray
from hwsearch.search.space import SearchSpace

_STARTS = 256
"""Number of random allocations that the search for the least cost starts from, in addition to the uniform ones."""

Charge = Callable[[IntArray], FloatArray]
"""Computes the cost [allocations] of widths [allocations, sites of the workload]."""


class CostBook:
    """Every cost that an experiment's candidates have, by column name."""

    def __init__(self, experiment: Experiment, space: SearchSpace) -> None:
        """Compile the targets.

        Raises:
            UserError: an unknown target or a wrong target file.
        """
        self._space = space
        self._workload = experiment_workload(experiment)
        self._targets = compile_targets(experiment, self._workload)
        self._charges = _charges(self._workload, self._targets)
        self._bits = _Widths(space, self._workload)

    def exact(self, name: str) -> Cost:
        """Return a cost as sums over the sites.

        Raises:
            UserError: an unknown cost, a width that the target cannot run, or (`NotSeparableError`) a cost that is no sum.
        """
        charge = self._charge(name)
        metric, target = _parts(name)
        if metric == "peak_activation_bytes":
            return peak_activation_cost(self._targets[target], self._space.widths)
        return separable_cost(name, charge, self._workload, self._space.widths)

    def known(self, name: str) -> KnownCost:
        """Return a cost for the posterior engine. A cost that is no sum is approximated by its changes from the narrowest
        allocation.

        Raises:
            UserError: an unknown cost, or one of a target that does not run the narrowest allocation.
        """
        charge = self._charge(name)
        by_site, least = site_changes(charge, self._workload, self._space.widths)
        if not math.isfinite(least):
            raise UserError(f"{name}: the target does not run the narrowest allocation; wanted widths that it runs")
        row = {site: index for index, (site, _) in enumerate(self._space.widths)}
        table = np.zeros((len(self._space.free), max((len(widths) for _, widths in self._space.free), default=0)))
        for index, (choice, widths) in enumerate(self._space.free):
            table[index, : len(widths)] = sum(by_site[row[site], : len(widths)] for site in self._space.members[choice])
        if name == SIZE:  # a sum of whole bytes: its changes add up to the last bit
            return table_cost(table, least)
        return KnownCost(table, lambda options: charge(self._bits(options)))

    def check_limits(self, limits: Mapping[str, float]) -> None:
        """Refuse limits that no allocation meets.

        Raises:
            UserError: no allocation meets a limit (names it, and the least that can be met), or a cost is unknown.
        """
        sums: list[Cost] = []
        for name, limit in limits.items():
            try:
                sums.append(self.exact(name))
            except NotSeparableError:
                if (least := self._least_found(name)) > limit:
                    raise UserError(
                        f"search.limits: limit {name} <= {limit:.10g} cannot be met; the least of all that was tried is "
                        f"{least:.10g}: raise it, or allow other widths"
                    ) from None
        if sums:
            loss = np.zeros((len(self._space.widths), max(len(widths) for _, widths in self._space.widths)))
            problem = AllocationProblem(self._space.widths, loss, tuple(sums), self._space.groups)
            try:
                optimum(problem, {cost.name: limits[cost.name] for cost in sums})
            except UserError as error:
                raise UserError(f"search.limits: {error}; raise it, or allow narrower widths") from None

    def _least_found(self, name: str) -> float:
        """Look for the least value of a cost that is no sum, by descents from uniform and random allocations.

        In a descent, each choice in turn takes the width that costs least, until none changes.
        """
        charge = self._charge(name)
        shape = np.array(self._space.shape, np.int64)
        random = np.random.default_rng(0).integers(shape, size=(_STARTS, len(shape)))
        uniform = np.minimum(np.arange(shape.max(initial=1))[:, None], shape - 1)
        starts = np.concatenate([uniform, random])
        point = starts[int(charge(self._bits(starts)).argmin())]
        while True:
            before = point.copy()
            for choice, widths in enumerate(shape):
                tried = np.repeat(point[None], widths, axis=0)
                tried[:, choice] = np.arange(widths)
                point = tried[int(charge(self._bits(tried)).argmin())]
            if (point == before).all():
                return float(charge(self._bits(point[None]))[0])

    def _charge(self, name: str) -> Charge:
        if name not in self._charges:
            raise UserError(f"search.objectives, search.limits: no cost '{name}'; wanted {self._names()}")
        return self._charges[name]

    def _names(self) -> str:
        """List the names of all costs, in words."""
        own = ", ".join(known for known in self._charges if "[" not in known)
        if not self._targets:
            return own
        every = dict.fromkeys(metric for table in self._targets.values() for metric in table.metrics)
        return f"{own}, or {', '.join(f'{metric}[T]' for metric in every)} with T one of {', '.join(self._targets)}"


class _Widths:
    """Converts options of the space to widths of the workload's sites."""

    def __init__(self, space: SearchSpace, workload: Workload) -> None:
        self._narrowest = np.zeros(len(workload.sites), np.int64)
        for site, widths in space.widths:
            self._narrowest[workload.column[site]] = widths[0]
        members = [(choice, site) for choice, (name, _) in enumerate(space.free) for site in space.members[name]]
        self._choices = np.array([choice for choice, _ in members], np.int64)
        """Choice [free sites] of each site that has one."""
        self._columns = np.array([workload.column[site] for _, site in members], np.int64)
        self._widths = np.zeros((len(members), max(space.shape, default=0)), np.int64)
        """Width [free sites, options] at each option."""
        for row, (choice, _) in enumerate(members):
            widths = space.free[choice][1]
            self._widths[row, : len(widths)] = widths

    def __call__(self, options: OptionArray) -> IntArray:
        """Return the widths [allocations, sites of the workload] of options [allocations, choices]."""
        bits = np.repeat(self._narrowest[None], len(options), axis=0)
        bits[:, self._columns] = self._widths[np.arange(len(self._choices)), np.asarray(options, np.int64)[:, self._choices]]
        return bits


def _charges(workload: Workload, targets: Mapping[str, CostTable]) -> dict[str, Charge]:
    inner = inner_weight_sites(workload)
    charges: dict[str, Charge] = {
        SIZE: lambda bits: packed_size_bytes(workload, bits).astype(np.float64),
        "average_bits": lambda bits: average_weight_bits(workload, bits),
        "tcn_average_bits": lambda bits: average_weight_bits(workload, bits, inner),
    }
    for name, table in targets.items():
        for metric in table.metrics:
            charges[f"{metric}[{name}]"] = _target_charge(table, metric)
    return charges


def _target_charge(table: CostTable, metric: str) -> Charge:
    def charge(bits: IntArray) -> FloatArray:
        can, costs = evaluate_runnable(table, bits)
        values = np.full(len(bits), math.inf)
        values[can] = costs.column(metric)
        return values

    return charge


def _parts(name: str) -> tuple[str, str]:
    """Split `latency_ms[target]` into metric and target. The target is empty for a cost that belongs to none."""
    metric, _, rest = name.partition("[")
    return metric, rest.removesuffix("]")
