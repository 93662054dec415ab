"""The posterior and the engine where options of structure are searched."""

import time
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.search.exact.elastic import ElasticProblem, exact_front, front_at
from hwsearch.search.exact.layout import Layout, PartTable
from hwsearch.search.objectives import Direction
from hwsearch.search.pareto import hypervolume
from hwsearch.search.posterior.engine import KnownCost, PosteriorEngine
from hwsearch.search.posterior.model import LossPosterior, PriorSpread
from hwsearch.search.posterior.structure import Interactions
from hwsearch.search.space import Point
from tests.search.exact.elastic_problems import every_point, layouts, make_part, real_sized

REFERENCE_DB = 12.0
BUDGET = 50
NOISE_DB = 0.02


@dataclass(frozen=True)
class Problem:
    """True losses that add up, with a learned factor for pairs, a prior of them, and a size by part."""

    layout: Layout
    true: np.ndarray
    prior: np.ndarray
    size: PartTable
    pairs: float = 0.0

    @property
    def valid(self) -> np.ndarray:
        return np.arange(self.true.shape[1]) < self.layout.counts[:, None]

    def known(self) -> KnownCost:
        return KnownCost(np.zeros((0, 0)), lambda points: self.layout.total(self.size, points), self.size)

    def engine(self, limits: tuple[float, ...] = ()) -> PosteriorEngine:
        deviation = 0.4 * self.prior + 0.02 * self.prior[self.valid].mean()
        limited = [(self.known(), limit) for limit in limits]
        return PosteriorEngine(self.prior, deviation, self.valid, [self.known()], limited, None, self.layout)

    def elastic(self, losses: np.ndarray) -> ElasticProblem:
        choices = len(self.layout.choices)
        widths = losses[:choices, : self.layout.valid.shape[1]]
        table = PartTable(self.layout.spread(widths), self.layout.option_sums(losses[choices:]))
        return ElasticProblem(self.layout, table, {"size": self.size})

    def quality(self, points: np.ndarray) -> np.ndarray:
        points = np.atleast_2d(points)
        loss = self.layout.total(self.elastic(self.true).loss, points)
        loss += self.pairs * Interactions(self.layout, self.true).terms(points)[:, 0]
        return REFERENCE_DB - 10.0 * np.log10(1.0 + loss)

    def prior_front(self, count: int) -> np.ndarray:
        low, high = self.layout.ends(self.size)
        return np.unique(front_at(self.elastic(self.prior), "size", np.geomspace(low, high, count)).indices, axis=0)

    def hypervolume(self, points: np.ndarray) -> float:
        low, high = self.layout.ends(self.size)
        values = np.stack([self.quality(points), self.layout.total(self.size, points)], axis=1)
        worst = float(self.quality(front_at(self.elastic(self.true), "size", [low]).indices)[0]) - 0.5
        return hypervolume(values, [Direction.MAXIMIZE, Direction.MINIMIZE], (worst, high + 1.0))


def make_problem(seed: int, *, blocks: int = 5, off: float = 0.8, pairs: float = 0.0) -> Problem:
    """Blocks of three layers that may be left out, with a group of channels each, and two layers outside."""
    rng = np.random.default_rng(seed)
    parts = [make_part((2 * i, 2 * i + 1), (2, 3), range(3 * i, 3 * i + 3), removes=True) for i in range(blocks)]
    layout = Layout((4,) * (3 * blocks + 2), (2, 3) * blocks, tuple(parts))
    bits, shares = np.array([2, 3, 4, 6]), np.array([0.5, 0.75, 1.0])
    values = rng.integers(1, 20, 3 * blocks + 2) * 8.0
    size = np.zeros((len(values), 4, 4))
    size[:, 1:] = values[:, None, None] * shares[:, None] * bits
    size[-2:, 0] = values[-2:, None] * bits
    size[-2:, 1:] = 0.0
    true = np.zeros((len(layout.counts), 4))
    widths = rng.lognormal(0.0, 1.0, (len(values), 1)) * 4.0**-bits
    true[: len(values)] = widths * (2.0 / widths[:, 0].sum())
    true[len(values) :: 2, 0] = rng.lognormal(-1.5, 0.7, blocks)
    true[len(values) + 1 :: 2, :2] = true[len(values) :: 2, :1] * np.array([0.4, 0.15])
    prior = true * rng.lognormal(0.0, off, (len(true), 1))
    return Problem(layout, true, prior, PartTable(size, np.tile([0.0, 8.0, 12.0, 16.0], (blocks, 1)), 100.0), pairs)


def search(problem: Problem, engine: PosteriorEngine, seeds: np.ndarray, budget: int) -> list[Point]:
    engine.refer(REFERENCE_DB)
    rng = np.random.default_rng(5)
    found = [tuple(row) for row in seeds.tolist()]
    for step in range(budget):
        point = found[step] if step < len(seeds) else engine.propose(np.random.default_rng([7, step]))
        if point is None:
            break
        engine.start(point)
        engine.finish(point, float(problem.quality(np.array(point))[0]) + NOISE_DB * rng.standard_normal())
        found += [] if step < len(seeds) else [point]
    return found


@pytest.mark.parametrize("seed", range(4))
def test_few_evaluations_come_near_the_front_of_all_configurations(seed: int) -> None:
    problem = make_problem(seed)
    best = problem.hypervolume(exact_front(problem.elastic(problem.true), "size").indices)
    seeds = problem.prior_front(10)
    found = np.array(search(problem, problem.engine(), seeds, BUDGET))
    assert len(np.unique(found, axis=0)) == len(found) == BUDGET
    np.testing.assert_array_equal(found, problem.layout.canonical(found))
    chance = np.random.default_rng(seed).integers(problem.layout.counts, size=(BUDGET, len(problem.layout.counts)))
    by_chance = problem.hypervolume(np.concatenate([seeds, problem.layout.canonical(chance)]))
    by_prior = problem.hypervolume(problem.prior_front(BUDGET))
    reached = problem.hypervolume(found)
    assert reached > max(by_chance, by_prior)
    assert reached > 0.97 * best


@pytest.mark.parametrize("limit", [0.3, 0.6])
def test_proposals_are_within_limits_and_canonical(limit: float) -> None:
    problem = make_problem(9)
    low, high = problem.layout.ends(problem.size)
    allowed = low + limit * (high - low)
    found = np.array(search(problem, problem.engine((allowed,)), np.zeros((0, 27), np.int64), 30))
    assert len(np.unique(found, axis=0)) == 30
    assert (problem.layout.total(problem.size, found) <= allowed).all()
    np.testing.assert_array_equal(found, problem.layout.canonical(found))


def test_what_a_target_does_not_run_is_not_proposed() -> None:
    """A block at half its channels, another one whole, and a width of a choice."""
    problem = make_problem(2)
    choices, parts = problem.size.choices.copy(), problem.size.parts.copy()
    parts[0, 1] = parts[1, 3] = np.inf
    choices[6, :, 0] = np.inf
    choices[6, 0] = 0.0
    refused = PartTable(choices, parts, 0.0)
    costs = [problem.known(), KnownCost(np.zeros((0, 0)), lambda points: problem.layout.total(refused, points), refused)]
    engine = PosteriorEngine(problem.prior, 0.4 * problem.prior + 0.01, problem.valid, costs, [], None, problem.layout)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = np.array(search(problem, engine, np.zeros((0, 27), np.int64), 40))
    assert len(np.unique(found, axis=0)) == 40
    assert np.isfinite(problem.layout.total(refused, found)).all()


@settings(deadline=None, max_examples=15)
@given(layout=layouts(most_parts=2), data=st.data())
def test_a_small_space_is_gone_through_whole(layout: Layout, data: st.DataObject) -> None:
    """Every configuration once."""
    rng = np.random.default_rng(data.draw(st.integers(0, 100)))
    losses = rng.uniform(0.1, 1.0, (len(layout.counts), int(layout.counts.max())))
    losses[np.arange(len(losses)), layout.counts - 1] = 0.0
    size = PartTable(
        layout.spread(1.0 + np.tile(np.arange(layout.valid.shape[1]), (len(layout.choices), 1))),
        np.where(layout.exists, 1.0, 0.0),
    )
    problem = Problem(layout, losses, losses, size)
    engine = problem.engine()
    engine.refer(REFERENCE_DB)
    expected = set(every_point(layout))
    for _ in range(min(len(expected), 60)):
        points = engine.propose_several(8, rng)
        assert expected.issuperset(points)
        expected -= set(points)
        for point in points:
            engine.finish(point, float(problem.quality(np.array(point))[0]))
    if not expected:
        assert engine.propose(rng) is None
    else:
        assert len(every_point(layout)) > 60


def test_where_decibels_add_up_the_engine_learns_it() -> None:
    """And expects less of points that leave out much."""
    factors = {}
    for pairs in (0.0, 1.0):
        problem = make_problem(3, off=0.1, pairs=pairs)
        engine = problem.engine()
        search(problem, engine, problem.prior_front(10), BUDGET)
        factors[pairs] = engine._posterior.losses_and_factors(None)[1][0]
    assert factors[0.0] < 0.3
    assert factors[1.0] > 0.7


# The posterior


@settings(deadline=None, max_examples=50)
@given(layout=layouts(), data=st.data())
def test_updates_are_gaussian_conditioning_on_what_is_there(layout: Layout, data: st.DataObject) -> None:
    """What is gone or whole neither counts nor is learnt."""
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    shape = len(layout.counts), int(layout.counts.max())
    valid = np.arange(shape[1]) < layout.counts[:, None]
    prior, deviation = np.where(valid, rng.uniform(0, 3, shape), 0.0), rng.uniform(0.05, 1.0, shape)
    terms = Interactions(layout, prior)
    spread = PriorSpread(0.3, 0.6, 0.2)
    found = LossPosterior(prior, deviation, valid, spread, terms)
    searched = valid & terms.searched
    of, choices = np.nonzero(searched)[0], len(layout.choices)
    loss = prior[searched]
    count = len(loss)
    covariance = np.zeros((count + 3, count + 3))
    same, alike = of[:, None] == of, (of >= choices)[:, None] == (of >= choices)
    covariance[:count, :count] = np.outer(loss, loss) * (0.6**2 * same + 0.3**2 * alike) + np.diag(deviation[searched] ** 2)
    covariance[count:, count:] = np.diag([*terms.deviations**2, 0.2**2])
    mean = np.concatenate([loss, terms.factors, [0.0]])

    def row(point: Point) -> np.ndarray:
        there = np.ones(len(point), bool)
        for part in layout.parts:
            if part.removes and point[choices + part.options[0]] == 0:
                there[list(part.choices)] = False
        chosen = np.zeros(shape)
        chosen[np.arange(len(point))[there], np.array(point)[there]] = 1.0
        return np.concatenate([chosen[searched], terms.terms(np.array([point]))[0], [1.0]])

    every = every_point(layout)
    for _ in range(data.draw(st.integers(0, 5))):
        point, value = every[int(rng.integers(len(every)))], float(rng.uniform(0, 5))
        found.update(np.array(point), value, 0.3)
        a = row(point)
        gain = covariance @ a / (a @ covariance @ a + 0.3**2)
        mean, covariance = mean + gain * (value - a @ mean), covariance - np.outer(gain, a @ covariance)
    points = np.array(every)[rng.integers(len(every), size=20)]
    rows = np.stack([row(tuple(point)) for point in points.tolist()])
    np.testing.assert_allclose(found.expect(points), rows @ mean, atol=1e-8)
    np.testing.assert_allclose(
        found.predict(points)[1], np.sqrt(np.einsum("ij,jk,ik->i", rows, covariance, rows)), rtol=1e-4, atol=1e-6
    )
    losses, factors = found.losses_and_factors(None)
    np.testing.assert_allclose(losses[searched], np.maximum(mean[:count], 0.0), atol=1e-8)
    np.testing.assert_allclose(factors, np.maximum(mean[count : count + 2], 0.0), atol=1e-8)
    assert not losses[~searched].any()


@settings(deadline=None, max_examples=50)
@given(layout=layouts(), data=st.data())
def test_terms_are_pairs_of_losses_and_losses_of_widths_in_narrow_parts(layout: Layout, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    prior = rng.uniform(0, 3, (len(layout.counts), int(layout.counts.max())))
    terms, choices = Interactions(layout, prior), len(layout.choices)
    for point in every_point(layout)[:200]:
        whole = layout.counts - 1
        lost = [prior[choices + i, k] for i, k in enumerate(point[choices:]) if k < whole[choices + i]]
        pairs = sum(a * b for i, a in enumerate(lost) for b in lost[:i])
        narrow = [
            choice
            for part in layout.parts
            for choice in part.choices
            if any(point[choices + i] < whole[choices + i] for i in part.options[part.removes :])
        ]
        widths = sum(prior[choice, point[choice]] for choice in narrow)
        assert terms.terms(np.array([point]))[0] == pytest.approx([pairs, widths])
        # The tangent touches where it is taken.
        by_part = terms.part_losses(prior, np.array([0.0, 0.7]), sum(lost))
        plain = terms.part_losses(prior, np.zeros(2), 0.0)
        difference = layout.total(by_part, np.array([point])) - layout.total(plain, np.array([point]))
        assert difference == pytest.approx(0.7 * widths)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 100))
def test_without_parts_the_posterior_believes_the_same(counts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    valid = np.arange(max(counts)) < np.array(counts)[:, None]
    prior, deviation = rng.uniform(0, 2, valid.shape) * valid, rng.uniform(0.1, 1, valid.shape)
    plain = LossPosterior(prior, deviation, valid, PriorSpread())
    masked = LossPosterior(prior, deviation, valid, PriorSpread(), Interactions(Layout(tuple(counts), (), ()), prior))
    points = rng.integers(counts, size=(10, len(counts)))
    for point in points[:6]:
        plain.update(point, 1.5, 0.2)
        masked.update(point, 1.5, 0.2)
    np.testing.assert_allclose(masked.mean, plain.mean, atol=1e-12)
    for one, other in zip(masked.predict(points), plain.predict(points), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_proposals_for_18_blocks_take_milliseconds() -> None:
    problem = real_sized(activations=3)
    layout = problem.layout
    prior = np.zeros((len(layout.counts), 6))
    prior[: len(layout.choices)] = problem.loss.choices.max(axis=1)
    prior[len(layout.choices) :: 2, 0] = 0.3
    prior[len(layout.choices) + 1 :: 2, :3] = [0.2, 0.1, 0.05]
    size = problem.costs["size"]
    made = Problem(layout, prior, prior, size)
    engine = made.engine()
    search(made, engine, made.prior_front(10), 12)
    times = []
    for step in range(9):
        start = time.process_time()
        assert engine.propose(np.random.default_rng(step)) is not None
        times.append(time.process_time() - start)
    assert np.median(times) < 0.5
