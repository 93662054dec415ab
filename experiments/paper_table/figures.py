"""The figures of a system: means with bootstrap intervals by angle, what was lost, and tests against full precision."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from bench import DIGITS, SPEECH, Scores
from systems import System

from hwsearch.metrics.evaluation import MEANS, UtteranceScores, compare
from hwsearch.metrics.statistics import Estimate, bootstrap_mean_interval, wer_interval

ALL = "all"
SEED = 0
"""Seed of the bootstrap and of the permutations."""

LEVEL = 0.05
"""A difference from full precision with a larger p value is not significant."""


def figures(
    system: System, scores: Sequence[Scores], full: Scores, float_bytes: int, bins_deg: Sequence[float]
) -> dict[str, Any]:
    """Return a system's figures as a JSON object.

    Mixtures with the same target utterance are resampled together, and so are the trainings of a system on a mixture.

    Args:
        system: the system.
        scores: those of each training.
        full: those of full precision.
        float_bytes: size of the float32 file.
        bins_deg: ends of the bins of the angle between the speakers.
    """
    pooled = {data: [result for found in scores for result in found[data]] for data in (SPEECH, DIGITS)}
    angles = [(f"{low:g}-{high:g}", low, high) for low, high in pairwise(bins_deg)]
    return {
        "system": system.to_json(),
        "trainings": len(scores),
        "ratio": float_bytes / system.file_bytes,
        "angles": {
            name: _part({data: _between(found, low, high, bins_deg[-1]) for data, found in pooled.items()}, full)
            for name, low, high in angles
        }
        | {ALL: _part(pooled, full)},
    }


def _part(scores: Scores, full: Scores) -> dict[str, Any]:
    """The figures of some mixtures by metric; word error rates are ratios."""
    found: dict[str, Any] = {"mixtures": {data: len({result.id for result in results}) for data, results in scores.items()}}
    for data, results in scores.items():
        tests = compare(results, full[data], SEED) if results else {}
        for metric, test in tests.items():
            found[metric] = {**_estimate(results, metric), "p": test.p_value}
            if metric in MEANS:
                found[metric]["lost"] = _lost(results, full[data], metric)
    return found


def _estimate(results: Sequence[UtteranceScores], metric: str) -> dict[str, float | None]:
    """The mean of a metric, or the word error rate."""
    if metric in MEANS:
        scored = [result for result in results if metric in result.scores]
        values = [result.scores[metric] for result in scored]
        return _interval(bootstrap_mean_interval(values, SEED, [result.utterance for result in scored]))
    heard = [result for result in results if "estimate" in result.words]
    words = [result.words["estimate"] for result in heard]
    return _interval(wer_interval(words, SEED, [result.utterance for result in heard]))


def _lost(results: Sequence[UtteranceScores], full: Sequence[UtteranceScores], metric: str) -> dict[str, float | None]:
    """What full precision has more than the system, on the same mixtures."""
    theirs = {result.id: result.scores[metric] for result in full if metric in result.scores}
    both = [result for result in results if metric in result.scores and result.id in theirs]
    values = [theirs[result.id] - result.scores[metric] for result in both]
    return _interval(bootstrap_mean_interval(values, SEED, [result.utterance for result in both]))


def _interval(estimate: Estimate) -> dict[str, float | None]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _between(results: Sequence[UtteranceScores], low: float, high: float, last: float) -> list[UtteranceScores]:
    """Those with an angle in a bin, which has its lower end and, if it is the last one, its upper end."""
    return [result for result in results if low <= result.angle_deg < high or (high == last == result.angle_deg)]


def is_like_full_precision(figure: Mapping[str, Any]) -> bool:
    """Whether a figure is not significantly different from that of full precision."""
    p: float | None = figure["p"]
    return p is None or p >= LEVEL
