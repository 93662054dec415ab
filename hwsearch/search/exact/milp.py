"""The optimum of a separable loss under several limits, by mixed-integer programming.

The program has a binary variable for every option of every choice, an equality row for every choice, and a row for every sum of a
limited cost: a limit on the largest of several sums is a limit on each of them. Where options of structure are searched, a choice
may be there under some variable only: its options sum to that variable.

The prices of the linear relaxation bound from below what every option adds to the loss. An option that adds more than the gap
between the relaxation and a first good solution is in no better solution. Such options are struck out before the optimum is
proven.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import NoReturn, Self

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, linprog, milp

from hwsearch.errors import UserError
from hwsearch.search.exact.problem import AllocationProblem, FloatArray, IndexArray, IntArray, quantum, readable

_SCALED_LOSS = 1e3
"""Scale of the loss above the least. The solver stops at an absolute gap of 1e-6, which cannot be set."""

_FIRST_GAP = 1e-2
"""Relative gap of the first solution."""

_PRICE_SLACK = 1e-6
"""Slack for rounding when options are struck out, in scaled losses."""

_SCALINGS = 2
"""Number of times that the relaxation is solved. The first time it is scaled by the largest loss of any option, which may be far
above the loss of the optimum."""

_OPTIMAL, _INFEASIBLE = 0, 2
"""Status codes of `scipy.optimize`."""

_LONGEST = 1e9
"""Time limit in seconds if there is none."""

_ROUNDING = 1e-12
"""Relative slack of limits, for rounding in sums of a few hundred costs."""

_EXCLUSIONS = 10
"""Number of allocations that are excluded one by one because they meet the limits only within the solver's tolerance."""

_MARGIN = 1e-5
"""If there are more such allocations, limits are lowered by this share of the largest cost of any option. The solver's tolerance
is 1e-6."""


@dataclass(frozen=True, eq=False)
class Optimum:
    """The best allocation found under limits."""

    indices: IndexArray
    """[sites] positions of widths; [variables] a point where options of structure are searched."""
    loss: float
    bound: float
    """No allocation within the limits has a smaller loss."""
    costs: Mapping[str, float]
    """All costs by name."""
    proven: bool
    """Whether loss and bound met, to 1e-9 of the loss above the least of any allocation. If not, time ran out, or limits were
    lowered because too many allocations exceed one by less than the solver's tolerance."""


def optimum(problem: AllocationProblem, limits: Mapping[str, float], seconds: float = math.inf) -> Optimum:
    """Return the allocation of least loss whose costs are within their limits.

    Args:
        problem: losses and costs.
        limits: the largest value of each limited cost, by name.
        seconds: longest time to solve. The best allocation found by then is returned with its bound.

    Raises:
        UserError: a cost is unknown, a limit cannot be met (states the least that can, given the limits before it), or nothing
            was found in time.
    """
    wrong = next((name for name, limit in limits.items() if math.isnan(limit) or limit == -math.inf), None)
    if wrong is not None:
        raise UserError(f"limit on {wrong} is {limits[wrong]}; wanted a number")
    return solve(_program(problem, tuple(limits)), lambda taken: _judged(problem, taken), limits, seconds)


@dataclass(frozen=True)
class Program:
    """The integer program: a variable for each option of each choice, [variables], and a row for each limited sum, [rows].

    Losses and costs are counted from the least of the choice, so none is negative. Rows are scaled to a largest coefficient of 1.
    """

    choice: IntArray
    """[variables] the choice that a variable is an option of."""
    under: IntArray
    """[choices] the variable under which a choice is there; -1 if it always is."""
    choices: FloatArray
    """[choices, variables] 1 where a variable belongs to a choice, -1 where it is the one that the choice is under."""
    loss: FloatArray
    least_loss: float
    rows: FloatArray
    least: FloatArray
    scale: FloatArray
    unit: FloatArray
    """Largest number that divides all coefficients of a row; 0 if there is none."""
    owner: IntArray
    """Limit that a row belongs to."""

    @classmethod
    def of(cls, choice: IntArray, under: IntArray, loss: FloatArray, limited: Sequence[tuple[FloatArray, FloatArray]]) -> Self:
        """Make a program.

        Args:
            choice: [variables] as the attribute.
            under: [choices] as the attribute. No choice is under a variable of a choice that is under another.
            loss: [variables]
            limited: for each limit, the sums [sums, variables] and the constants [sums] that they start from.
        """
        shifted = [_from_least(row, choice, under) for rows, _ in limited for row in rows]
        constants = [constant for _, constants in limited for constant in constants]
        rows = np.array([row for row, _ in shifted]).reshape(len(shifted), len(choice))
        scale = rows.max(axis=1, initial=0.0)
        scale[scale == 0] = 1.0
        choices = (np.arange(len(under))[:, None] == choice).astype(np.float64)
        inner = np.flatnonzero(under >= 0)
        choices[inner, under[inner]] = -1.0
        above_least, least_loss = _from_least(loss, choice, under)
        return cls(
            choice=choice,
            under=under,
            choices=choices,
            loss=above_least,
            least_loss=least_loss,
            rows=rows / scale[:, None],
            least=np.array([least + constant for (_, least), constant in zip(shifted, constants, strict=True)]),
            scale=scale,
            unit=np.array([quantum(row) or 0.0 for row in rows]),
            owner=np.repeat(np.arange(len(limited)), [len(rows) for rows, _ in limited]),
        )

    @property
    def taken(self) -> FloatArray:
        """[choices] how many variables of a choice are taken, less the variable that it is under."""
        return (self.under < 0).astype(np.float64)

    def room(self, limits: FloatArray) -> FloatArray:
        """Return the right-hand sides [rows] of limits. If sums have a unit, they lie halfway to its next multiple."""
        limit = limits[self.owner]
        with np.errstate(divide="ignore", invalid="ignore"):
            # Allow for rounding here. Later, the sums over the sites are held to the limits themselves.
            room = limit - self.least + _ROUNDING * np.maximum(np.abs(limit), np.abs(self.least))
            halfway = (np.floor(room / self.unit) + 0.5) * self.unit
        counted = (self.unit > 0) & np.isfinite(room)
        right: FloatArray = np.where(counted, halfway, room) / self.scale
        return right

    def constraints(self, room: FloatArray, excluded: Sequence[npt.NDArray[np.bool_]]) -> list[LinearConstraint]:
        """Constrain to one option for every choice, within the limits, and to none of the excluded allocations."""
        limited = np.isfinite(room)
        constraints = [LinearConstraint(self.choices, self.taken, self.taken)]
        if limited.any():
            constraints.append(LinearConstraint(self.rows[limited], -np.inf, room[limited]))
        if excluded:
            taken = np.array(excluded, np.float64)
            constraints.append(LinearConstraint(taken, -np.inf, taken.sum(axis=1) - 0.5))
        return constraints


Judge = Callable[[npt.NDArray[np.bool_]], Optimum]
"""Computes loss and costs of the allocation that takes these variables. Its bound is the loss."""


def solve(program: Program, judge: Judge, limits: Mapping[str, float], seconds: float = math.inf) -> Optimum:
    """Solve a program as `optimum` does.

    Raises:
        UserError: a limit cannot be met, or nothing was found in time.
    """
    allowed = np.array(list(limits.values()), np.float64)
    end = perf_counter() + seconds
    excluded: list[npt.NDArray[np.bool_]] = []
    while True:
        solution = _solve(program, program.room(allowed), excluded, end)
        if solution is None:
            _refuse(program, judge, limits)
        found = _optimum(judge, solution)
        if all(found.costs[name] <= limit for name, limit in limits.items()):
            return found
        if len(excluded) == _EXCLUSIONS:
            break
        excluded.append(solution.options)
    safe = _solve(program, program.room(allowed) - _MARGIN, [], end)
    if safe is None:
        _refuse(program, judge, limits)
    return replace(_optimum(judge, safe), bound=found.bound, proven=False)


def _program(problem: AllocationProblem, limited: tuple[str, ...]) -> Program:
    """Make the program of a problem with limits on these costs."""
    valid = problem.option_valid
    costs = [problem.cost(name) for name in limited]
    sums = [(np.array([problem.merged(table)[valid] for table in cost.tables]), cost.constants) for cost in costs]
    return Program.of(np.nonzero(valid)[0], np.full(len(valid), -1), problem.merged(problem.loss)[valid], sums)


def _judged(problem: AllocationProblem, taken: npt.NDArray[np.bool_]) -> Optimum:
    choice, option = np.nonzero(problem.option_valid)
    options = np.zeros((1, len(problem.members)), np.int8)
    options[0, choice[taken]] = option[taken]
    indices = problem.expand(options)
    loss = float(problem.loss_of(indices)[0])
    costs = {cost.name: float(problem.cost_of(cost.name, indices)[0]) for cost in problem.costs}
    return Optimum(indices[0], loss, loss, costs, proven=True)


def _optimum(judge: Judge, solution: "_Solution") -> Optimum:
    found = judge(solution.options)
    return replace(found, bound=min(solution.bound, found.loss), proven=solution.proven)


def _from_least(values: FloatArray, choice: IntArray, under: IntArray) -> tuple[FloatArray, float]:
    """Count the values [variables] of each choice from its least. Also return the sum of the least values.

    The least value of a choice under a variable is added to the value of that variable.
    """
    least = np.full(len(under), np.inf)
    np.minimum.at(least, choice, values)
    inner = under >= 0
    if not inner.any():
        return values - least[choice], float(least.sum())
    whole = values.copy()
    np.add.at(whole, under[inner], least[inner])
    least[~inner] = np.inf
    np.minimum.at(least, choice, whole)  # of choices under a variable, this repeats their least
    return whole - least[choice], float(least[~inner].sum())


@dataclass(frozen=True)
class _Solution:
    """The variables that are 1, and the solver's bound on the least loss."""

    options: npt.NDArray[np.bool_]
    bound: float
    proven: bool


@dataclass(frozen=True)
class _Relaxation:
    """Bounds on scaled losses from the linear relaxation."""

    scale: float
    """Factor on losses."""
    least: float
    """Lower bound on the loss of any allocation within the limits."""
    added: FloatArray
    """[variables] lower bound on what an option adds to `least`."""


def _solve(program: Program, room: FloatArray, excluded: Sequence[npt.NDArray[np.bool_]], end: float) -> _Solution | None:
    """Return the best solution within right-hand sides [rows] that is not excluded; None if there is none.

    Raises:
        UserError: none was found before `end`, in seconds of `perf_counter`.
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
    # The solver's bound holds for the kept options, the first solution for the others.
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


def _relax(program: Program, room: FloatArray) -> _Relaxation | None:
    """Solve the linear relaxation; None if it is infeasible."""
    limited = np.isfinite(room)
    rows, right = program.rows[limited], room[limited]
    scale = 1.0 / (program.loss.max() or 1.0)
    for _ in range(_SCALINGS):
        relaxed = linprog(
            scale * program.loss,
            A_ub=rows,
            b_ub=right,
            A_eq=program.choices,
            b_eq=program.taken,
            bounds=(0, 1),
        )
        if relaxed.status == _INFEASIBLE:
            return None
        if relaxed.status != _OPTIMAL:
            raise RuntimeError(f"linear relaxation: {relaxed.message}")
        prices = np.maximum(-relaxed.ineqlin.marginals, 0.0)
        priced = scale * program.loss + prices @ rows
        above, cheapest = _from_least(priced, program.choice, program.under)
        inner = program.under[program.choice]
        above[inner >= 0] += above[inner[inner >= 0]]
        # This bound holds at any prices, whatever the solver's tolerance.
        least = max(float(cheapest - prices @ right), 0.0)
        found = _Relaxation(scale, least, above)
        scale *= min(_SCALED_LOSS / max(least, 1e-9), 1e6)
    return found


def _refuse(program: Program, judge: Judge, limits: Mapping[str, float]) -> NoReturn:
    """Refuse the first limit that cannot be met together with those before it, and state the least that can."""
    names = list(limits)
    for number, name in enumerate(names):
        room = program.room(np.array([limits[other] if i < number else np.inf for i, other in enumerate(names)]))
        least = judge(_cheapest(program, room, number)).costs[name]
        if least > limits[name]:
            others = " and ".join(f"{other} <= {limits[other]:.10g}" for other in names[:number])
            given = f" with {others}" if others else ""
            raise UserError(
                f"limit {name} <= {limits[name]:.10g} cannot be met; the least any allocation takes{given} is {readable(least)}"
            )
    every = ", ".join(f"{name} <= {readable(limit)}" for name, limit in limits.items())
    raise UserError(f"limits {every} cannot be met together; each can with those before it, within rounding: raise the last one")


def _cheapest(program: Program, room: FloatArray, number: int) -> npt.NDArray[np.bool_]:
    """Return the variables of the allocation within `room` that has the least of one limited cost."""
    mine = program.owner == number
    size = len(program.choice)
    unit = program.scale[mine].max()
    limited = np.isfinite(room)
    # One more variable is the largest of the sums. Each row keeps its sum at or below it.
    largest = _with_column(program.rows[mine] * program.scale[mine, None] / unit, -1.0)
    constraints = [
        LinearConstraint(_with_column(program.choices, 0.0), program.taken, program.taken),
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
