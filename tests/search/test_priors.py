"""From sensitivities to seeds and beliefs, against sums written out and every allocation of small spaces."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.search.exact.problem import additive_cost, allocation_problem
from hwsearch.search.priors import front_seeds, loss_prior, separable_loss
from hwsearch.search.space import SearchSpace
from hwsearch.sensitivity.table import SensitivityTable

WIDTHS = (2, 3, 4, 6, 8)
SCORED = 16
"""Mixtures that candidates are scored on; tables are of four of them."""
SITES = ("a.weight", "b.weight", "c.weight", "d.weight")


def space_of(options: list[tuple[int, ...]], groups: tuple[tuple[str, ...], ...] = ()) -> SearchSpace:
    return SearchSpace(tuple(zip(SITES, options, strict=False)), groups=groups)


def table_of(
    space: SearchSpace,
    value: np.ndarray,
    error: np.ndarray | None = None,
    method: str = "output-noise-ratio",
) -> SensitivityTable:
    """[free sites, WIDTHS]; NaN where a site cannot take a width."""
    sites = tuple(site for site, _ in space.free_sites)
    there = np.array([[bits in options for bits in WIDTHS] for _, options in space.free_sites])
    value = np.where(there, value[: len(sites)], np.nan)
    error = np.where(there, np.zeros_like(value) if error is None else error[: len(sites)], np.nan)
    return SensitivityTable(method, sites, WIDTHS, value, error, 4)


OPTIONS = st.sets(st.sampled_from(WIDTHS), min_size=2, max_size=5).map(lambda found: tuple(sorted(found)))
SPACES = st.lists(OPTIONS, min_size=1, max_size=4).map(space_of)
VALUES = st.lists(st.floats(-1.0, 4.0), min_size=20, max_size=20).map(lambda values: np.array(values).reshape(4, 5))


@given(SPACES, VALUES)
def test_a_separable_loss_never_rises_with_the_width_and_is_not_negative(space: SearchSpace, values: np.ndarray) -> None:
    found = separable_loss(table_of(space, values), space)
    assert tuple(found) == tuple(site for site, _ in space.free_sites)
    for row, (site, options) in enumerate(space.free_sites):
        losses = [found[site][bits] for bits in options]
        assert losses == sorted(losses, reverse=True)
        # The least such losses that are at least the estimates.
        for place, bits in enumerate(options):
            wider = [values[row, WIDTHS.index(other)] for other in options[place:]]
            assert found[site][bits] == max(0.0, *wider)


def test_a_table_that_lacks_a_site_or_a_width_is_refused() -> None:
    small, large = space_of([(2, 4)]), space_of([(2, 4), (2, 4)])
    with pytest.raises(KeyError):
        separable_loss(table_of(small, np.ones((4, 5))), large)
    with pytest.raises(KeyError):
        separable_loss(table_of(small, np.ones((4, 5))), SearchSpace((("a.weight", (2, 5)),)))


@settings(deadline=None, max_examples=60)
@given(SPACES, VALUES, st.lists(st.integers(1, 9), min_size=4, max_size=4), st.booleans())
def test_seeds_lose_least_at_their_sizes(space: SearchSpace, values: np.ndarray, counts: list[int], grouped: bool) -> None:
    """At 8 sizes evenly spread on a log scale, found by going through every allocation."""
    if grouped and len(space.widths) > 1:
        common = tuple(bits for bits in space.widths[0][1] if bits in space.widths[1][1])
        if len(common) > 1:
            widths = ((SITES[0], common), (SITES[1], common), *space.widths[2:])
            space = SearchSpace(widths, groups=((SITES[0], SITES[1]),))
    loss = separable_loss(table_of(space, values), space)
    charges = {
        site: {bits: float(count * bits) for bits in options}
        for (site, options), count in zip(space.widths, counts, strict=False)
    }
    problem = allocation_problem(space, loss, [additive_cost("size_bytes", space.widths, charges, 5.0)])
    seeds = front_seeds(problem, "size_bytes", "kl", 8)

    every = []
    for point in np.ndindex(*space.shape):
        allocation = space.decode(point).allocation
        every.append(
            (
                5.0 + sum(charges[site][bits] for site, bits in allocation.widths),
                sum(loss[site][bits] for site, bits in allocation.widths),
                point,
            )
        )
    least, largest = min(size for size, _, _ in every), max(size for size, _, _ in every)
    ratio = largest / least
    by_point = {point: (size, lost) for size, lost, point in every}
    scored = [by_point[seed.point] for seed in seeds]
    for place in range(1, 9):
        budget = least * ratio ** (place / 9)
        best = min(lost for size, lost, _ in every if size <= budget * (1 + 1e-12))
        assert min((lost for size, lost in scored if size <= budget * (1 + 1e-9)), default=math.inf) == pytest.approx(
            best, abs=1e-9
        )
    for size, lost in scored:  # each is on the exact front
        assert lost <= min(other for at, other, _ in every if at <= size) + 1e-9
    assert 1 <= len(seeds) <= 8
    assert len({seed.point for seed in seeds}) == len(seeds)
    assert {seed.strategy for seed in seeds} == {"kl"}


# What tables say together


def test_tables_in_noise_ratios_are_fused_by_their_precision() -> None:
    space = space_of([(2, 8), (4, 8)])
    first = table_of(space, np.array([[2.0, 9, 9, 9, 0.5], [9, 9, 1.0, 9, 0.25], *np.ones((2, 5))]), np.full((4, 5), 0.1))
    second = table_of(
        space,
        np.array([[1.0, 9, 9, 9, 0.5], [9, 9, 3.0, 9, 0.0], *np.ones((2, 5))]),
        np.full((4, 5), 0.7),
        "measured-noise-ratio",
    )
    ranking = table_of(space, np.full((4, 5), 77.0), method="kl")
    found = loss_prior([first, ranking, second], space, SCORED)
    average = np.mean([2.0, 0.5, 1.0, 0.25, 1.0, 0.5, 3.0, 0.0])
    # Four of the sixteen mixtures of the scores are known exactly: the error over the others is all that is left.
    left = 1 - 4 / 16
    for row, column, (one, two) in ((0, 0, (2.0, 1.0)), (0, 1, (0.5, 0.5)), (1, 0, (1.0, 3.0)), (1, 1, (0.25, 0.0))):
        # A proxy may be off by more of its size than what is measured.
        variances = [
            left * 0.1**2 + (1.0 * one + 0.02 * average) ** 2,
            left * 0.7**2 + (0.15 * two + 0.02 * average) ** 2,
        ]
        weights = [1.0 / variance for variance in variances]
        mean = (weights[0] * one + weights[1] * two) / sum(weights)
        assert found.mean[row, column] == pytest.approx(mean)
        # How far it may be off in company follows from the larger of the whole errors.
        assert found.deviation[row, column] == pytest.approx(math.hypot(0.7, 0.4 * mean + 0.02 * average))
    assert found.noise_ratio
    assert found.valid.all()


def test_a_group_loses_what_its_sites_lose_together() -> None:
    options = (2, 4, 8)
    alone = space_of([options, options, (2, 8)])
    grouped = space_of([options, options, (2, 8)], groups=(("a.weight", "b.weight"),))
    values = np.abs(np.random.default_rng(0).normal(size=(4, 5)))
    values = np.sort(values, axis=1)[:, ::-1]
    apart, together = (
        loss_prior([table_of(alone, values)], alone, SCORED),
        loss_prior([table_of(grouped, values)], grouped, SCORED),
    )
    np.testing.assert_allclose(together.mean, [apart.mean[0] + apart.mean[1], apart.mean[2]])
    np.testing.assert_allclose(together.deviation[0], np.sqrt(apart.deviation[0] ** 2 + apart.deviation[1] ** 2))
    assert together.valid.tolist() == [[True, True, True], [True, True, False]]


def test_a_table_that_only_ranks_is_scaled_to_as_much_noise_as_full_precision_has() -> None:
    space = space_of([(2, 8), (2, 4, 8)])
    values = np.array([[30.0, 9, 9, 9, 3.0], [50.0, 9, 20.0, 9, 5.0], *np.ones((2, 5))])
    priors = [
        loss_prior([table_of(space, scale * values, method=method)], space, SCORED)
        for scale in (1.0, 1e-9)
        for method in ("kl", "gradient")
    ]
    for found in priors:
        assert not found.noise_ratio
        np.testing.assert_allclose(found.mean, np.array([[30.0, 3.0, 0.0], [50.0, 20.0, 5.0]]) / 80.0)
        assert found.mean[:, 0].sum() == pytest.approx(1.0)
        np.testing.assert_allclose(found.deviation[found.valid], priors[0].deviation[found.valid])


def test_of_several_tables_that_only_rank_the_first_is_taken() -> None:
    space = space_of([(2, 8)])
    tables = [
        table_of(space, np.full((4, 5), scale) * [4.0, 3.0, 2.0, 1.0, shape], method="kl")
        for scale, shape in ((1.0, 1.0), (5.0, 0.0))
    ]
    np.testing.assert_allclose(loss_prior(tables, space, SCORED).mean, [[1.0, 0.25]])


@pytest.mark.parametrize("method", ["output-noise-ratio", "kl"])
def test_tables_of_nothing_but_zeros_leave_everything_open(method: str) -> None:
    space = space_of([(2, 8), (2, 4)])
    found = loss_prior([table_of(space, np.full((4, 5), -0.1), method=method)], space, SCORED)
    assert not found.mean.any()
    assert np.isfinite(found.deviation).all()
    assert (found.deviation > 0.1).all()


def test_unknown_errors_count_as_none() -> None:
    """A table over a single mixture has no standard errors."""
    space = space_of([(2, 8)])
    values = np.tile([4.0, 3.0, 2.0, 1.0, 0.5], (4, 1))
    known, unknown = (
        loss_prior([table_of(space, values, error)], space, SCORED) for error in (np.zeros((4, 5)), np.full((4, 5), np.nan))
    )
    np.testing.assert_array_equal(known.deviation, unknown.deviation)


@pytest.mark.parametrize("scored", [1, 4])
def test_errors_over_mixtures_do_not_weigh_where_they_are_those_that_are_scored(scored: int) -> None:
    space = space_of([(2, 8)])
    values = np.tile([4.0, 3.0, 2.0, 1.0, 0.5], (4, 1))

    def fused(error: float, mixtures: int) -> np.ndarray:
        measured = table_of(space, values, np.full((4, 5), error), "measured-noise-ratio")
        return loss_prior([table_of(space, 2 * values), measured], space, mixtures).mean

    np.testing.assert_array_equal(fused(0.0, scored), fused(2.0, scored))
    assert (fused(2.0, 10**6) > fused(0.0, 10**6)).all()  # an uncertain measurement leaves more to the proxy


def test_no_table_is_refused() -> None:
    with pytest.raises(ValueError, match="wanted a table to start from"):
        loss_prior([], space_of([(2, 8)]), SCORED)
