"""The quality of a bit allocation: SI-SNR improvement on the validation mixtures, at a fidelity."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hwsearch.data.dataset import Mixture, load_mixture, open_dataset
from hwsearch.experiment import FLOAT_BITS, Experiment, Fidelity, Split
from hwsearch.files import digest
from hwsearch.metrics.si_snr import si_snr
from hwsearch.metrics.statistics import mean_interval
from hwsearch.search.objectives import DROP_CI95, QUALITY, QUALITY_CI95, UTTERANCES
from hwsearch.separator.allocation import BitAllocation, uniform
from hwsearch.separator.fast import FastNetwork
from hwsearch.separator.prepare import PreparedBase, prepare_base
from hwsearch.separator.separator import Analysis, MaskFunction
from hwsearch.separator.trained import TrainedState, load_trained, save_trained, trained_mask_function
from hwsearch.training.pool import TrainingPool, load_pool
from hwsearch.training.qat import train_quantized

SILENT_DB = -30.0
"""What silence instead of the target is worth: worse than any mixture, and finite."""


@dataclass(frozen=True)
class TrainedFile:
    """Where the trained weights of a candidate lie, and its allocation, which reading them wants."""

    path: Path
    allocation: BitAllocation


@dataclass(frozen=True)
class ScoringJob:
    """A candidate to score.

    Attributes:
        fidelity: how.
        output: where its trained weights go, at fidelities that train.
        start: whose trained weights its training starts from; None: the base.
    """

    allocation: BitAllocation
    fidelity: Fidelity
    output: Path | None = None
    start: TrainedFile | None = None


@dataclass(frozen=True)
class ScorerFactory:
    """Builds the scoring function in the process that will use it; holds paths, so that it travels light.

    Attributes:
        base: the base file.
        data_folder: the data set.
        calibration: the calibration's file, there before the first worker starts.
        pool: training mixtures; None where no fidelity trains.
    """

    experiment: Experiment
    base: Path
    data_folder: Path
    calibration: Path
    pool: Path | None = None

    def __call__(self) -> Callable[[ScoringJob], Mapping[str, float]]:
        """Load base and mixtures once.

        Raises:
            UserError: an unusable base, data set or pool.
        """
        torch.set_num_threads(1)
        prepared = prepare_base(self.experiment, self.base, self.data_folder, self.calibration)
        return _Scorer(self, prepared).score


def first_fidelity(experiment: Experiment) -> Fidelity:
    """The fidelity at which every candidate is scored: a subset where the experiment makes more mixtures than it scores on."""
    whole = experiment.search.validation_mixtures >= experiment.data.mixtures.count.get(Split.VALIDATION, 0)
    return Fidelity.POST_TRAINING if whole else Fidelity.SUBSET


class _Scorer:
    """Everything loaded: features and the mixtures' own SI-SNR are kept, weights are quantized once per site and width."""

    def __init__(self, factory: ScorerFactory, prepared: PreparedBase) -> None:
        self._factory = factory
        self._experiment = factory.experiment
        self._prepared = prepared
        self._network = FastNetwork(prepared.folded, prepared.calibration, prepared.quantization)
        self._mixtures = open_dataset(factory.data_folder, Split.VALIDATION)
        self._examples: list[tuple[Analysis, NDArray[np.float32], float]] = []
        self._full_precision: list[float] = []

    def score(self, job: ScoringJob) -> Mapping[str, float]:
        """Metrics by column name.

        Raises:
            ValueError: its training diverged.
        """
        count = self._experiment.search.validation_mixtures if job.fidelity is Fidelity.SUBSET else len(self._mixtures)
        self._load(self._mixtures[:count])
        found = np.array(self._improvements(self._mask_function(job), 0, min(count, len(self._mixtures))))
        quality, drop = mean_interval(found), mean_interval(np.array(self._full_precision[: len(found)]) - found)
        scores = {QUALITY: quality.value, UTTERANCES: float(len(found))}
        for name, estimate in ((QUALITY_CI95, quality), (DROP_CI95, drop)):
            if estimate.high is not None:
                scores[name] = estimate.high - estimate.value
        return scores

    def _load(self, mixtures: Sequence[Mixture]) -> None:
        """Analyse the mixtures that no job has wanted so far, and separate them in full precision."""
        before = len(self._examples)
        for mixture in mixtures[before:]:
            sound, target = load_mixture(self._factory.data_folder, mixture)
            with torch.no_grad():
                doa = torch.tensor([mixture.target.doa_deg])
                analysis = self._prepared.separator.analyse(torch.from_numpy(sound)[None], doa)
            self._examples.append((analysis, target, float(si_snr(sound[0], target))))
        reference = uniform(self._experiment.separator, FLOAT_BITS, FLOAT_BITS)
        self._full_precision += self._improvements(self._network.mask_function(reference), before, len(self._examples))

    def _mask_function(self, job: ScoringJob) -> MaskFunction:
        """The network of a job; full precision is never trained, so that it stays what candidates are compared with."""
        if not job.fidelity.trained or set(job.allocation.by_site.values()) == {FLOAT_BITS}:
            return self._network.mask_function(job.allocation)
        return trained_mask_function(self._prepared, self._trained(job))

    def _trained(self, job: ScoringJob) -> TrainedState:
        """Train, or find what an earlier attempt at the same job has left."""
        if job.output is None:
            raise ValueError("a job that trains wants a place for its weights")
        if job.output.is_file():
            return load_trained(job.output, self._prepared, job.allocation)
        config = self._experiment.qat
        start = None if job.start is None else load_trained(job.start.path, self._prepared, job.start.allocation)
        steps = config.steps if job.fidelity is Fidelity.SHORT_QAT else config.full_steps
        state = train_quantized(self._prepared, job.allocation, self._pool, config, steps, self._experiment.seed, start=start)
        save_trained(job.output, state)
        return state

    @cached_property
    def _pool(self) -> TrainingPool:
        if self._factory.pool is None:
            raise ValueError("a job that trains wants training mixtures")
        return load_pool(self._factory.pool)

    def _improvements(self, mask: MaskFunction, first: int, end: int) -> list[float]:
        found = []
        for analysis, target, unprocessed in self._examples[first:end]:
            with torch.no_grad():
                estimate = self._prepared.separator.synthesise(analysis, mask(analysis.normalised), len(target))[0].numpy()
            found.append(_si_snr(estimate, target) - unprocessed)
        return found


def trained_name(allocation: BitAllocation, fidelity: Fidelity, start: str | None) -> str:
    """File name of a candidate's trained weights: a hash of what is trained, how far, and from which other file."""
    return f"{digest({'allocation': allocation.to_json(), 'fidelity': fidelity.value, 'start': start})[:24]}.safetensors"


def _si_snr(estimate: NDArray[np.float32], target: NDArray[np.float32]) -> float:
    """SI-SNR in dB, or `SILENT_DB` for an estimate without sound: two bits may mask everything away."""
    return float(si_snr(estimate, target)) if np.any(estimate) else SILENT_DB
