"""The contract of quality metrics that a search may optimise, and those that ship."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hwsearch.metrics.errors import MetricUnavailable
from hwsearch.metrics.evaluation import understood
from hwsearch.metrics.perceptual import pesq_score, stoi_score
from hwsearch.metrics.recognisers.recogniser import Recogniser, transcribe_at
from hwsearch.metrics.si_snr import si_snr
from hwsearch.metrics.statistics import Estimate, mean_interval, wer_interval
from hwsearch.metrics.wer import WordErrors, word_errors

Audio = NDArray[np.float32]


@dataclass(frozen=True)
class Heard:
    """One separated mixture; every signal is [samples] at microphone 1.

    Attributes:
        estimate: of the target.
        target: what it should be.
        unprocessed: the mixture.
        sample_rate: in Hz.
        transcript: the target's words; None where they are not known.
        recogniser: of the experiment's section `evaluation`; None: none.
    """

    estimate: Audio
    target: Audio
    unprocessed: Audio
    sample_rate: int
    transcript: str | None = None
    recogniser: Recogniser | None = None


@dataclass(frozen=True)
class QualityMetric:
    """What a search may optimise besides costs.

    Attributes:
        direction: whether more or less of it is better.
        worst: what a mixture counts that has no value, such as an estimate without sound.
        score: the value of one mixture; None leaves the mixture out. Raises `MetricUnavailable` where `worst` counts.
        over_mixtures: the value over all mixtures, with its interval.
        words: whether it needs a recogniser.
    """

    direction: Literal["maximize", "minimize"]
    worst: Any
    score: Callable[[Heard], Any]
    over_mixtures: Callable[[Sequence[Any]], Estimate] = mean_interval
    words: bool = False

    def of(self, heard: Sequence[Heard]) -> Estimate | None:
        """The value over several mixtures; None where every one of them was left out."""
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
    if heard.recogniser is None or heard.transcript is None or not understood(heard.recogniser, heard.transcript):
        return None
    return word_errors(heard.transcript, transcribe_at(heard.recogniser, heard.estimate, heard.sample_rate))


SI_SNR_IMPROVEMENT = QualityMetric("maximize", -300.0, _improvement)
PESQ = QualityMetric("maximize", 1.0, lambda heard: pesq_score(heard.estimate, heard.target, heard.sample_rate))
STOI = QualityMetric("maximize", 0.0, lambda heard: stoi_score(heard.estimate, heard.target, heard.sample_rate))
WER = QualityMetric("minimize", None, _words, lambda words: wer_interval(words, seed=0), words=True)
