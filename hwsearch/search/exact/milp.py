"""The optimum of a separable loss under several limits at once, by mixed-integer programming.

One binary variable for every option of every choice, one equality row for every choice, and one row for every sum of a limited
cost: a limit on the largest of several sums is a limit on each of them. Sites of a group are one choice, which is what equality
rows between them would say.

The relaxation's prices bound what every option adds at least. Options that add more than the gap between the relaxation and a
first good solution are in no better one, and are struck out before the optimum is proven.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import NoReturn, Self

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, linprog, milp

from hwsearch.errors import UserError
from hwsearch.search.exact.problem import AllocationProblem, FloatArray, IndexArray, IntArray, quantum, readable

_SCALED_LOSS = 1e3
"""What the loss above the least is scaled to: the solver stops at an absolute gap of 1e-6 that cannot be set."""

_FIRST_GAP = 1e-2
"""Relative gap at which the first solution is good enough to strike options out."""

_PRICE_SLACK = 1e-6
"""Slack on struck out options, in scaled losses, for rounding in sums."""

_SCALINGS = 2
"""Solutions of the relaxation: the first is scaled by the largest loss of any option, which may dwarf that of the optimum."""

_OPTIMAL, _INFEASIBLE = 0, 2
"""Status codes of `scipy.optimize`."""

_LONGEST = 1e9
"""Seconds that stand for no limit."""

_ROUNDING = 1e-12
"""Relative slack of limits for rounding in sums of a few hundred costs."""

_EXCLUSIONS = 10
"""Allocations that meet the limits within the solver's tolerance only, and are excluded one by one."""

_MARGIN = 1e-5
"""What limits are lowered by if there are more such allocations, as a share of the largest cost of any option; the solver's
tolerance is 1e-6."""


@dataclass(frozen=True, eq=False)
class Optimum:
    """The best allocation found under limits.

    Attributes:
        indices: `[sites]` positions of the widths among those of each site.
        loss: its loss.
        bound: no allocation within the limits has a loss smaller than this.
        costs: all its costs, by name.
        proven: whether the solver went on until loss and bound met, to 1e-9 of the loss above the least of any allocation. Else
            time ran out, or too many allocations exceed a limit by less than the solver's tolerance and it had to be lowered.
    """

    indices: IndexArray
    loss: float
    bound: float
    costs: Mapping[str, float]
    proven: bool


def optimum(problem: AllocationProblem, limits: Mapping[str, float], seconds: float = math.inf) -> Optimum:
    """The allocation of least loss whose costs are within their limits.

    Args:
        problem: losses and costs.
        limits: the largest value of each limited cost, by name.
        seconds: longest time to solve; what was found until then is returned with its bound.

    Raises:
        UserError: an unknown cost, a limit that cannot be met (with the least that can, given the limits before it), or nothing
            found in the time given.
    """
    wrong = next((name for name, limit in limits.items() if math.isnan(limit) or limit == -math.inf), None)
    if wrong is not None:
        raise UserError(f"limit on {wrong} is {limits[wrong]}; wanted a number")
    program = _Program.of(problem, tuple(limits))
    allowed = np.array(list(limits.values()), np.float64)
    end = perf_counter() + seconds
    excluded: list[npt.NDArray[np.bool_]] = []
    while True:
        solution = _solve(program, program.room(allowed), excluded, end)
        if solution is None:
            _refuse(program, problem, limits)
        found = _optimum(problem, program, solution)
        if all(found.costs[name] <= limit for name, limit in limits.items()):
            return found
        if len(excluded) == _EXCLUSIONS:
            break
        excluded.append(solution.options)
    safe = _solve(program, program.room(allowed) - _MARGIN, [], end)
    if safe is None:
        _refuse(program, problem, limits)
    return replace(_optimum(problem, program, safe), bound=found.bound, proven=False)


def _optimum(problem: AllocationProblem, program: "_Program", solution: "_Solution") -> Optimum:
    options = np.zeros((1, program.choices.shape[0]), np.int8)
    options[0, program.choice[solution.options]] = program.option[solution.options]
    indices = problem.expand(options)
    loss = float(problem.loss_of(indices)[0])
    costs = {cost.name: float(problem.cost_of(cost.name, indices)[0]) for cost in problem.costs}
    return Optimum(indices[0], loss, min(solution.bound, loss), costs, solution.proven)


@dataclass(frozen=True)
class _Solution:
    """Variables taken, and what the solver knows of the least loss."""

    options: npt.NDArray[np.bool_]
    bound: float
    proven: bool


@dataclass(frozen=True)
class _Program:
    """The integer program: a variable for each option of each choice, `[variables]`, and a row for each limited sum, `[rows]`.

    Losses and costs are what they are above the least of the choice, so none is negative; rows are scaled to coefficients of 1 at
    most.
    """

    choice: IntArray
    option: IntArray
    choices: FloatArray
    """`[choices, variables]` 1 where a variable belongs to a choice."""
    loss: FloatArray
    least_loss: float
    rows: FloatArray
    least: FloatArray
    scale: FloatArray
    unit: FloatArray
    """The largest number that divides all coefficients of a row; 0 if there is none."""
    owner: IntArray
    """Which limit a row belongs to."""

    @classmethod
    def of(cls, problem: AllocationProblem, limited: tuple[str, ...]) -> Self:
        """The program of a problem for the costs of these names."""
        valid = problem.option_valid
        choice, option = np.nonzero(valid)
        loss = problem.merged(problem.loss)
        least_loss = loss.min(axis=1)
        costs = [problem.cost(name) for name in limited]
        tables = [problem.merged(table) for cost in costs for table in cost.tables]
        constants = [constant for cost in costs for constant in cost.constants]
        rows = np.array([(table - table.min(axis=1, keepdims=True))[valid] for table in tables]).reshape(len(tables), len(choice))
        scale = rows.max(axis=1, initial=0.0)
        scale[scale == 0] = 1.0
        return cls(
            choice=choice,
            option=option,
            choices=(np.arange(len(valid))[:, None] == choice).astype(np.float64),
            loss=(loss - least_loss[:, None])[valid],
            least_loss=float(least_loss.sum()),
            rows=rows / scale[:, None],
            least=np.array([table.min(axis=1).sum() + constant for table, constant in zip(tables, constants, strict=True)]),
            scale=scale,
            unit=np.array([quantum(row) or 0.0 for row in rows]),
            owner=np.repeat(np.arange(len(costs)), [len(cost.tables) for cost in costs]),
        )

    def room(self, limits: FloatArray) -> FloatArray:
        """Right-hand sides `[rows]` of limits; where sums have a unit, halfway to the next multiple, beyond all tolerance."""
        limit = limits[self.owner]
        with np.errstate(divide="ignore", invalid="ignore"):
            # What rounding costs is given back here, and taken again when the sums over the sites are held to the limits.
            room = limit - self.least + _ROUNDING * np.maximum(np.abs(limit), np.abs(self.least))
            halfway = (np.floor(room / self.unit) + 0.5) * self.unit
        counted = (self.unit > 0) & np.isfinite(room)
        right: FloatArray = np.where(counted, halfway, room) / self.scale
        return right

    def constraints(self, room: FloatArray, excluded: Sequence[npt.NDArray[np.bool_]]) -> list[LinearConstraint]:
        """One option for every choice, the limits, and not all options of an excluded allocation."""
        limited = np.isfinite(room)
        constraints = [LinearConstraint(self.choices, 1, 1)]
        if limited.any():
            constraints.append(LinearConstraint(self.rows[limited], -np.inf, room[limited]))
        if excluded:
            constraints.append(LinearConstraint(np.array(excluded, np.float64), -np.inf, len(self.choices) - 0.5))
        return constraints


@dataclass(frozen=True)
class _Relaxation:
    """What the relaxation says of scaled losses.

    Attributes:
        scale: factor on losses.
        least: no allocation within the limits has less.
        added: `[variables]` what an option adds to `least`, at the least.
    """

    scale: float
    least: float
    added: FloatArray


def _solve(program: _Program, room: FloatArray, excluded: Sequence[npt.NDArray[np.bool_]], end: float) -> _Solution | None:
    """The best solution within right-hand sides `[rows]` that is none of the excluded; None if there is none at all.

    Raises:
        UserError: none found before `end`, seconds of `perf_counter`.
    """
    relaxed = _relax(program, room)
    if relaxed is None:
        return None
    constraints = program.constraints(room, excluded)
    first = _solve_integer(relaxed.scale * program.loss, np.ones(len(program.loss)), constraints, _FIRST_GAP, end)
    if first.status == _INFEASIBLE:
        return None
    if first.x is None:
        raise UserError(f"found no allocation within the limits in the time given: {first.message}; wanted more seconds")
    taken = first.x > 0.5
    most = float(program.loss[taken].sum())
    kept = relaxed.added <= max(relaxed.scale * most - relaxed.least, 0.0) + _PRICE_SLACK
    scale = _SCALED_LOSS / most if most > 0 else relaxed.scale
    last = _solve_integer(scale * program.loss, kept.astype(np.float64), constraints, 0.0, end)
    least = relaxed.least / relaxed.scale
    if last.x is None:
        return _Solution(taken, least + program.least_loss, proven=False)
    taken = last.x > 0.5
    # The solver's bound holds for the options that were kept, the first solution for the others.
    bound = max(min(last.mip_dual_bound / scale, most), least)
    return _Solution(taken, bound + program.least_loss, proven=last.status == _OPTIMAL)


def _solve_integer(
    loss: FloatArray, upper: FloatArray, constraints: list[LinearConstraint], gap: float, end: float
) -> OptimizeResult:
    return milp(
        loss,
        integrality=np.ones(len(loss), np.int64),
        bounds=Bounds(0, upper),
        constraints=constraints,
        options={"mip_rel_gap": gap, "time_limit": min(max(end - perf_counter(), 0.0), _LONGEST)},
    )


def _relax(program: _Program, room: FloatArray) -> _Relaxation | None:
    """The linear relaxation; None if it is infeasible."""
    limited = np.isfinite(room)
    rows, right = program.rows[limited], room[limited]
    scale = 1.0 / (program.loss.max() or 1.0)
    for _ in range(_SCALINGS):
        relaxed = linprog(
            scale * program.loss,
            A_ub=rows,
            b_ub=right,
            A_eq=program.choices,
            b_eq=np.ones(program.choices.shape[0]),
            bounds=(0, 1),
        )
        if relaxed.status == _INFEASIBLE:
            return None
        if relaxed.status != _OPTIMAL:
            raise RuntimeError(f"linear relaxation: {relaxed.message}")
        prices = np.maximum(-relaxed.ineqlin.marginals, 0.0)
        priced = scale * program.loss + prices @ rows
        cheapest = np.full(program.choices.shape[0], np.inf)
        np.minimum.at(cheapest, program.choice, priced)
        # A bound at any prices, right to rounding whatever the solver's tolerance was.
        least = max(float(cheapest.sum() - prices @ right), 0.0)
        found = _Relaxation(scale, least, priced - cheapest[program.choice])
        scale *= min(_SCALED_LOSS / max(least, 1e-9), 1e6)
    return found


def _refuse(program: _Program, problem: AllocationProblem, limits: Mapping[str, float]) -> NoReturn:
    """Name the first limit that cannot be met together with those before it, and the least that can."""
    names = list(limits)
    for number, name in enumerate(names):
        room = program.room(np.array([limits[other] if i < number else np.inf for i, other in enumerate(names)]))
        least = _optimum(problem, program, _Solution(_cheapest(program, room, number), 0.0, proven=True)).costs[name]
        if least > limits[name]:
            others = " and ".join(f"{other} <= {limits[other]:.10g}" for other in names[:number])
            given = f" with {others}" if others else ""
            raise UserError(
                f"limit {name} <= {limits[name]:.10g} cannot be met; the least any allocation takes{given} is {readable(least)}"
            )
    every = ", ".join(f"{name} <= {readable(limit)}" for name, limit in limits.items())
    raise UserError(f"limits {every} cannot be met together; each can with those before it, within rounding: raise the last one")


def _cheapest(program: _Program, room: FloatArray, number: int) -> npt.NDArray[np.bool_]:
    """Variables of the allocation within `room` that takes least of one limited cost."""
    mine = program.owner == number
    size = len(program.choice)
    unit = program.scale[mine].max()
    limited = np.isfinite(room)
    # One more variable is the largest of the sums, which each row holds down to.
    largest = _with_column(program.rows[mine] * program.scale[mine, None] / unit, -1.0)
    constraints = [
        LinearConstraint(_with_column(program.choices, 0.0), 1, 1),
        LinearConstraint(largest, -np.inf, -program.least[mine] / unit),
        LinearConstraint(_with_column(program.rows[limited], 0.0), -np.inf, room[limited]),
    ]
    result = milp(
        np.append(np.zeros(size), 1.0),
        integrality=np.append(np.ones(size, np.int64), 0),
        bounds=Bounds(np.append(np.zeros(size), -np.inf), np.append(np.ones(size), np.inf)),
        constraints=constraints,
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        raise RuntimeError(f"least cost within limits that can be met: {result.message}")
    taken: npt.NDArray[np.bool_] = result.x[:-1] > 0.5
    return taken


def _with_column(matrix: FloatArray, value: float) -> FloatArray:
    return np.column_stack([matrix, np.full(len(matrix), value)])
