"""Points, seeds and engines of the space of a network with options of structure."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from hwsearch.errors import UserError
from hwsearch.search.exact.elastic import ElasticProblem, cost_range
from hwsearch.search.exact.layout import Layout, PartTable
from hwsearch.search.experiment_space import experiment_space
from hwsearch.search.posterior.engine import KnownCost
from hwsearch.search.priors import elastic_front_seeds, elastic_loss, loss_prior, separable_loss, structure_table, with_structure
from hwsearch.search.samplers.posterior import posterior_engine
from hwsearch.search.space import SearchSpace
from tests.search.synthetic import make_experiment, prior_table

LOSSES = {
    "blocks.0.kept": {0: 0.5, 1: 0.0},
    "blocks.1.kept": {0: 0.2},
    "blocks.0.expand.channels": {64: 0.1, 96: 0.15},  # estimates that rise
    "blocks.1.expand.channels": {64: 0.3, 96: -0.1, 128: 0.0},
}


@cache
def space() -> SearchSpace:
    """Two blocks that may be left out, with a group of channels each, and a group of weights in both of them."""
    structure = {"*.kept": [0.0], "*.channels": [0.5, 0.75]}
    return experiment_space(
        make_experiment(10, activation_bits=[4, 8], structure=structure, groups=[["blocks.*.depthwise.weight"]])
    )


def size() -> PartTable:
    """Bytes that depend on the widths and on the channels that are kept."""
    layout = Layout.of(space())
    bits = np.zeros(layout.valid.shape)
    for row, (name, widths) in zip(bits, space().free, strict=True):
        row[: len(widths)] = np.array(widths) * (64.0 if name.endswith(".weight") else 0.0)
    shares = np.ones((len(layout.choices), layout.variants, 1))
    for part in layout.parts:
        shares[list(part.choices), 1:] = np.array([0.5, 0.75, 1.0])[:, None]
    return PartTable(layout.spread(bits) * shares, np.tile([0.0, 8.0, 12.0, 16.0], (2, 1)), 1000.0)


@dataclass(frozen=True)
class Book:
    """Costs of one name."""

    def known(self, name: str) -> KnownCost:
        assert name == "size_bytes"
        return KnownCost(np.zeros((0, 0)), lambda points: Layout.of(space()).total(size(), points), size())


def test_canonical_points_are_those_of_the_space() -> None:
    """Also where all blocks are left out that the sites of a group lie in."""
    layout = Layout.of(space())
    assert [space().free[choice][0] for choice, _ in layout.across] == ["blocks.0.depthwise.weight"]
    points = np.random.default_rng(0).integers(layout.counts, size=(200, len(layout.counts)))
    found = [tuple(point) for point in layout.canonical(points).tolist()]
    assert found == [space().canonical(tuple(point)) for point in points.tolist()]


def test_seeds_lie_between_the_least_and_the_largest_size_and_lose_little() -> None:
    layout = Layout.of(space())
    loss = elastic_loss(space(), separable_loss(prior_table(space()), space()), LOSSES)
    seeds = elastic_front_seeds(space(), loss, size(), "kl", 12)
    points = np.array([seed.point for seed in seeds])
    assert {seed.strategy for seed in seeds} == {"kl"}
    assert all(space().canonical(seed.point) == seed.point for seed in seeds)
    least, largest = cost_range(ElasticProblem(layout, loss, {"size": size()}), "size")
    assert len(seeds) > 8
    # Tables charge for the group of weights also where both blocks are left out.
    points = points[points[:, len(space().free) : len(space().free) + 2].any(axis=1)]
    sizes, losses = layout.total(size(), points), layout.total(loss, points)
    assert len(points) > 6
    assert (np.diff(sizes) > 0).all()
    assert (np.diff(losses) < 0).all()
    assert least < sizes[-1] < largest
    chance = layout.canonical(np.random.default_rng(0).integers(layout.counts, size=(500, len(layout.counts))))
    chance_sizes, chance_losses = layout.total(size(), chance), layout.total(loss, chance)
    for seed_size, seed_loss in zip(sizes, losses, strict=True):
        assert chance_losses[chance_sizes <= seed_size].min(initial=np.inf) >= seed_loss


def test_losses_of_structure_fall_as_more_is_kept() -> None:
    table = structure_table(space(), LOSSES, 6)
    assert table.tolist() == [[0.5, *[0.0] * 5], [0.2, *[0.0] * 5], [0.15, 0.15, *[0.0] * 4], [0.3, *[0.0] * 5]]
    prior = loss_prior([prior_table(space())], space(), 16)
    joined = with_structure(prior, space(), LOSSES)
    free = len(space().free)
    for found, alone in ((joined.mean, prior.mean), (joined.deviation, prior.deviation), (joined.valid, prior.valid)):
        np.testing.assert_array_equal(found[:free], alone)
    np.testing.assert_array_equal(joined.mean[free:], table)
    assert joined.valid[free:].sum(axis=1).tolist() == [2, 2, 3, 3]
    assert (joined.deviation > 0).all()
    with pytest.raises(UserError, match=r"no loss of 'blocks.1.expand.channels' at 96"):
        structure_table(space(), LOSSES | {"blocks.1.expand.channels": {64: 0.1}}, 6)


def test_the_engine_of_a_space_proposes_canonical_points() -> None:
    priors = [prior_table(space())]
    engine = posterior_engine(
        space(), priors, Book(), ["si_snr_improvement_db", "size_bytes"], {"size_bytes": 3000.0}, 16, LOSSES
    )
    engine.refer(10.0)
    found = set()
    for step in range(25):
        points = engine.propose_several(4, np.random.default_rng(step))
        assert len(points) == 4
        for point in points:
            assert space().canonical(point) == point
            engine.start(point)
            engine.finish(point, 10.0 - 0.2 * sum(index == 0 for index in point))
        found.update(points)
    assert len(found) == 100
    with pytest.raises(UserError, match=r"structure: no loss of 'blocks.0.kept' at 0"):
        posterior_engine(space(), priors, Book(), ["size_bytes"], {}, 16)
