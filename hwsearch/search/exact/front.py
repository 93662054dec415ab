"""The exact front of a separable loss against one additive cost: a multiple-choice knapsack with every budget at once.

There are three ways, all exact:

- `supported_front` gives the corners of the front's convex hull. It takes the steps of every choice's own hull in the order of
  loss saved per cost (Sinha and Zoltners 1979), in milliseconds at any size.
- `front_at` gives the optimum at each of a few budgets. Between two corners of the hull, the optimum is no further above their
  line than the best known allocation. This leaves a few choices undecided (the core, Pisinger 1995). A dynamic program over
  non-dominated states decides them.
- `exact_front` gives the whole front. If costs are multiples of a quantum and not too many, a dynamic program goes over every
  cost; otherwise `exact_front` works as `front_at` does, between all corners (the two phases of Ulungu and Teghem 1995).

Exact means that no other allocation is better, except by rounding in the sums of losses (a few units in the last place). Costs
that are whole multiples of one number, such as bytes, are summed without rounding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hwsearch.errors import UserError
from hwsearch.search.exact.problem import AllocationProblem, FloatArray, IndexArray, IntArray, quantum, readable

DENSE_UPDATES = 1_000_000_000
"""Largest number of table updates for the dynamic program over all costs: about a second, and a fifth as many bytes."""

_ROUNDING = 1e-12
"""Relative slack for sums of a few hundred losses."""

_FIRST_CORE = 12
"""Number of options off the hull that the search between two corners starts with. It adds more until the result is proven."""

_NO_STEPS = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0))


PositionArray = npt.NDArray[np.signedinteger[Any]]
"""Options of choices, in the smallest type that holds their number."""


@dataclass(frozen=True, eq=False)
class Front:
    """Allocations in rising order of cost."""

    indices: IndexArray
    """[allocations, sites] positions of widths; [configurations, variables] points where options of structure are searched."""
    costs: FloatArray
    """[allocations]"""
    losses: FloatArray
    """[allocations]"""


@dataclass(frozen=True, eq=False)
class Tables:
    """A multiple-choice knapsack: one option of every choice is taken, and costs and losses add up."""

    metric: str
    """Name of the cost."""
    costs: FloatArray
    """[choices, options], infinite where a choice has no such option."""
    losses: FloatArray
    """[choices, options]"""
    judge: Callable[[PositionArray], Front]
    """Makes allocations of options [allocations, choices], with the costs and losses that count."""


def supported_front(problem: AllocationProblem, metric: str) -> Front:
    """Return the corners of the lower convex hull of loss against cost, and some allocations on its edges.

    Raises:
        UserError: there is no such cost, or it is not additive.
    """
    tables = _tables(problem, metric)
    return tables.judge(supported_options(tables.costs, tables.losses))


def supported_options(costs: FloatArray, losses: FloatArray, choose: Callable[[int], IntArray] = np.arange) -> PositionArray:
    """Solve as `supported_front` does, from tables, for callers that solve under many losses.

    Args:
        costs: [choices, options], infinite where a choice has no such option.
        losses: [choices, options].
        choose: takes the number of allocations in rising order of cost, and returns which of them are wanted, each once. The
            default is all.

    Returns:
        Options [allocations, choices], in the order of `choose`.
    """
    knapsack = _sorted_tables(costs, losses)
    steps = _hull_steps(knapsack)
    wanted = choose(len(steps.cost) + 1)
    rising = np.sort(wanted)
    positions = _corners(knapsack, steps, rising).T[np.searchsorted(rising, wanted)]
    return _options(knapsack, positions.T)


def front_at(problem: AllocationProblem, metric: str, budgets: Sequence[float]) -> Front:
    """Return the allocation of least loss at each budget, in the order of the budgets; of equal losses, the cheapest.

    Raises:
        UserError: there is no such cost, it is not additive, or no allocation is within a budget.
    """
    return optima_at(_tables(problem, metric), budgets)


def optima_at(tables: Tables, budgets: Sequence[float]) -> Front:
    """Solve as `front_at` does, from tables.

    Raises:
        UserError: no allocation is within a budget.
    """
    knapsack = _sorted_tables(tables.costs, tables.losses)
    steps = _hull_steps(knapsack)
    corners = _corners(knapsack, steps)
    windows = [*_windows(steps), _Window(first=len(steps.cost), slope=0.0, span=0.0)]
    starts = corners[:, [window.first for window in windows]]
    started = tables.judge(_options(knapsack, starts))
    start_costs = started.costs
    limits = np.array(budgets, np.float64)
    if not (limits >= start_costs[0]).all():
        worst, least = limits[~(limits >= start_costs[0])][0], readable(float(start_costs[0]))
        raise UserError(f"limit {tables.metric} <= {worst:.10g} cannot be met; the least any allocation takes is {least}")
    owner = np.searchsorted(start_costs, limits, side="right") - 1
    # Costs that are summed site by site decide whether a budget is met, as everywhere else.
    slack = _ROUNDING * float(np.abs(start_costs).max())
    none = np.zeros(0, np.int64)
    best, order = [_rows(started, none)], [none]
    for number in np.unique(owner):
        mine = np.flatnonzero(owner == number)
        within = limits[mine] - start_costs[number]
        positions = _between(knapsack, starts[:, number], windows[number], within, slack)
        found = _non_dominated(tables.judge(_options(knapsack, positions)))
        best.append(_rows(found, np.searchsorted(found.costs, limits[mine], side="right") - 1))
        order.append(mine)
    return _rows(_joined(best), np.argsort(np.concatenate(order)))


def exact_front(problem: AllocationProblem, metric: str) -> Front:
    """Return every non-dominated pair of cost and loss, with one allocation for each.

    Raises:
        UserError: there is no such cost, or it is not additive.
    """
    return whole_front(_tables(problem, metric))


def whole_front(tables: Tables) -> Front:
    """Solve as `exact_front` does, from tables."""
    knapsack = _sorted_tables(tables.costs, tables.losses)
    unit = quantum(knapsack.costs[np.isfinite(knapsack.costs)])
    if unit is not None and _dense_updates(knapsack, unit) <= DENSE_UPDATES:
        positions = _dense_front(knapsack, unit)
    else:
        steps = _hull_steps(knapsack)
        corners = _corners(knapsack, steps)
        parts = [_between(knapsack, corners[:, window.first], window) for window in _windows(steps)]
        positions = np.concatenate([*parts, corners[:, -1:]], axis=1)
    return _non_dominated(tables.judge(_options(knapsack, positions)))


def least_sums(costs: FloatArray, losses: FloatArray) -> tuple[FloatArray, FloatArray, PositionArray]:
    """Return the non-dominated sums of a few choices: costs, losses, and the options [sums, choices].

    One choice after another is added to the list of sums (Nemhauser and Ullmann 1969). `costs` and `losses` are those of
    options [choices, options]; an option whose cost is infinite does not exist.
    """
    cost, loss = np.zeros(1), np.zeros(1)
    picked = np.zeros((1, 0), _position_type(costs.shape[1]))
    for row, row_losses in zip(costs, losses, strict=True):
        options = np.flatnonzero(np.isfinite(row))
        cost = (cost[:, None] + row[options]).ravel()
        loss = (loss[:, None] + row_losses[options]).ravel()
        kept = non_dominated(cost, loss)
        cost, loss = cost[kept], loss[kept]
        before, last = picked[kept // len(options)], options[kept % len(options)].astype(picked.dtype)
        picked = np.concatenate([before, last[:, None]], axis=1)
    return cost, loss, picked


def hull_paths(costs: FloatArray, losses: FloatArray, group: IntArray, slot: IntArray, shape: tuple[int, int]) -> PositionArray:
    """Return the corners of the convex hulls of groups of choices.

    Args:
        costs: [choices, options], infinite where a choice has no such option.
        losses: [choices, options]
        group: [choices] the group of each choice.
        slot: [choices] the place of each choice in its group.
        shape: number of groups, and of slots of a group.

    Returns:
        Options [groups, corners, slots] in rising order of cost. A group with fewer corners repeats its last.
    """
    with np.errstate(invalid="ignore"):  # all options of a choice may be infinitely dear
        knapsack = _sorted_tables(costs, losses)
    steps = _hull_steps(knapsack)
    order = np.argsort(group[steps.choice], kind="stable")
    choice = steps.choice[order]
    owner = group[choice]
    corner = np.arange(1, len(order) + 1) - np.searchsorted(owner, owner)
    positions = np.zeros((shape[0], int(corner.max(initial=0)) + 1, shape[1]), knapsack.options.dtype)
    positions[owner, corner, slot[choice]] = steps.position[order]
    np.maximum.accumulate(positions, axis=1, out=positions)
    row = np.zeros(shape, np.int64)
    row[group, slot] = np.arange(len(group))
    options: PositionArray = knapsack.options[row[:, None], positions]
    return options


@dataclass(frozen=True)
class _Knapsack:
    """The non-dominated options of every choice by rising cost and falling loss, [choices, options].

    Costs start at 0. Costs and losses are padded with infinity. `options` are positions among the options of the problem.
    """

    costs: FloatArray
    losses: FloatArray
    options: PositionArray
    counts: IntArray


@dataclass(frozen=True)
class _Steps:
    """Steps along the hulls of all choices, [steps], by falling loss saved per cost."""

    choice: IntArray
    position: IntArray
    """Option of the knapsack after the step."""
    cost: FloatArray
    slope: FloatArray
    """Loss saved per cost."""


@dataclass(frozen=True)
class _Window:
    """An edge of the hull: it begins after `first` steps and spans `span` of cost."""

    first: int
    slope: float
    span: float


def _tables(problem: AllocationProblem, metric: str) -> Tables:
    cost = problem.cost(metric)
    if not cost.additive:
        raise UserError(
            f"{metric} is the largest of {len(cost.tables)} sums; a front wants a cost that is one sum over the sites"
        )

    def judge(options: PositionArray) -> Front:
        indices = problem.expand(options.astype(np.int8, copy=False))
        return Front(indices, problem.cost_of(metric, indices), problem.loss_of(indices))

    return Tables(metric, problem.merged(cost.tables[0]), problem.merged(problem.loss), judge)


def _position_type(options: int) -> type[np.int8 | np.int16 | np.int32]:
    """Return the smallest type of positions among so many options."""
    return next((kind for kind in (np.int8, np.int16) if options - 1 <= np.iinfo(kind).max), np.int32)


def _sorted_tables(costs: FloatArray, losses: FloatArray) -> _Knapsack:
    each = np.arange(len(costs))[:, None]
    order = np.lexsort((losses, costs), axis=1)
    costs, losses = costs[each, order], losses[each, order]
    keep = np.isfinite(costs)
    keep[:, 1:] &= losses[:, 1:] < np.minimum.accumulate(losses, axis=1)[:, :-1]
    front = np.argsort(~keep, axis=1, kind="stable")
    kept, costs, losses = keep[each, front], costs[each, front], losses[each, front]
    return _Knapsack(
        costs=np.where(kept, costs - costs[:, :1], np.inf),
        losses=np.where(kept, losses, np.inf),
        options=order[each, front].astype(_position_type(costs.shape[1])),
        counts=kept.sum(axis=1),
    )


def _hull_steps(knapsack: _Knapsack) -> _Steps:
    """Take steps in every choice from its cheapest option to its best, each to the option that saves most loss per cost."""
    rows = np.arange(len(knapsack.counts))
    at = np.zeros(len(rows), np.int64)
    before = np.full(len(rows), np.inf)
    columns = np.arange(knapsack.costs.shape[1])
    parts = [_NO_STEPS]
    while (ahead := at < knapsack.counts[rows] - 1).any():
        rows, at, before = rows[ahead], at[ahead], before[ahead]
        costs, losses = knapsack.costs[rows], knapsack.losses[rows]
        each = np.arange(len(rows))
        extra = costs - costs[each, at, None]
        saved = losses[each, at, None] - losses
        later = (columns > at[:, None]) & (columns < knapsack.counts[rows, None])
        slopes = np.divide(saved, extra, out=np.full(extra.shape, -np.inf), where=later)
        at = slopes.argmax(axis=1)
        # Steps of a choice stay in order even if rounding makes a later one steeper.
        before = np.minimum(before, slopes[each, at])
        parts.append((rows, at, extra[each, at], before))
    choice, position, cost, slope = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(-slope, kind="stable")
    return _Steps(choice[order], position[order], cost[order], slope[order])


def _corners(knapsack: _Knapsack, steps: _Steps, after: IntArray | None = None) -> PositionArray:
    """Return the positions [choices, len(after)] after these numbers of steps, rising; the default is every number."""
    if after is None:
        after = np.arange(len(steps.cost) + 1)
    # Enter each step in the first row that shows it. If a row shows several steps of a choice, the last and farthest one stays.
    shown = np.searchsorted(after, np.arange(1, len(steps.cost) + 1))
    positions = np.zeros((len(after) + 1, len(knapsack.counts)), knapsack.options.dtype)
    positions[shown, steps.choice] = steps.position
    return _running_maximum(positions[:-1]).T


def _running_maximum(rows: PositionArray) -> PositionArray:
    """Return the running maximum down the rows, five times as fast as NumPy's, which goes number by number."""
    reach = 1
    while reach < len(rows):
        # Each row holds the maximum of `reach` rows, then of twice as many.
        rows[reach:] = np.maximum(rows[reach:], rows[:-reach])
        reach *= 2
    return rows


def _windows(steps: _Steps) -> list[_Window]:
    """Return the edges of the hull. Steps of one slope make one edge."""
    first = np.flatnonzero(np.diff(steps.slope, prepend=np.nan) != 0)
    spans = np.add.reduceat(steps.cost, first) if first.size else steps.cost
    return [_Window(int(i), float(steps.slope[i]), float(span)) for i, span in zip(first, spans, strict=True)]


def _between(
    knapsack: _Knapsack, corner: PositionArray, window: _Window, budgets: FloatArray | None = None, budget_slack: float = 0.0
) -> PositionArray:
    """Return the positions [choices, allocations] of the non-dominated allocations from a corner up to the next.

    With the window's slope as the price of cost, an option's *regret* is its loss + slope * cost above that of the choice's best
    option. The regrets of an allocation add up to its height above the edge of the hull. So all allocations whose regrets sum to
    at most a bound are enumerated. The bound rises until no better allocation can be left, that is, until no gap between a point
    and the next reaches higher above the edge than the bound. For given budgets, only the gaps at these budgets matter.
    """
    if not window.span:
        return corner[:, None]
    start = corner[:, None].astype(np.int64)
    steps = knapsack.costs - np.take_along_axis(knapsack.costs, start, 1)
    priced = knapsack.losses + window.slope * knapsack.costs
    least = priced.min(axis=1, keepdims=True)
    regrets = priced - least
    slack = _ROUNDING * float(least.sum())
    off_edge = np.sort(regrets[(regrets > slack) & np.isfinite(regrets)])
    bound = float(off_edge[min(_FIRST_CORE, len(off_edge)) - 1]) if off_edge.size else 0.0
    reach = window.span if budgets is None else float(budgets.max()) + budget_slack
    while True:
        found = _enumerate(corner, steps, regrets, window.slope, bound + slack, reach)
        if budgets is None:
            edges, losses = np.append(found.costs[1:], window.span), found.losses
        else:
            surely = np.maximum(np.searchsorted(found.costs, budgets - budget_slack, side="right") - 1, 0)
            edges, losses = budgets, found.losses[surely]
        gap = float((losses + window.slope * edges).max())
        if gap <= bound + slack:
            return found.positions
        bound = min(2.0 * bound, gap) if bound else gap


@dataclass(frozen=True)
class _Found:
    """Non-dominated allocations by rising cost and falling loss, relative to a corner, which is the first of them."""

    costs: FloatArray
    losses: FloatArray
    positions: PositionArray


def _enumerate(corner: PositionArray, steps: FloatArray, regrets: FloatArray, slope: float, bound: float, reach: float) -> _Found:
    """Enumerate the non-dominated allocations with regrets that sum to at most `bound`, at most `reach` dearer than the corner.

    `steps` are costs relative to the corner, [choices, options]; `slope` is the price of cost.
    """
    allowed = regrets <= bound
    core = np.flatnonzero(allowed.sum(axis=1) > 1)
    lowest = np.where(allowed, steps, np.inf)[core].min(axis=1)
    highest = np.where(allowed, steps, -np.inf)[core].max(axis=1)
    order = np.argsort(lowest - highest, kind="stable")
    core = core[order]
    # The most that the remaining choices can subtract from the cost, and add to it.
    below = np.append(np.cumsum(lowest[order][::-1])[::-1], 0.0)
    above = np.append(np.cumsum(highest[order][::-1])[::-1], 0.0)
    costs, heights = np.zeros(1), np.zeros(1)
    history: list[tuple[IntArray, IntArray]] = []
    for stage, choice in enumerate(core):
        options = np.flatnonzero(allowed[choice])
        costs_next = (costs[:, None] + steps[choice, options]).ravel()
        heights_next = (heights[:, None] + regrets[choice, options]).ravel()
        alive = (heights_next <= bound) & (costs_next + below[stage + 1] <= reach) & (costs_next + above[stage + 1] >= 0.0)
        kept = np.flatnonzero(alive)
        kept = kept[non_dominated(costs_next[kept], heights_next[kept] - slope * costs_next[kept])]
        costs, heights = costs_next[kept], heights_next[kept]
        history.append((kept // len(options), options[kept % len(options)]))
    losses = heights - slope * costs
    inside = np.flatnonzero((costs > 0.0) & (costs <= reach) & (losses < 0.0))
    positions = np.repeat(corner[:, None], len(inside) + 1, axis=1)
    at = inside
    for choice, (parents, chosen) in zip(core[::-1], history[::-1], strict=True):
        positions[choice, 1:] = chosen[at]
        at = parents[at]
    return _Found(np.append(0.0, costs[inside]), np.append(0.0, losses[inside]), positions)


def _dense_updates(knapsack: _Knapsack, unit: float) -> float:
    """Count the table updates of `_dense_front`."""
    ranges = np.where(np.isfinite(knapsack.costs), knapsack.costs, 0.0).max(axis=1) / unit
    order = np.argsort(ranges, kind="stable")
    return float((np.cumsum(ranges[order]) * knapsack.counts[order]).sum())


def _dense_front(knapsack: _Knapsack, unit: float) -> PositionArray:
    """Return the positions [choices, allocations] of the whole front, from the least loss at every multiple of `unit`."""
    ranges = np.rint(np.where(np.isfinite(knapsack.costs), knapsack.costs, 0.0) / unit).astype(np.int64)
    order = np.argsort(ranges.max(axis=1), kind="stable")  # with small ranges first, the table stays short for long
    longest = int(ranges.max(axis=1).sum()) + 1
    kind = knapsack.options.dtype
    loss, better, marked = np.empty(longest), np.empty(longest, np.bool_), np.empty(longest, kind)
    best = np.zeros(1)
    history: list[PositionArray] = []
    for choice in order:
        size = len(best)
        longer = np.full(size + ranges[choice].max(), np.inf)
        longer[:size] = best + knapsack.losses[choice, 0]
        chosen = np.zeros(len(longer), kind)
        for position in range(1, int(knapsack.counts[choice])):
            above = slice(ranges[choice, position], ranges[choice, position] + size)
            np.add(best, knapsack.losses[choice, position], out=loss[:size])
            np.less(loss[:size], longer[above], out=better[:size])
            np.minimum(longer[above], loss[:size], out=longer[above])
            # Positions rise, so the last better one is the largest. A maximum is faster than copying under a mask.
            np.multiply(better[:size].view(np.int8), kind.type(position), out=marked[:size])
            np.maximum(chosen[above], marked[:size], out=chosen[above])
        best = longer
        history.append(chosen)
    at = np.flatnonzero(best < np.append(np.inf, np.minimum.accumulate(best)[:-1]))
    positions = np.empty((len(order), len(at)), kind)
    for choice, chosen in zip(order[::-1], history[::-1], strict=True):
        positions[choice] = chosen[at]
        at = at - ranges[choice, positions[choice]]
    return positions


def _options(knapsack: _Knapsack, positions: PositionArray) -> PositionArray:
    """Return positions [choices, allocations] as options [allocations, choices]."""
    first = np.arange(len(knapsack.options)) * knapsack.options.shape[1]
    options: PositionArray = knapsack.options.take(positions.T + first)
    return options


def _rows(front: Front, rows: IntArray) -> Front:
    return Front(front.indices[rows], front.costs[rows], front.losses[rows])


def _joined(fronts: Sequence[Front]) -> Front:
    return Front(
        np.concatenate([front.indices for front in fronts]),
        np.concatenate([front.costs for front in fronts]),
        np.concatenate([front.losses for front in fronts]),
    )


def _non_dominated(front: Front) -> Front:
    return _rows(front, non_dominated(front.costs, front.losses))


def non_dominated(costs: FloatArray, losses: FloatArray) -> IntArray:
    """Return the non-dominated points by rising cost; one of equals."""
    order = np.lexsort((losses, costs))
    ordered = losses[order]
    return order[ordered < np.append(np.inf, np.minimum.accumulate(ordered)[:-1])] if len(order) else order
