"""Proposes the next allocation: the one, among optima under drawn losses, that should lift the front most.

Costs are known exactly; only quality is uncertain. Each proposal draws tables of losses from the posterior and solves the problem
under each (Thompson sampling). Because real losses do not quite add up, the pool also gets front members with one to three sites
changed. The point of the pool with the largest expected growth of the front is proposed. With several costs, each proposal weighs
them at random, as ParEGO does (Knowles 2006), so that all directions of the front are visited. Candidates that are being scored
count as scored, with their expected quality.

Where options of structure are searched, points are those of a space with parts, and all of them canonical. See `structure.py`.

Several proposals at once share the draws and the pool, because solving and judging takes most of the time, and a thousand workers
need a hundred proposals a second. They are taken one after another; each counts as being scored for the next.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hwsearch.search.exact.front import supported_options
from hwsearch.search.exact.layout import Layout, PartTable
from hwsearch.search.posterior.improvement import expected_improvement
from hwsearch.search.posterior.model import FloatArray, LossPosterior, OptionArray, PriorSpread
from hwsearch.search.posterior.structure import Interactions, PartSteering
from hwsearch.search.space import Point

_DRAWS = 3
"""Tables of losses drawn for a proposal, in addition to the posterior's mean."""

_CORNERS = 128
"""Allocations taken from each solved front. A large one has a corner for every step of every site."""

_MUTANTS = 256
"""Changed front members in the pool."""

_MOST_STEPS = 3
"""Largest number of steps in a changed front member."""

_COUNTED = 4096
"""Largest space that is enumerated once the pool holds nothing new."""

_FINALISTS = 64
"""Points of the pool for which the uncertainty is computed, which takes a matrix product."""

_MORE_DRAWS = 0.25
"""Additional tables drawn for each additional proposal at once."""

_MORE_FINALISTS = 4
"""Additional finalists for each additional proposal at once."""

_MODEL_DB = 0.1
"""Initial deviation of the measured quality from the sum of losses, dB. The residuals update it."""

_MODEL_WEIGHT = 10
"""Number of residuals that `_MODEL_DB` weighs as much as."""

_RESIDUALS = 64
"""Number of last candidates whose residuals update it."""

_GAINABLE = 0.05
"""Share of the model's variance that counts as possible improvement. Most of that variance is luck, which no table can express;
with all of it, one candidate after another would be scored that differs little from the best."""

_DB = 10.0 / np.log(10.0)


@dataclass(frozen=True)
class KnownCost:
    """A cost that is known before a candidate is scored."""

    table: FloatArray
    """[choices, options] approximate cost of each option, with which proposals are found. It is infinite for an option that a
    target does not run; such an option is never proposed."""
    charge: Callable[[OptionArray], FloatArray]
    """Computes exact costs [N] of options [N, choices], by which proposals are judged."""
    elastic: PartTable | None = None
    """Approximate cost where options of structure are searched; `table` is then not used. It is infinite for what a target does
    not run."""


class PosteriorEngine:
    """The state of the search: the posterior, the front, and the candidates that are being scored."""

    def __init__(
        self,
        prior: FloatArray,
        deviation: FloatArray,
        valid: npt.NDArray[np.bool_],
        objectives: Sequence[KnownCost],
        limits: Sequence[tuple[KnownCost, float]],
        spread: PriorSpread | None = None,
        layout: Layout | None = None,
    ) -> None:
        """Start from prior losses.

        Args:
            prior: [choices, options] relative noise of each option, 0 or more.
            deviation: [choices, options] standard deviations of the prior, above 0.
            valid: [choices, options] which options exist.
            objectives: costs to minimise, one to three.
            limits: costs with their largest allowed values.
            spread: further errors of the prior.
            layout: if options of structure are searched. The rows of all tables are then the variables of the space, and costs
                have `KnownCost.elastic`.
        """
        self._interactions = None if layout is None else Interactions(layout, prior)
        self._posterior = LossPosterior(prior, deviation, valid, spread or PriorSpread(), self._interactions)
        self._valid = valid
        self._counts = valid.sum(axis=1)
        self._objectives = tuple(objectives)
        self._limits = tuple(limits)
        steered = [*self._objectives, *(cost for cost, _ in self._limits)]
        if layout is None:
            self._usable = valid & np.logical_and.reduce([np.isfinite(cost.table) for cost in steered])
            self._tables = [_to_unit_range(cost.table, self._usable) for cost in steered]
            self._ranges = np.array([_range(cost.table[self._usable]) for cost in self._objectives]) * len(valid)
            """Rough range of each objective over the space."""
        else:
            self._steering = PartSteering(layout, [_elastic(cost) for cost in steered])
            self._ranges = self._steering.ranges[: len(self._objectives)]
        self._known: set[bytes] = set()
        """Options of every candidate, as bytes, which hash faster than tuples of hundreds of numbers."""
        self._running: dict[Point, tuple[OptionArray, FloatArray]] = {}
        """Options [1, choices] and costs [1, objectives] of the candidates that are being scored."""
        self._reference: float | None = None
        self._waiting: list[tuple[Point, float]] = []
        self._recent: list[tuple[OptionArray, float]] = []
        self._model_db = _MODEL_DB
        """Deviation of measured quality from the sum of losses, dB, estimated from recent candidates."""
        self._points = np.zeros((0, len(valid)), np.int64)
        self._qualities = np.zeros(0)
        self._costs = np.zeros((0, len(self._objectives)))

    def refer(self, quality: float) -> None:
        """Set the quality of full precision in dB, from which losses are counted."""
        self._reference = quality
        waiting, self._waiting = self._waiting, []
        for point, found in waiting:
            self._learn(point, found)

    def start(self, point: Point) -> None:
        """Hear that a candidate is being scored."""
        self._known.add(np.array(point, np.int8).tobytes())
        options = np.array([point], np.int64)
        self._running[point] = options, self._charge(options)

    def finish(self, point: Point, quality: float | None) -> None:
        """Hear the quality of a candidate in dB; None if it has failed."""
        self._known.add(np.array(point, np.int8).tobytes())
        self._running.pop(point, None)
        if quality is None:
            return
        if self._reference is None:
            self._waiting.append((point, quality))
        else:
            self._learn(point, quality)
        self._keep(point, quality)

    def losses(self, rng: np.random.Generator | None = None) -> FloatArray:
        """Return the losses [choices, options] in the mean of the posterior, or drawn from it with `rng`; 0 or more."""
        return np.maximum(self._posterior.mean, 0.0) if rng is None else self._posterior.draw(rng)

    @property
    def running(self) -> int:
        """Number of candidates that are being scored."""
        return len(self._running)

    def propose(self, rng: np.random.Generator) -> Point | None:
        """Return the next point to score; None if nothing new was found."""
        return next(iter(self.propose_several(1, rng)), None)

    def propose_several(self, count: int, rng: np.random.Generator) -> list[Point]:
        """Return the next points to score, at most `count` different ones, the best first; none if nothing new was found."""
        weights = rng.dirichlet(np.ones(len(self._objectives)))
        pool, costs = self._pool(weights, _DRAWS + int(_MORE_DRAWS * (count - 1)), rng)
        if not len(pool):
            return []
        scales = weights / self._ranges
        fronted, levels = self._staircase(scales)
        combined = costs @ scales
        widest = max(float(combined.max()), float(fronted.max(initial=-np.inf)))
        ends = (float(levels.min(initial=self._quality(self._posterior.expect(pool[:1]))[0])) - 1.0, widest)
        mean = self._quality(self._posterior.expect(pool))
        fronted, levels = _rising(fronted, levels)
        rough = expected_improvement(combined, mean, np.full(len(pool), self._model_db), (fronted, levels), ends)
        final = np.argsort(-rough, kind="stable")[: _FINALISTS + _MORE_FINALISTS * (count - 1)]
        expected, deviation = self._expected(pool[final])
        taken: list[int] = []
        while True:
            gain = expected_improvement(combined[final], expected, deviation, (fronted, levels), ends)
            gain[taken] = -np.inf
            best = int(gain.argmax())
            taken.append(best)
            if len(taken) == min(count, len(final)):
                return [tuple(pool[row].tolist()) for row in final[taken]]
            place = int(np.searchsorted(fronted, combined[final[best]], side="right"))
            fronted, levels = _rising(np.insert(fronted, place, combined[final[best]]), np.insert(levels, place, expected[best]))

    def _learn(self, point: Point, quality: float) -> None:
        options = np.array(point, np.int64)
        loss = self._loss(quality)
        self._posterior.update(options, loss, self._model_db / _DB * (1.0 + max(loss, -0.5)))
        self._recent = [*self._recent[1 - _RESIDUALS :], (options, quality)]
        self._model_db = self._spread()

    def _keep(self, point: Point, quality: float) -> None:
        """Add a candidate to the front unless it is dominated, and remove those that it dominates."""
        options = np.array([point], np.int64)
        if any(cost.charge(options)[0] > limit for cost, limit in self._limits):
            return
        costs = self._charge(options)
        if ((self._qualities >= quality) & (self._costs <= costs).all(axis=1)).any():
            return
        kept = ~((self._qualities <= quality) & (self._costs >= costs).all(axis=1))
        self._points = np.concatenate([self._points[kept], options])
        self._qualities = np.append(self._qualities[kept], quality)
        self._costs = np.concatenate([self._costs[kept], costs])

    def _charge(self, options: OptionArray) -> FloatArray:
        """Return the objectives [N, objectives] of options [N, choices]."""
        return np.stack([cost.charge(options) for cost in self._objectives], axis=1)

    def _pool(self, weights: FloatArray, draws: int, rng: np.random.Generator) -> tuple[OptionArray, FloatArray]:
        """Find new allocations [N, choices] within the limits, and their costs [N, objectives]."""
        found = [self._mutants(rng).astype(np.int8)]
        for draw in range(draws + 1):
            solve = self._solve_widths if self._interactions is None else self._solve_parts
            found.append(solve(weights, rng, drawn=draw > 0))
        near = self._new(np.concatenate(found))
        return near if len(near[0]) else self._new(self._anywhere(rng).astype(np.int8))

    def _solve_widths(self, weights: FloatArray, rng: np.random.Generator, *, drawn: bool) -> npt.NDArray[np.int8]:
        """Return the corners of the front under the mean of the losses, or under drawn losses and with a pull of limits."""
        losses = self.losses(rng if drawn else None)
        pulls = np.concatenate([weights, rng.exponential(size=len(self._limits)) * drawn])
        steering = sum((pull * table for pull, table in zip(pulls, self._tables, strict=True)), np.zeros(losses.shape))
        costs, losses = (np.where(self._usable, table, np.inf) for table in (steering, losses))
        return supported_options(costs, losses, lambda count: _some(count, rng)).astype(np.int8, copy=False)

    def _solve_parts(self, weights: FloatArray, rng: np.random.Generator, *, drawn: bool) -> npt.NDArray[np.int8]:
        """Do the same where options of structure are searched. What depends on pairs is taken as around a front member."""
        if self._interactions is None:
            raise ValueError("wanted a layout")
        losses, factors = self._posterior.losses_and_factors(rng if drawn else None)
        pulls = np.concatenate([weights, rng.exponential(size=len(self._limits)) * drawn])
        near = self._points[rng.integers(len(self._points), size=1)] if len(self._points) else self._points
        around = float(self._interactions.lost(near).sum())
        by_part = self._interactions.part_losses(losses, factors, around)
        return self._steering.solve(pulls, by_part, lambda count: _some(count, rng))

    def _new(self, options: npt.NDArray[np.int8]) -> tuple[OptionArray, FloatArray]:
        """Select the options that are new, have every cost and meet the limits, each once; also return their costs."""
        options = np.ascontiguousarray(options)
        keys: list[bytes] = options.view(f"V{options.shape[1]}")[:, 0].tolist()
        first = dict(zip(reversed(keys), reversed(range(len(keys))), strict=True))
        known = self._known
        pool = options[sorted([row for key, row in first.items() if key not in known])].astype(np.int64)
        costs = self._charge(pool)
        new = np.isfinite(costs).all(axis=1)
        for cost, limit in self._limits:
            new &= cost.charge(pool) <= limit
        return pool[new], costs[new]

    def _anywhere(self, rng: np.random.Generator) -> OptionArray:
        """Return all points of a small space, or some of a large one."""
        size = math.prod(self._counts.tolist())
        if size <= _COUNTED:
            return self._canonical(np.stack(np.unravel_index(np.arange(size), self._counts.tolist()), axis=1).astype(np.int64))
        return self._canonical(rng.integers(self._counts, size=(_MUTANTS, len(self._counts))))

    def _canonical(self, points: OptionArray) -> OptionArray:
        return points if self._interactions is None else self._interactions.layout.canonical(points)

    def _mutants(self, rng: np.random.Generator) -> OptionArray:
        """Change front members by one to three steps, each of one site to the next narrower or wider width."""
        if not len(self._points):
            return np.zeros((0, len(self._valid)), np.int64)
        mutants = self._points[rng.integers(len(self._points), size=_MUTANTS)]
        if self._interactions is not None:
            # A block that comes back gets the widths that it has in some other member.
            layout, others = self._interactions.layout, self._points[rng.integers(len(self._points), size=_MUTANTS)]
            inside = layout.dependent
            mutants[:, inside] = np.where(layout.gone(mutants), others[:, inside], mutants[:, inside])
        steps = rng.integers(1, _MOST_STEPS + 1, size=_MUTANTS)
        for step in range(_MOST_STEPS):
            rows = np.flatnonzero(steps > step)
            choice = rng.integers(mutants.shape[1], size=len(rows))
            moved = mutants[rows, choice] + rng.choice([-1, 1], size=len(rows))
            mutants[rows, choice] = np.clip(moved, 0, self._counts[choice] - 1)
        return self._canonical(mutants)

    def _staircase(self, scales: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return combined costs, rising, and qualities of the front and of the candidates that are being scored."""
        costs, qualities = self._costs, self._qualities
        if self._running:
            running, charged = (np.concatenate(parts) for parts in zip(*self._running.values(), strict=True))
            has_cost = np.isfinite(charged).all(axis=1)
            running, charged = running[has_cost], charged[has_cost]
            costs = np.concatenate([costs, charged])
            qualities = np.concatenate([qualities, self._quality(self._posterior.expect(running))])
        combined = costs @ scales
        order = np.argsort(combined, kind="stable")
        return combined[order], qualities[order]

    def _expected(self, options: OptionArray) -> tuple[FloatArray, FloatArray]:
        """Return quality in dB and its standard deviation, each [N]."""
        loss, deviation = self._posterior.predict(options)
        in_db = _DB * deviation / (1.0 + np.maximum(loss, 0.0))
        return self._quality(loss), np.sqrt(in_db**2 + _GAINABLE * self._model_db**2)

    def _quality(self, loss: FloatArray) -> FloatArray:
        quality: FloatArray = (self._reference or 0.0) - _DB * np.log(1.0 + np.maximum(loss, -0.5))
        return quality

    def _loss(self, quality: float) -> float:
        return float(np.exp(((self._reference or 0.0) - quality) / _DB) - 1.0)

    def _spread(self) -> float:
        """Estimate the deviation of measured quality from the sum of losses, dB."""
        fitted = self._quality(self._posterior.expect(np.stack([options for options, _ in self._recent])))
        squares = float(np.square(fitted - [quality for _, quality in self._recent]).sum())
        return float(np.sqrt((_MODEL_WEIGHT * _MODEL_DB**2 + squares) / (_MODEL_WEIGHT + len(self._recent))))


def table_cost(table: FloatArray, constant: float) -> KnownCost:
    """Make a cost that is the sum of a table [choices, options] over the choices, and a constant."""
    first = np.arange(len(table)) * table.shape[1]

    def charge(options: OptionArray) -> FloatArray:
        total: FloatArray = constant + table.take(options + first).sum(axis=1)
        return total

    return KnownCost(table, charge)


def _elastic(cost: KnownCost) -> PartTable:
    if cost.elastic is None:
        raise ValueError("wanted costs by part where options of structure are searched")
    return cost.elastic


def _some(count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Choose at most `_CORNERS` of `count` corners."""
    return rng.choice(count, _CORNERS, replace=False) if count > _CORNERS else np.arange(count)


def _rising(costs: FloatArray, qualities: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Keep the points whose quality exceeds that of every cheaper point. The points come in rising order of cost."""
    best = np.maximum.accumulate(np.concatenate([[-np.inf], qualities]))
    better = best[1:] > best[:-1]
    return costs[better], qualities[better]


def _range(values: FloatArray) -> float:
    """Return the range of the values; 1 if it is zero or there are none."""
    return float(np.ptp(values)) or 1.0 if values.size else 1.0


def _to_unit_range(table: FloatArray, usable: npt.NDArray[np.bool_]) -> FloatArray:
    """Scale a table so that its largest sum is 1 above its least. Entries that are not usable become 0."""
    low = np.where(usable, table, np.inf).min(axis=1).sum()
    high = np.where(usable, table, -np.inf).max(axis=1).sum()
    kept = np.where(usable, table, 0.0)
    return kept / (high - low) if high > low else kept
