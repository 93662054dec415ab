"""Scores of a separator on the test mixtures, by angle between the speakers, with 95 % confidence intervals."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from hw_models.wording import first_mistake
from hwsearch.data.dataset import Mixture, load_mixture
from hwsearch.errors import UserError
from hwsearch.experiment import EvaluationConfig
from hwsearch.files.reading import read_json
from hwsearch.metrics.errors import MetricUnavailable
from hwsearch.metrics.perceptual import pesq_score, stoi_score
from hwsearch.metrics.recognisers.ctc import load_default
from hwsearch.metrics.recognisers.recogniser import Recogniser, heard_errors
from hwsearch.metrics.si_snr import si_snr
from hwsearch.metrics.statistics import (
    Estimate,
    PairedTest,
    bootstrap_mean_interval,
    mean_interval,
    paired_permutation_test,
    paired_wer_test,
    wer_interval,
)
from hwsearch.metrics.wer import WordErrors

Audio = NDArray[np.float32]

System = Callable[[Audio, float], Audio]
"""Maps a mixture [mics, samples] and the target's direction in degrees to an estimate of the target [samples]."""

ALL_ANGLES_DEG = (0.0, 180.0)

MEANS = ("si_snr_db", "si_snr_improvement_db", "pesq", "stoi")
"""Metrics averaged over utterances."""


@dataclass(frozen=True)
class UtteranceScores:
    """Scores of one test mixture.

    Attributes:
        utterance: id of the target's utterance; several mixtures may hold the same one.
        angle_deg: angle between the speakers, or None if it is unknown, as in most recorded mixtures.
        scores: value by metric; the prefix `mixture_` marks those of the unprocessed microphone 0.
        words: word errors of `estimate`, `mixture` and clean `target`; empty where the words are unknown.
        unavailable: the reason for each metric without a value.
    """

    id: str
    utterance: str
    angle_deg: float | None
    t60_measured_s: float | None
    scores: Mapping[str, float]
    words: Mapping[str, WordErrors]
    unavailable: Mapping[str, str]


_RESULTS = TypeAdapter(list[UtteranceScores])


@dataclass(frozen=True)
class Summary:
    """Figures of one angle bin, or of all mixtures.

    Attributes:
        angles_deg: lower and upper end. Only the last bin includes its upper end.
        utterances: number of mixtures in the bin.
        figures: by metric; word error rates are ratios, not percentages.
    """

    angles_deg: tuple[float, float]
    utterances: int
    figures: Mapping[str, Estimate]


def evaluate(
    system: System,
    folder: Path,
    mixtures: Sequence[Mixture],
    recogniser: Recogniser | None,
    progress: Callable[[int, int], None],
) -> list[UtteranceScores]:
    """Separate and score every mixture.

    Args:
        system: the separator.
        folder: folder of the data set.
        mixtures: the data set's test mixtures.
        recogniser: transcribes the voices, or None to count no word errors.
        progress: called with (done, total).

    Raises:
        UserError: a file of the data set is missing or changed.
    """
    results = []
    for done, mixture in enumerate(mixtures, start=1):
        sound, target = load_mixture(folder, mixture)
        estimate = of_target(system(sound, mixture.doa_deg), target)
        results.append(score_utterance(mixture, sound[0], estimate, target, recogniser))
        progress(done, len(mixtures))
    return results


def of_target(estimates: Audio, target: Audio) -> Audio:
    """Estimate of the target: of [speakers, samples], the one with the highest SI-SNR."""
    if estimates.ndim == 1:
        return estimates
    found: Audio = max(estimates, key=lambda estimate: float(si_snr(estimate, target)) if np.any(estimate) else -math.inf)
    return found


def score_utterance(
    mixture: Mixture, unprocessed: Audio, estimate: Audio, target: Audio, recogniser: Recogniser | None
) -> UtteranceScores:
    """Compute all metrics of one separated mixture; all signals are [samples] at microphone 0."""
    scores: dict[str, float] = {}
    unavailable: dict[str, str] = {}
    for prefix, signal in (("mixture_", unprocessed), ("", estimate)):
        for name, metric, *rate in (
            ("si_snr_db", si_snr),
            ("pesq", pesq_score, mixture.sample_rate),
            ("stoi", stoi_score, mixture.sample_rate),
        ):
            try:
                scores[prefix + name] = float(metric(signal, target, *rate))
            except MetricUnavailable as reason:
                unavailable[prefix + name] = str(reason)
    if "si_snr_db" in scores and "mixture_si_snr_db" in scores:
        scores["si_snr_improvement_db"] = scores["si_snr_db"] - scores["mixture_si_snr_db"]
    words: dict[str, WordErrors] = {}
    for name, signal in (("mixture", unprocessed), ("estimate", estimate), ("target", target)):
        errors = heard_errors(recogniser, mixture.target.transcript, signal, mixture.sample_rate)
        if errors is not None:
            words[name] = errors
    return UtteranceScores(
        mixture.id, mixture.target.utterance, mixture.angle_deg, mixture.t60_measured_s, scores, words, unavailable
    )


def summarise(results: Sequence[UtteranceScores], bins_deg: Sequence[float], seed: int) -> list[Summary]:
    """Summarise each angle bin that holds mixtures, then all mixtures, including those outside every bin."""
    summaries = []
    for low, high in pairwise(bins_deg):
        last = high == bins_deg[-1]
        known = [(result, result.angle_deg) for result in results if result.angle_deg is not None]
        chosen = [result for result, angle in known if low <= angle < high or (last and angle == high)]
        if chosen:
            summaries.append(Summary((low, high), len(chosen), figures_of(chosen, seed)))
    summaries.append(Summary(ALL_ANGLES_DEG, len(results), figures_of(results, seed)))
    return summaries


def check_recogniser(config: EvaluationConfig) -> None:
    """Raise `UserError` for a recogniser that is not installed."""
    if config.recogniser == "pocketsphinx-closed" and find_spec("pocketsphinx") is None:
        raise UserError("evaluation.recogniser is 'pocketsphinx-closed', not installed; wanted: pip install 'hwsearch[asr]'")


def make_recogniser(config: EvaluationConfig, mixtures: Sequence[Mixture]) -> Recogniser | None:
    """Make the configured recogniser; pocketsphinx gets its vocabulary from the mixtures' transcripts.

    Raises:
        UserError: pocketsphinx is not installed, or there are no transcripts for it.
    """
    if config.recogniser == "none":
        return None
    if config.recogniser == "ctc-digits":
        return load_default()
    from hwsearch.metrics.recognisers.pocketsphinx_trigram import PocketsphinxTrigram

    said = [m.target.transcript for m in mixtures if m.target.transcript is not None]
    if not said:
        raise UserError(
            "evaluation.recogniser is 'pocketsphinx-closed', but no test mixture has a transcript; wanted a corpus with "
            "transcripts, longer data.mixtures.seconds, or recogniser = 'none'"
        )
    return PocketsphinxTrigram(said)


def to_json(results: Sequence[UtteranceScores], summaries: Sequence[Summary]) -> dict[str, Any]:
    """Summaries and the scores of single mixtures as JSON."""
    return {
        "summaries": [asdict(summary) for summary in summaries],
        "utterances": [asdict(result) for result in results],
    }


def figures_of(results: Sequence[UtteranceScores], seed: int) -> dict[str, Estimate]:
    """Compute means and word error rates with their intervals.

    Mixtures with the same target utterance are resampled together (cluster bootstrap), because their scores depend on each other.
    Speakers are not resampled: there are too few of them.
    """
    found: dict[str, Estimate] = {}
    for name in MEANS:
        for column in (f"mixture_{name}", name):
            scored = [result for result in results if column in result.scores]
            if scored:
                found[column] = _mean([result.scores[column] for result in scored], _utterances(scored), seed)
    for name in ("mixture", "estimate", "target"):
        heard = [result for result in results if name in result.words]
        words = [result.words[name] for result in heard]
        if sum(word.words for word in words):
            found["wer" if name == "estimate" else f"{name}_wer"] = wer_interval(words, seed, _utterances(heard))
    return found


def check_comparable(utterances: Mapping[str, str], others: Sequence[UtteranceScores]) -> None:
    """Raise `UserError` if two sets of figures have no mixture in common.

    Args:
        utterances: the target's utterance in each mixture, by the mixture's id.
        others: the figures to compare with.
    """
    if not any(utterances.get(other.id) == other.utterance for other in others):
        raise UserError("the two sets of figures have no mixture in common; wanted the same test mixtures")


def compare(results: Sequence[UtteranceScores], others: Sequence[UtteranceScores], seed: int) -> dict[str, PairedTest]:
    """Compare two systems by paired tests on the mixtures that both were scored on: first minus second.

    Mixtures with the same target utterance form a group.

    Raises:
        UserError: no mixture in common.
    """
    check_comparable({result.id: result.utterance for result in results}, others)
    theirs = {other.id: other for other in others}
    pairs = [(mine, theirs[mine.id]) for mine in results if mine.id in theirs and theirs[mine.id].utterance == mine.utterance]
    tests: dict[str, PairedTest] = {}
    for name in MEANS:
        both = [(mine, other) for mine, other in pairs if name in mine.scores and name in other.scores]
        if both:
            first, second = ([result.scores[name] for result in side] for side in zip(*both, strict=True))
            tests[name] = paired_permutation_test(first, second, seed, _utterances([mine for mine, _ in both]))
    heard = [(mine, other) for mine, other in pairs if "estimate" in mine.words and "estimate" in other.words]
    if sum(mine.words["estimate"].words for mine, _ in heard):
        words = [[result.words["estimate"] for result in side] for side in zip(*heard, strict=True)]
        tests["wer"] = paired_wer_test(words[0], words[1], seed, _utterances([mine for mine, _ in heard]))
    return tests


def read_figures(path: Path) -> list[UtteranceScores]:
    """Read the scores of single mixtures from a file of `to_json`.

    Raises:
        UserError: there is no such file, or it holds no figures.
    """
    content = read_json(path, "the figures of 'hwsearch evaluate --output'")
    try:
        results = _RESULTS.validate_json(json.dumps(content["utterances"]), strict=True)
    except (KeyError, TypeError):
        reason = "no 'utterances'"
    except ValidationError as error:
        mistake = first_mistake(error)
        reason = replace(mistake, place=("utterances", *mistake.place)).said + mistake.others
    else:
        wrong = [one.id for one in results if not all(map(math.isfinite, (one.angle_deg or 0.0, *one.scores.values())))]
        if not wrong:
            return results
        reason = f"of '{wrong[0]}' one is not finite"
    raise UserError(f"{path}: holds no figures ({reason}); wanted the file of 'hwsearch evaluate --output'")


def _mean(values: Sequence[float], utterances: Sequence[str], seed: int) -> Estimate:
    if len(set(utterances)) == len(utterances):
        return mean_interval(values)
    return bootstrap_mean_interval(values, seed, utterances)


def _utterances(results: Sequence[UtteranceScores]) -> list[str]:
    return [result.utterance for result in results]
