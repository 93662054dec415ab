"""How sure a figure is: confidence intervals of means and word error rates, and paired tests.

Student's t is the default for means. It needs no seed and holds its coverage down to a handful of utterances,
where the percentile bootstrap is too narrow (it lacks both the n - 1 and the heavier tail of t); from about
thirty utterances on the two agree. The bootstrap is for what t cannot do: a ratio (word error rate) and
utterances that hang together, such as those of one speaker pair, which are resampled as whole groups
(`groups`), because their number overstates what is known.
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
"""Resampled indices held at once (32 MB), so that thousands of utterances do not take gigabytes."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its confidence interval and what it rests on.

    `low` and `high` are None where no interval can be given (one utterance, or one group). `n` counts
    utterances; `groups` counts the resampled groups, or is None where utterances were taken as independent.
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
    """A two-sided test that two conditions measured on the same utterances differ.

    `difference` is first minus second (mean, or corpus WER) and `p_value` the probability of one at least as
    large were there none; None where there are fewer than two units to compare. `n` counts utterances,
    `groups` as in `Estimate`.
    """

    difference: float
    p_value: float | None
    n: int
    method: str
    groups: int | None = None


def mean_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> Estimate:
    """Mean of independent `values` [n] with Student's t interval, the default.

    Raises:
        MetricUnavailable: there are no values.
        ValueError: a value is not finite.
    """
    x = _finite(values)
    mean = float(x.mean())
    if x.size == 1:
        return Estimate(mean, None, None, 1, "t", confidence=confidence)
    half = float(stats.t.ppf((1 + confidence) / 2, x.size - 1) * x.std(ddof=1) / np.sqrt(x.size))
    return Estimate(mean, mean - half, mean + half, x.size, "t", confidence=confidence)


def bootstrap_mean_interval(
    values: ArrayLike,
    seed: int,
    groups: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Mean of `values` [n] with a percentile bootstrap interval (Efron and Tibshirani, 1993, ch. 13).

    With `groups` (one label for each value, such as the speaker pair) whole groups are drawn with replacement
    (cluster bootstrap); fewer than about ten groups give an interval that is too narrow.

    Raises:
        MetricUnavailable: there are no values.
        ValueError: a value is not finite, or `groups` has another length.
    """
    x = _finite(values)
    return _ratio_bootstrap(x, np.ones_like(x), float(x.mean()), seed, groups, resamples, confidence)


def wer_interval(
    utterances: Sequence[WordErrors],
    seed: int,
    groups: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Corpus WER with a percentile bootstrap interval over utterances (Bisani and Ney, ICASSP 2004), or over
    `groups` of them.

    Errors and words are resampled together, since the rate is a ratio of two sums.

    Raises:
        MetricUnavailable: the references hold no word.
        ValueError: `groups` has another length.
    """
    wer = corpus_wer(utterances)
    errors = np.array([utterance.errors for utterance in utterances], dtype=np.float64)
    words = np.array([utterance.words for utterance in utterances], dtype=np.float64)
    return _ratio_bootstrap(errors, words, wer, seed, groups, resamples, confidence)


def paired_permutation_test(
    first: ArrayLike,
    second: ArrayLike,
    seed: int,
    groups: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
) -> PairedTest:
    """Sign-flip permutation test of the mean difference of `first` and `second` [n], utterance by utterance:
    the default.

    It tests the very figure that is reported and assumes only that either condition could have given either
    value. Exact when all 2^units sign patterns number no more than `resamples`, else `resamples` random ones.
    With `groups` the signs of a whole group flip together.

    Raises:
        MetricUnavailable: there are no values.
        ValueError: unequal lengths, or a value that is not finite.
    """
    difference = _paired_difference(first, second)
    return _sign_flip_test(difference, float(difference.mean()), seed, groups, resamples)


def paired_wer_test(
    first: Sequence[WordErrors],
    second: Sequence[WordErrors],
    seed: int,
    groups: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
) -> PairedTest:
    """Sign-flip permutation test of the difference of two corpus WERs on the same utterances.

    The reference words are common to both, so the difference of the rates is the summed difference of the
    errors.

    Raises:
        MetricUnavailable: the references hold no word.
        ValueError: the two lists are not of the same utterances.
    """
    if [utterance.words for utterance in first] != [utterance.words for utterance in second]:
        raise ValueError("the two conditions must hold the same utterances in the same order")
    difference = np.array([a.errors - b.errors for a, b in zip(first, second, strict=True)], dtype=np.float64)
    return _sign_flip_test(difference, corpus_wer(first) - corpus_wer(second), seed, groups, resamples)


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1:
        raise ValueError(f"values must be [n], not {x.shape}")
    if x.size == 0:
        raise MetricUnavailable("no utterance has a value")
    if not np.isfinite(x).all():
        raise ValueError(f"{int((~np.isfinite(x)).sum())} of {x.size} values are not finite")
    return x


def _paired_difference(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    a, b = _finite(first), _finite(second)
    if a.size != b.size:
        raise ValueError(f"{a.size} and {b.size} values cannot be paired")
    return a - b


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
    resamples: int,
    confidence: float,
) -> Estimate:
    """Percentile interval of sum(numerator) / sum(denominator), units drawn with replacement."""
    n, method, group_count = numerator.size, "bootstrap", None
    if groups is not None:
        numerator, denominator = _group_sums(groups, numerator, denominator)
        method, group_count = "cluster bootstrap", numerator.size
    if numerator.size == 1:
        return Estimate(value, None, None, n, method, group_count, confidence)
    rng = np.random.default_rng(seed)
    batch = max(1, BOOTSTRAP_BATCH_ELEMENTS // numerator.size)
    ratios: list[NDArray[np.float64]] = []
    for start in range(0, resamples, batch):
        drawn = rng.integers(numerator.size, size=(min(batch, resamples - start), numerator.size))
        bottoms = denominator[drawn].sum(axis=1)
        kept = bottoms > 0  # a draw of nothing but empty references has no rate
        ratios.append(numerator[drawn].sum(axis=1)[kept] / bottoms[kept])
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(ratios), [tail, 1 - tail])
    return Estimate(value, float(low), float(high), n, method, group_count, confidence)


def _sum(x: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.asarray(x.sum(axis=axis))


def _sign_flip_test(
    difference: NDArray[np.float64],
    value: float,
    seed: int,
    groups: Sequence[Hashable] | None,
    resamples: int,
) -> PairedTest:
    units, group_count = difference, None
    if groups is not None:
        (units,) = _group_sums(groups, difference)
        group_count = units.size
    p_value: float | None = None
    if units.size > 1:
        result = stats.permutation_test(
            (units,),
            _sum,
            permutation_type="samples",
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, BOOTSTRAP_BATCH_ELEMENTS // units.size),
            rng=np.random.default_rng(seed),
        )
        p_value = float(result.pvalue)
    return PairedTest(value, p_value, difference.size, "sign-flip permutation", group_count)
