"""The contract of quality metrics that a search may optimise, and the metrics that ship."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hwsearch.metrics.errors import MetricUnavailable
from hwsearch.metrics.perceptual import pesq_score, stoi_score
from hwsearch.metrics.recognisers.recogniser import Recogniser, heard_errors
from hwsearch.metrics.si_snr import si_snr
from hwsearch.metrics.statistics import Estimate, mean_interval, wer_interval
from hwsearch.metrics.wer import WordErrors

Audio = NDArray[np.float32]


@dataclass(frozen=True)
class Heard:
    """One separated mixture; every signal is [samples] at microphone 1.

    Attributes:
        estimate: the separated target.
        target: the true target.
        unprocessed: the mixture.
        sample_rate: in Hz.
        transcript: the target's words, or None where they are unknown.
        recogniser: the one in the experiment's section `evaluation`, or None.
    """

    estimate: Audio
    target: Audio
    unprocessed: Audio
    sample_rate: int
    transcript: str | None = None
    recogniser: Recogniser | None = None


@dataclass(frozen=True)
class QualityMetric:
    """A metric that a search may optimise besides costs.

    Attributes:
        direction: whether larger or smaller values are better.
        worst: value of a mixture for which `score` raises `MetricUnavailable`, such as one with a silent estimate.
        score: computes the value of one mixture; None leaves the mixture out.
        over_mixtures: computes the value over all mixtures, with its interval.
        words: whether the metric needs a recogniser.
    """

    direction: Literal["maximize", "minimize"]
    worst: Any
    score: Callable[[Heard], Any]
    over_mixtures: Callable[[Sequence[Any]], Estimate] = mean_interval
    words: bool = False

    def of(self, heard: Sequence[Heard]) -> Estimate | None:
        """Value over several mixtures, or None if all were left out."""
        found = [value for value in map(self._one, heard) if value is not None]
        return self.over_mixtures(found) if found else None

    def _one(self, heard: Heard) -> Any:
        try:
            return self.score(heard)
        except MetricUnavailable:
            return self.worst


def _improvement(heard: Heard) -> float:
    return float(si_snr(heard.estimate, heard.target) - si_snr(heard.unprocessed, heard.target))


def _words(heard: Heard) -> WordErrors | None:
    return heard_errors(heard.recogniser, heard.transcript, heard.estimate, heard.sample_rate)


SI_SNR_IMPROVEMENT = QualityMetric("maximize", -300.0, _improvement)
PESQ = QualityMetric("maximize", 1.0, lambda heard: pesq_score(heard.estimate, heard.target, heard.sample_rate))
STOI = QualityMetric("maximize", 0.0, lambda heard: stoi_score(heard.estimate, heard.target, heard.sample_rate))
WER = QualityMetric("minimize", None, _words, lambda words: wer_interval(words, seed=0), words=True)
