"""Confidence intervals of means and word error rates, and paired tests.

Means of independent utterances get Student's t interval. It needs no seed and keeps its coverage with a handful of utterances.
The percentile bootstrap is too narrow there; from about thirty utterances on, the two agree. The bootstrap serves two cases that
t does not cover: a word error rate, which is a ratio of sums, and utterances that depend on each other. Such utterances form a
group, and whole groups are resampled.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from hwsearch.metrics.errors import MetricUnavailable
from hwsearch.metrics.wer import WordErrors, corpus_wer

CONFIDENCE = 0.95
RESAMPLES = 10_000
BOOTSTRAP_BATCH_ELEMENTS = 4_000_000
"""Largest number of resampled indices in memory (32 MB)."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its confidence interval.

    Attributes:
        value: the figure.
        low: lower end of the interval, or None with a single utterance or group.
        high: upper end, as `low`.
        n: number of utterances.
        method: how the interval was computed.
        groups: number of groups resampled, or None where utterances count as independent.
        confidence: probability that the interval covers the true value.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    method: str
    groups: int | None = None
    confidence: float = CONFIDENCE


@dataclass(frozen=True)
class PairedTest:
    """A two-sided test whether two conditions differ on the same utterances.

    Attributes:
        difference: first minus second, of means or corpus WERs.
        p_value: probability of a difference at least as large if there were none; None with a single utterance or group.
        n: number of utterances.
        method: name of the test.
        groups: as in `Estimate`.
    """

    difference: float
    p_value: float | None
    n: int
    method: str
    groups: int | None = None


def mean_interval(values: ArrayLike) -> Estimate:
    """Mean of independent `values` [n] with Student's t interval.

    Raises:
        MetricUnavailable: there are no values.
        ValueError: a value is not finite.
    """
    x = _finite(values)
    mean = float(x.mean())
    if x.size == 1:
        return Estimate(mean, None, None, 1, "t")
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, x.size - 1) * x.std(ddof=1) / np.sqrt(x.size))
    return Estimate(mean, mean - half, mean + half, x.size, "t")


def bootstrap_mean_interval(values: ArrayLike, seed: int, groups: Sequence[Hashable] | None = None) -> Estimate:
    """Mean of `values` [n] with a percentile bootstrap interval (Efron and Tibshirani, 1993, ch. 13).

    With `groups`, one label for each value, whole groups are drawn with replacement (cluster bootstrap). Fewer than about ten
    groups give an interval that is too narrow.

    Raises:
        MetricUnavailable: there are no values.
        ValueError: a value is not finite, or `groups` has another length.
    """
    x = _finite(values)
    return _ratio_bootstrap(x, np.ones_like(x), float(x.mean()), seed, groups)


def wer_interval(utterances: Sequence[WordErrors], seed: int, groups: Sequence[Hashable] | None = None) -> Estimate:
    """Corpus WER with a percentile bootstrap interval over utterances (Bisani and Ney, ICASSP 2004), or over `groups` of them.

    Raises:
        MetricUnavailable: the references hold no word.
        ValueError: `groups` has another length.
    """
    errors = np.array([utterance.errors for utterance in utterances], dtype=np.float64)
    words = np.array([utterance.words for utterance in utterances], dtype=np.float64)
    return _ratio_bootstrap(errors, words, corpus_wer(utterances), seed, groups)


def paired_permutation_test(
    first: ArrayLike, second: ArrayLike, seed: int, groups: Sequence[Hashable] | None = None
) -> PairedTest:
    """Sign-flip permutation test of the mean difference of `first` and `second` [n].

    It assumes only that either condition could have given either value. With at most `RESAMPLES` sign patterns the test is exact,
    otherwise it draws that many at random. With `groups`, the signs of a whole group flip together.

    Raises:
        MetricUnavailable: there are no values.
        ValueError: unequal lengths, or a value that is not finite.
    """
    a, b = _finite(first), _finite(second)
    if a.size != b.size:
        raise ValueError(f"{a.size} and {b.size} values cannot be paired")
    return _sign_flip_test(a - b, float((a - b).mean()), seed, groups)


def paired_wer_test(
    first: Sequence[WordErrors], second: Sequence[WordErrors], seed: int, groups: Sequence[Hashable] | None = None
) -> PairedTest:
    """Sign-flip permutation test of the difference of two corpus WERs on the same utterances.

    Both have the same reference words. The difference of the rates is therefore proportional to the summed difference of errors.

    Raises:
        MetricUnavailable: the references hold no word.
        ValueError: the two lists are not of the same utterances.
    """
    if [utterance.words for utterance in first] != [utterance.words for utterance in second]:
        raise ValueError("the two conditions must hold the same utterances in the same order")
    difference = np.array([a.errors - b.errors for a, b in zip(first, second, strict=True)], dtype=np.float64)
    return _sign_flip_test(difference, corpus_wer(first) - corpus_wer(second), seed, groups)


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1:
        raise ValueError(f"values must be [n], not {x.shape}")
    if x.size == 0:
        raise MetricUnavailable("no utterance has a value")
    if not np.isfinite(x).all():
        raise ValueError(f"{int((~np.isfinite(x)).sum())} of {x.size} values are not finite")
    return x


def _group_sums(groups: Sequence[Hashable], *columns: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    if len(groups) != columns[0].size:
        raise ValueError(f"{len(groups)} group labels for {columns[0].size} values")
    index: dict[Hashable, int] = {}
    positions = [index.setdefault(group, len(index)) for group in groups]
    return [np.bincount(positions, weights=column).astype(np.float64) for column in columns]


def _ratio_bootstrap(
    numerator: NDArray[np.float64],
    denominator: NDArray[np.float64],
    value: float,
    seed: int,
    groups: Sequence[Hashable] | None,
) -> Estimate:
    """Percentile interval of sum(numerator) / sum(denominator), units drawn with replacement."""
    n, method, group_count = numerator.size, "bootstrap", None
    if groups is not None:
        numerator, denominator = _group_sums(groups, numerator, denominator)
        method, group_count = "cluster bootstrap", numerator.size
    if numerator.size == 1:
        return Estimate(value, None, None, n, method, group_count)
    rng = np.random.default_rng(seed)
    batch = max(1, BOOTSTRAP_BATCH_ELEMENTS // numerator.size)
    ratios: list[NDArray[np.float64]] = []
    for start in range(0, RESAMPLES, batch):
        drawn = rng.integers(numerator.size, size=(min(batch, RESAMPLES - start), numerator.size))
        bottoms = denominator[drawn].sum(axis=1)
        kept = bottoms > 0  # references without a word have no rate
        ratios.append(numerator[drawn].sum(axis=1)[kept] / bottoms[kept])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(ratios), [tail, 1 - tail])
    return Estimate(value, float(low), float(high), n, method, group_count)


def _sum(x: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.asarray(x.sum(axis=axis))


def _sign_flip_test(difference: NDArray[np.float64], value: float, seed: int, groups: Sequence[Hashable] | None) -> PairedTest:
    units = difference if groups is None else _group_sums(groups, difference)[0]
    p_value: float | None = None
    if units.size > 1:
        result = stats.permutation_test(
            (units,),
            _sum,
            permutation_type="samples",
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=max(1, BOOTSTRAP_BATCH_ELEMENTS // units.size),
            rng=np.random.default_rng(seed),
        )
        p_value = float(result.pvalue)
    return PairedTest(value, p_value, difference.size, "sign-flip permutation", None if groups is None else units.size)
