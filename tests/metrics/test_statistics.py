"""Intervals must cover, tests must agree with enumeration, and n is never lost."""

import itertools

import numpy as np
import pytest
from scipy import stats

from hwsearch.metrics import statistics
from hwsearch.metrics.errors import MetricUnavailable
from hwsearch.metrics.statistics import (
    Estimate,
    bootstrap_mean_interval,
    mean_interval,
    paired_permutation_test,
    paired_wer_test,
    wer_interval,
)
from hwsearch.metrics.wer import WordErrors


def covers(estimate: Estimate, truth: float) -> bool:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low <= truth <= estimate.high


def exact_sign_flip_p(difference: np.ndarray) -> float:
    observed = abs(difference.sum()) - 1e-12
    flips = list(itertools.product((-1, 1), repeat=difference.size))
    return sum(abs(np.dot(signs, difference)) >= observed for signs in flips) / len(flips)


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 300)


def test_t_interval_is_that_of_scipy() -> None:
    values = np.random.default_rng(0).normal(3, 2, 12)
    estimate = mean_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))
    assert (estimate.value, estimate.n) == (pytest.approx(values.mean()), 12)


@pytest.mark.usefixtures("few_resamples")
def test_intervals_cover_the_mean_of_a_known_distribution() -> None:
    rng = np.random.default_rng(1)
    samples = [rng.gamma(4.0, 1.0, 40) for _ in range(400)]
    for interval in (mean_interval, lambda x: bootstrap_mean_interval(x, 0)):
        coverage = np.mean([covers(interval(sample), 4.0) for sample in samples])
        assert 0.91 <= coverage <= 0.98


@pytest.mark.usefixtures("few_resamples")
def test_groups_widen_the_interval_until_it_covers() -> None:
    """Twenty speaker pairs of ten alike utterances are not two hundred utterances."""
    rng = np.random.default_rng(2)
    groups = [pair for pair in range(20) for _ in range(10)]
    covered = {True: 0, False: 0}
    for _ in range(200):
        values = np.repeat(rng.normal(size=20), 10) + 0.3 * rng.normal(size=200)
        for grouped in covered:
            estimate = bootstrap_mean_interval(values, 0, groups if grouped else None)
            assert (estimate.n, estimate.groups) == (200, 20 if grouped else None)
            covered[grouped] += covers(estimate, 0.0)
    assert covered[True] / 200 > 0.88
    assert covered[False] / 200 < 0.6


@pytest.mark.usefixtures("few_resamples")
def test_wer_interval_covers_the_rate_of_a_known_distribution() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        words = rng.integers(2, 15, 50)
        utterances = [WordErrors(int(rng.binomial(n, 0.2)), 0, 0, int(n)) for n in words]
        covered += covers(wer_interval(utterances, 0), 0.2)
    assert 0.89 <= covered / 200 <= 0.985


def test_wer_interval_keeps_the_ratio_and_ignores_empty_draws() -> None:
    estimate = wer_interval([WordErrors(1, 0, 0, 2), WordErrors(0, 0, 0, 0)], seed=0)
    assert (estimate.value, estimate.low, estimate.high, estimate.n) == (0.5, 0.5, 0.5, 2)


def test_one_utterance_or_one_group_gives_no_interval() -> None:
    assert mean_interval([3.0]) == Estimate(3.0, None, None, 1, "t")
    assert bootstrap_mean_interval([3.0], 0) == Estimate(3.0, None, None, 1, "bootstrap")
    one_group = bootstrap_mean_interval([1.0, 3.0], 0, groups=["a", "a"])
    assert one_group == Estimate(2.0, None, None, 2, "cluster bootstrap", groups=1)
    assert wer_interval([WordErrors(1, 0, 0, 4)], 0).low is None
    assert paired_permutation_test([1.0], [0.0], 0).p_value is None


def test_nothing_measured_is_unavailable_and_nan_is_refused() -> None:
    with pytest.raises(MetricUnavailable, match="no utterance"):
        mean_interval([])
    with pytest.raises(ValueError, match="1 of 3 values are not finite"):
        bootstrap_mean_interval([1.0, float("nan"), 2.0], 0)
    with pytest.raises(ValueError, match="2 group labels for 3 values"):
        bootstrap_mean_interval([1.0, 1.5, 2.0], 0, groups=["a", "b"])


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap_mean_interval(values, 5) == bootstrap_mean_interval(values, 5)
    assert bootstrap_mean_interval(values, 5) != bootstrap_mean_interval(values, 6)


@pytest.mark.parametrize("seed", range(4))
def test_permutation_test_agrees_with_enumeration(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.normal(0.5, 1, 9), rng.normal(0, 1, 9)
    exact = paired_permutation_test(first, second, 0)
    assert exact.p_value == pytest.approx(exact_sign_flip_p(first - second))
    assert exact.difference == pytest.approx(first.mean() - second.mean())
    monkeypatch.setattr(statistics, "RESAMPLES", 511)
    sampled = paired_permutation_test(first, second, 0)
    assert sampled.p_value == pytest.approx(exact.p_value, abs=0.08)


def test_groups_flip_together() -> None:
    first, second = np.arange(8.0), np.zeros(8)
    groups = ["a", "a", "b", "b", "c", "c", "d", "d"]
    grouped = paired_permutation_test(first, second, 0, groups)
    assert grouped.p_value == pytest.approx(exact_sign_flip_p(np.array([1.0, 5.0, 9.0, 13.0])))
    assert (grouped.n, grouped.groups) == (8, 4)


def test_wer_test_agrees_with_enumeration() -> None:
    words = [3, 5, 4, 6, 2, 8]
    first = [WordErrors(e, 0, 0, n) for e, n in zip([2, 3, 1, 4, 0, 5], words, strict=True)]
    second = [WordErrors(0, e, 0, n) for e, n in zip([1, 1, 1, 2, 1, 2], words, strict=True)]
    result = paired_wer_test(first, second, 0)
    assert result.p_value == pytest.approx(exact_sign_flip_p(np.array([1.0, 2, 0, 2, -1, 3])))
    assert result.difference == pytest.approx(15 / 28 - 8 / 28)
    with pytest.raises(ValueError, match="same utterances"):
        paired_wer_test(first, second[::-1], 0)


def test_paired_tests_refuse_lists_of_unequal_length() -> None:
    with pytest.raises(ValueError, match="2 and 3 values cannot be paired"):
        paired_permutation_test([1.0, 2.0], [1.0, 2.0, 3.0], 0)
