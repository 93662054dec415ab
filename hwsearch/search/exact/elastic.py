"""Exact fronts where widths and structure are searched together.

Parts do not depend on one another, and what a choice of a part costs depends on the variant of its part. So each part is solved
first, variant by variant: the non-dominated sums of its choices, united over the variants and pruned, are its *menu*. A menu is a
choice with many options. What remains is a knapsack over menus and the choices outside all parts, which `front.py` solves.

A convex hull needs the hulls of the menus only, because the hull of a sum is the sum of the hulls (Minkowski).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hwsearch.errors import UserError
from hwsearch.search.exact.front import (
    Front,
    PositionArray,
    Tables,
    hull_paths,
    least_sums,
    non_dominated,
    optima_at,
    supported_options,
    whole_front,
)
from hwsearch.search.exact.layout import BoolArray, Layout, PartTable
from hwsearch.search.exact.milp import Optimum, Program, solve
from hwsearch.search.exact.problem import FloatArray, IndexArray, IntArray


@dataclass(frozen=True, eq=False)
class ElasticProblem:
    """Which width every choice takes and what is kept of every option, to keep an additive loss and some costs low.

    Attributes:
        layout: the choices, options and parts.
        loss: what each of them adds to the loss.
        costs: what each of them adds to each cost, by the cost's column in the record, such as `size_bytes`.
    """

    layout: Layout
    loss: PartTable
    costs: Mapping[str, PartTable]

    def __post_init__(self) -> None:
        """Check the tables.

        Raises:
            ValueError: a table has another shape, has an entry that is not finite, or charges for a choice that is gone.
        """
        layout = self.layout
        shapes = ((*layout.present.shape, layout.valid.shape[1]), layout.exists.shape)
        there = layout.present[:, :, None] & layout.valid[:, None, :]
        gone = np.zeros(layout.present.shape, np.bool_)
        for part in layout.parts:
            gone[list(part.choices), : len(part.variants)] = [part.gone(variant) for variant in part.variants]
        for name, table in {"loss": self.loss, **self.costs}.items():
            if (table.choices.shape, table.parts.shape) != shapes:
                raise ValueError(f"{name}: tables of shapes {table.choices.shape} and {table.parts.shape}; wanted {shapes}")
            finite = np.isfinite(table.choices[there]).all() and np.isfinite(table.parts[layout.exists]).all()
            if not finite or not np.isfinite(table.constant):
                raise ValueError(f"{name}: wanted finite entries")
            if table.choices[gone[:, :, None] & layout.valid[:, None, :]].any():
                raise ValueError(f"{name}: wanted 0 where a choice is gone")

    def cost(self, name: str) -> PartTable:
        """Return the cost of a name.

        Raises:
            UserError: there is none; names those there are.
        """
        if name not in self.costs:
            raise UserError(f"no cost '{name}'; the problem has {', '.join(self.costs) or 'none'}")
        return self.costs[name]


def exact_front(problem: ElasticProblem, metric: str) -> Front:
    """Return every non-dominated pair of cost and loss, with one canonical point for each.

    Raises:
        UserError: there is no such cost.
    """
    return whole_front(_menu_tables(problem, metric))


def front_at(problem: ElasticProblem, metric: str, budgets: Sequence[float]) -> Front:
    """Return the point of least loss at each budget, in the order of the budgets; of equal losses, the cheapest.

    Raises:
        UserError: there is no such cost, or no point is within a budget.
    """
    return optima_at(_menu_tables(problem, metric), budgets)


def cost_range(problem: ElasticProblem, metric: str) -> tuple[float, float]:
    """Return the least and the largest value of a cost.

    Raises:
        UserError: there is no such cost.
    """
    return problem.layout.ends(problem.cost(metric))


def supported_points(
    layout: Layout, costs: PartTable, losses: PartTable, choose: Callable[[int], IntArray] = np.arange
) -> PositionArray:
    """Return the canonical points at the corners of the convex hull of loss against cost, and some on its edges.

    Args:
        layout: of the space.
        costs: infinite at what must not be taken.
        losses: finite.
        choose: takes the number of points in rising order of cost, and returns which of them are wanted, each once. The default
            is all.

    Returns:
        [points, variables], in the order of `choose`.
    """
    entries, corners = _hull_entries(layout, costs, losses)
    parts, slots = len(layout.parts), layout.slots
    menus = [_menus_and_outside(layout, *each) for each in zip(corners, (costs, losses), strict=True)]
    taken = supported_options(menus[0], menus[1], choose)
    points = layout.filled(len(taken))
    if parts:
        chosen = entries[np.arange(parts), taken[:, :parts]]
        points[:, slots.columns[slots.filled]] = chosen[:, slots.filled]
    points[:, layout.outside] = taken[:, parts:]
    return layout.canonical(points) if layout.across else points


def optimum(problem: ElasticProblem, limits: Mapping[str, float], seconds: float = math.inf) -> Optimum:
    """Return the point of least loss whose costs are within their limits. Its `indices` are the canonical point.

    The program has a variable for every variant of every part. The options of a choice at a variant sum to that variable.

    Args:
        problem: losses and costs.
        limits: the largest value of each limited cost, by name.
        seconds: longest time to solve. The best point found by then is returned with its bound.

    Raises:
        UserError: a cost is unknown, a limit cannot be met (states the least that can, given the limits before it), or nothing
            was found in time.
    """
    layout = problem.layout
    place, number = np.nonzero(layout.exists)
    choice, variant = (np.concatenate(each) for each in zip((layout.outside, 0 * layout.outside), layout.inside, strict=True))
    row, option = np.nonzero(layout.valid[choice])
    variable = np.full(layout.exists.shape, -1)
    variable[place, number] = np.arange(len(place))
    under = np.full(len(choice), -1)
    inner = layout.owner[choice] >= 0
    under[inner] = variable[layout.owner[choice[inner]], variant[inner]]

    def values(table: PartTable) -> FloatArray:
        return np.concatenate([table.parts[place, number], table.choices[choice[row], variant[row], option]])

    def judge(taken: BoolArray) -> Optimum:
        point = layout.filled(1)
        for part, kept in zip(place[taken[: len(place)]], number[taken[: len(place)]], strict=True):
            columns = len(layout.choices) + np.array(layout.parts[part].options)
            point[0, columns] = layout.parts[part].variants[kept]
        chosen = taken[len(place) :]
        point[0, choice[row[chosen]]] = option[chosen]
        loss = float(layout.total(problem.loss, point)[0])
        costs = {name: float(layout.total(table, point)[0]) for name, table in problem.costs.items()}
        return Optimum(point[0], loss, loss, costs, proven=True)

    program = Program.of(
        np.concatenate([place, len(layout.parts) + row]),
        np.concatenate([np.full(len(layout.parts), -1), under]),
        values(problem.loss),
        [(values(problem.cost(name))[None], np.array([problem.cost(name).constant])) for name in limits],
    )
    program = replace(program, least_loss=program.least_loss + problem.loss.constant)
    return solve(program, judge, limits, seconds)


def _menu_tables(problem: ElasticProblem, metric: str) -> Tables:
    """Return the knapsack over the exact menus of the parts and the choices outside them."""
    layout, cost = problem.layout, problem.cost(metric)
    menus = [_menu(problem, cost, place) for place in range(len(layout.parts))]

    def judge(options: PositionArray) -> Front:
        points = layout.filled(len(options))
        for part, menu, taken in zip(layout.parts, menus, options.T, strict=False):
            points[:, layout.columns(part)] = menu.entries[taken]
        points[:, layout.outside] = options[:, len(menus) :]
        return Front(points, layout.total(cost, points), layout.total(problem.loss, points))

    costs = _menus_and_outside(layout, _padded([menu.costs for menu in menus]), cost)
    losses = _menus_and_outside(layout, _padded([menu.losses for menu in menus]), problem.loss)
    return Tables(metric, costs, losses, judge)


@dataclass(frozen=True, eq=False)
class _Menu:
    """The non-dominated ways to have a part, by rising cost."""

    costs: FloatArray
    losses: FloatArray
    entries: IndexArray
    """[entries, variables of the part]"""


def _menu(problem: ElasticProblem, cost: PartTable, place: int) -> _Menu:
    layout, part = problem.layout, problem.layout.parts[place]
    choices = np.array(part.choices, np.int64)
    costs, losses, entries = [], [], []
    for number, variant in enumerate(part.variants):
        inner = choices[layout.present[choices, number]]
        inner_costs = np.where(layout.valid[inner], cost.choices[inner, number], np.inf)
        found = least_sums(inner_costs, problem.loss.choices[inner, number])
        costs.append(found[0] + cost.parts[place, number])
        losses.append(found[1] + problem.loss.parts[place, number])
        rows = layout.filled(len(found[0]))
        rows[:, inner] = found[2]
        rows[:, [len(layout.choices) + option for option in part.options]] = variant
        entries.append(rows[:, layout.columns(part)])
    cost_of, loss_of = np.concatenate(costs), np.concatenate(losses)
    kept = non_dominated(cost_of, loss_of)
    return _Menu(cost_of[kept], loss_of[kept], np.concatenate(entries)[kept])


def _hull_entries(layout: Layout, costs: PartTable, losses: PartTable) -> tuple[IndexArray, tuple[FloatArray, FloatArray]]:
    """Return the corners of the hull of every variant of every part: what each sets the slots of the part to,
    [parts, entries, slots], and its costs and losses, [parts, entries]. Entries that do not exist are infinitely dear.
    """
    slots, (choice, variant) = layout.slots, layout.inside
    parts, variants, inner = slots.present.shape
    dear = np.where(layout.valid[choice], costs.choices[choice, variant], np.inf)
    group = layout.owner[choice] * variants + variant
    paths = hull_paths(dear, losses.choices[choice, variant], group, layout.slot[choice], (parts * variants, inner))
    paths = paths.reshape(parts, variants, paths.shape[1], inner)
    entries = np.repeat(slots.values[:, :, None], paths.shape[2], axis=2)
    there = slots.present[:, :, None]
    entries[..., :inner] = np.where(there, paths, entries[..., :inner])
    at = slots.columns[:, None, None, :inner], np.arange(variants)[:, None, None], entries[..., :inner]
    sums = [
        np.where(there, table.choices[at], 0.0).sum(axis=3) + np.where(layout.exists, table.parts, missing)[:, :, None]
        for table, missing in ((costs, np.inf), (losses, 0.0))
    ]
    flat = (parts, variants * paths.shape[2])
    return entries.reshape(*flat, entries.shape[3]), (sums[0].reshape(flat), sums[1].reshape(flat))


def _menus_and_outside(layout: Layout, menus: FloatArray, table: PartTable) -> FloatArray:
    """Return the values of the menus [parts, entries], and below them those of the choices outside all parts, padded."""
    outside = np.where(layout.valid, table.choices[:, 0], np.inf)[layout.outside]
    return _padded([*menus, *outside])


def _padded(rows: Sequence[FloatArray]) -> FloatArray:
    """Stack rows, padded with infinity."""
    padded = np.full((len(rows), max((len(row) for row in rows), default=0)), np.inf)
    for each, row in zip(padded, rows, strict=True):
        each[: len(row)] = row
    return padded
