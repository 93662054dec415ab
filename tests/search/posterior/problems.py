"""Additive problems whose prior is off by a factor for each site, and a search on one."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hwsearch.search.exact.front import supported_options
from hwsearch.search.objectives import Direction
from hwsearch.search.pareto import hypervolume
from hwsearch.search.posterior.engine import KnownCost, PosteriorEngine, table_cost
from hwsearch.search.space import Point

BITS = np.array([2, 3, 4, 5, 6, 8])
REFERENCE_DB = 12.0


@dataclass(frozen=True)
class Problem:
    """True losses, a prior of them, and costs; all [choices, options]."""

    true: np.ndarray
    prior: np.ndarray
    tables: tuple[np.ndarray, ...]
    valid: np.ndarray

    def engine(self, *, objectives: int = 1, limits: tuple[tuple[int, float], ...] = ()) -> PosteriorEngine:
        """Fresh; costs by position, and limits on costs by position."""
        costs = self.costs()
        spread = 0.4 * self.prior + 0.02 * self.prior[self.valid].mean()
        return PosteriorEngine(
            self.prior, spread, self.valid, costs[:objectives], [(costs[index], limit) for index, limit in limits]
        )

    def costs(self) -> list[KnownCost]:
        return [table_cost(table, 10.0) for table in self.tables]

    def cost(self, points: np.ndarray, index: int = 0) -> np.ndarray:
        return 10.0 + self.tables[index][np.arange(len(self.valid)), np.atleast_2d(points)].sum(axis=1)

    def quality(self, points: np.ndarray | Point) -> np.ndarray:
        """In dB, as noise powers add."""
        loss = self.true[np.arange(len(self.valid)), np.atleast_2d(points)].sum(axis=1)
        return REFERENCE_DB - 10.0 * np.log10(1.0 + loss)

    def random(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.integers(self.valid.sum(axis=1), size=(count, len(self.valid)))

    def prior_front(self, count: int) -> np.ndarray:
        """Of the allocations that would be best if the prior were true, evenly many."""
        front = supported_options(np.where(self.valid, self.tables[0], np.inf), np.where(self.valid, self.prior, np.inf))
        return front[np.linspace(0, len(front) - 1, count).round().astype(int)].astype(np.int64)

    def hypervolume(self, points: np.ndarray) -> float:
        """Above the quality of the narrowest allocation less half a decibel, below the cost of the widest."""
        worst = float(self.quality(np.zeros(len(self.valid), int))[0]) - 0.5
        values = np.stack([self.quality(points), self.cost(points)], axis=1)
        return hypervolume(
            values, [Direction.MAXIMIZE, Direction.MINIMIZE], (worst, float(self.tables[0].max(axis=1).sum()) + 11)
        )


def make_problem(seed: int, choices: int = 16, counts: tuple[int, ...] | None = None, off: float = 1.0) -> Problem:
    """Losses over some decades that fall with the width, sizes, a second and a third cost, a log-normal prior."""
    rng = np.random.default_rng(seed)
    counts = counts or (len(BITS),) * choices
    valid = np.arange(max(counts)) < np.array(counts)[:, None]
    bits = BITS[: max(counts)]
    values = rng.integers(1, 20, (len(counts), 1)).astype(float)
    true = rng.lognormal(0.0, 1.2, (len(counts), 1)) * np.sqrt(values) * rng.lognormal(0.0, 0.2, valid.shape) * 4.0**-bits
    true = np.maximum.accumulate(true[:, ::-1], axis=1)[:, ::-1] * (3.0 / true[:, 0].sum())
    tables = (values * bits, rng.uniform(1.0, 3.0, (len(counts), 1)) * bits, rng.uniform(0.0, 1.0, (len(counts), 1)) * bits**2)
    prior = true * rng.lognormal(0.0, off, (len(counts), 1))
    return Problem(np.where(valid, true, 0.0), np.where(valid, prior, 0.0), tables, valid)


def score(problem: Problem, engine: PosteriorEngine, points: np.ndarray) -> list[Point]:
    """Tell the engine of candidates."""
    told = []
    for row in np.unique(points, axis=0):
        point = tuple(row.tolist())
        engine.start(point)
        engine.finish(point, float(problem.quality(row)[0]))
        told.append(point)
    return told


def search(
    problem: Problem,
    engine: PosteriorEngine,
    known: list[Point],
    count: int,
    quality: Callable[[Point], float | None] | None = None,
) -> list[Point]:
    """Ask for candidates and score them one by one until `count` are known, or the engine has no more."""
    found = list(known)
    for step in range(count - len(known)):
        point = engine.propose(np.random.default_rng([7, step]))
        if point is None:
            break
        engine.start(point)
        engine.finish(point, float(problem.quality(point)[0]) if quality is None else quality(point))
        found.append(point)
    return found
