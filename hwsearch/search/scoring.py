"""The quality of a bit allocation: SI-SNR improvement on the validation mixtures, at a fidelity."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwsearch.data.dataset import load_mixture, open_dataset
from hwsearch.data.example import Example
from hwsearch.executor.portable import moved_paths
from hwsearch.experiment import FLOAT_BITS, Experiment, Fidelity, Split
from hwsearch.extensions import QUALITY_METRICS
from hwsearch.files.reading import digest
from hwsearch.metrics.evaluation import make_recogniser, of_target
from hwsearch.metrics.quality import Heard
from hwsearch.metrics.recognisers.recogniser import Recogniser
from hwsearch.metrics.statistics import mean_interval
from hwsearch.search.kept_networks import KeptNetworks
from hwsearch.search.mixture_batches import MixtureBatch, improvements, mixture_batches
from hwsearch.search.objectives import DROP_CI95, QUALITY, QUALITY_CI95, TRAINING_STEPS, UTTERANCES
from hwsearch.separator.allocation import uniform
from hwsearch.separator.configuration import Configuration
from hwsearch.separator.factory import BaseFactory
from hwsearch.separator.fast import KeptInput
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.trained import TrainedState, load_trained, save_trained, trained_mask_function
from hwsearch.training.pool import TrainingPool, load_pool
from hwsearch.training.qat import TrainingOptions, train_quantized

COMPARED = 24
"""Number of candidates that a search on the shared network scores without training, too, to show what the training brings."""


@dataclass(frozen=True)
class Rung:
    """A fidelity at which candidates are scored again, and the number of them beside those that always are."""

    fidelity: Fidelity
    keep: int


@dataclass(frozen=True)
class TrainedFile:
    """The file of a candidate's trained weights, and the configuration that it takes to read it."""

    path: Path
    configuration: Configuration


@dataclass(frozen=True)
class ScoringJob:
    """A candidate to score at a fidelity."""

    configuration: Configuration
    fidelity: Fidelity
    output: Path | None = None
    """The file for its trained weights, at fidelities that train."""
    start: TrainedFile | None = None
    """The trained weights that its training starts from; None: those of the shared network if there is one, or of the base."""
    steps: int | None = None
    """Number of training steps; None: as many as the experiment says for the fidelity."""

    @property
    def checkpoint(self) -> Path | None:
        """The file that its training goes on from after a kill."""
        return None if self.output is None else self.output.with_suffix(".checkpoint")

    def files(self) -> Iterable[Path]:
        """Files that a worker reads if they exist: the weights it starts from, and those that an earlier attempt left."""
        return (*([] if self.start is None else [self.start.path]), *self.results())

    def results(self) -> Iterable[Path]:
        """Files that a worker writes."""
        return [] if self.output is None else [self.output]

    def below(self, root: Path) -> Self:
        """Return a copy of the job with all files below another root."""
        start = None if self.start is None else moved_paths(self.start, root)
        return replace(moved_paths(self, root), start=start)


class ScorerFactory(BaseFactory):
    """Builds the scoring function in the process that uses it."""

    def __call__(self) -> Callable[[ScoringJob], Mapping[str, float]]:
        """Load base and mixtures once.

        Raises:
            UserError: an unusable base, data set or pool, or a device that this process does not see.
        """
        torch.set_num_threads(self.experiment.workers.threads)
        return _Scorer(self, self.prepared()).score


def first_fidelity(experiment: Experiment) -> Fidelity:
    """Return the fidelity at which every candidate is scored: the subset, if it leaves mixtures out."""
    whole = experiment.search.validation_mixtures >= experiment.data.fixed_count(Split.VALIDATION)
    if experiment.search.uses_shared:
        return Fidelity.SHARED if whole else Fidelity.SHARED_SUBSET
    return Fidelity.POST_TRAINING if whole else Fidelity.SUBSET


def later_rungs(experiment: Experiment) -> tuple[Rung, ...]:
    """Return the rungs after the first: `search.promotions`, and the comparison with no training if the first one is trained."""
    first = first_fidelity(experiment)
    found = [Rung(each.fidelity, each.keep) for each in experiment.search.promotions if each.fidelity is not first]
    if first.on_shared:
        last = found[-1].fidelity if found else first
        found.append(Rung(last.without_training, COMPARED))
    return tuple(found)


class _Scorer:
    """Scores jobs. It keeps features and the mixtures' own SI-SNR, and quantizes weights once per structure, site and width."""

    def __init__(self, factory: ScorerFactory, prepared: PreparedBase) -> None:
        self._factory = factory
        self._experiment = factory.experiment
        self._prepared = prepared
        self._kept = KeptNetworks(prepared, factory.shared_state(prepared), integers=self._experiment.search.integer_kernels)
        self._mixtures = open_dataset(factory.data_folder, Split.VALIDATION)
        self._batches: list[list[MixtureBatch]] = []
        """The subset; then also the rest of the validation set, once a job has needed it."""
        self._full_precision: list[NDArray[np.float64]] = []
        self._others = [name for name in self._experiment.search.objectives if name in QUALITY_METRICS and name != QUALITY]
        self._unheard: list[list[Heard]] = []
        """Input of the metrics other than SI-SNR for each mixture, with the target in the estimate's place."""

    @cached_property
    def _recogniser(self) -> Recogniser | None:
        if not any(QUALITY_METRICS.load(name).words for name in self._others):
            return None
        return make_recogniser(self._experiment.evaluation, self._mixtures)

    def score(self, job: ScoringJob) -> Mapping[str, float]:
        """Metrics by column name.

        Raises:
            ValueError: its training diverged.
        """
        parts = 1 if job.fidelity.on_subset else 2
        while len(self._batches) < parts:
            self._load()
        mask, steps = self._mask_function(job)
        heard: list[Heard] = []
        found = np.concatenate([self._improvements(mask, part, heard) for part in range(parts)])
        quality, drop = mean_interval(found), mean_interval(np.concatenate(self._full_precision[:parts]) - found)
        scores = {QUALITY: quality.value, UTTERANCES: float(len(found)), TRAINING_STEPS: float(steps)}
        for name, estimate in ((QUALITY_CI95, quality), (DROP_CI95, drop)):
            if estimate.high is not None:
                scores[name] = estimate.high - estimate.value
        return {**scores, **_others(self._others, heard)}

    def _improvements(self, mask: Callable[[KeptInput], Tensor], part: int, heard: list[Heard]) -> NDArray[np.float64]:
        """Compute the SI-SNR improvements on a part of the mixtures, and add the input of the other metrics to `heard`."""

        def listen(number: int, estimate: NDArray[np.float32]) -> None:
            unheard = self._unheard[part][number]
            heard.append(replace(unheard, estimate=of_target(estimate, unheard.target)))

        wanted = listen if self._others else None
        return improvements(self._prepared.separator, mask, self._batches[part], wanted)

    def _load(self) -> None:
        """Analyse the next part of the mixtures, and separate it in full precision."""
        subset = self._experiment.search.validation_mixtures
        mixtures = self._mixtures[subset:] if self._batches else self._mixtures[:subset]
        sounds = [(*load_mixture(self._factory.data_folder, mixture), mixture.doa_deg) for mixture in mixtures]
        batches = mixture_batches(self._prepared.separator, [Example(*sound) for sound in sounds])
        reference = self._kept.whole.mask_function(uniform(self._prepared.sites, FLOAT_BITS, FLOAT_BITS), Fidelity.POST_TRAINING)
        self._full_precision.append(improvements(self._prepared.separator, reference, batches))
        self._batches.append(batches)
        if self._others:
            unheard = [
                Heard(target, target, sound[0], mixture.sample_rate, mixture.target.transcript, self._recogniser)
                for (sound, target, _), mixture in zip(sounds, mixtures, strict=True)
            ]
            self._unheard.append(unheard)

    def _mask_function(self, job: ScoringJob) -> tuple[Callable[[KeptInput], Tensor], int]:
        """Return the network of a job, and the number of its training steps, including those of warm starts.

        Full precision is never trained further: it stays a fixed reference for the candidates.
        """
        kept, allocation = self._kept.at(job.configuration.kept), job.configuration.allocation
        if set(allocation.by_site.values()) == {FLOAT_BITS} and not job.configuration.structure:
            return kept.mask_function(allocation, job.fidelity.without_training), 0
        if not job.fidelity.trained:
            return kept.mask_function(allocation, job.fidelity), kept.steps(job.fidelity)
        state = self._trained(job, kept.base)
        return _trained_mask(kept.base, state), state.steps

    def _trained(self, job: ScoringJob, base: PreparedBase) -> TrainedState:
        """Train, or read the weights that an earlier attempt at the same job has left.

        A long training goes on where an earlier attempt was killed, and takes the state that is best on the validation set.
        """
        if job.output is None or job.checkpoint is None:
            raise ValueError("a job that trains wants a place for its weights")
        allocation = job.configuration.allocation
        if job.output.is_file():
            state = load_trained(job.output, base, allocation)
        else:
            start = self._start(job, base)
            long = job.fidelity is not Fidelity.SHORT_QAT
            options = TrainingOptions(checkpoint=job.checkpoint, judge=partial(self._judge, base) if long else None)
            config, steps = self._experiment.qat, job.steps or self._experiment.qat.steps_at(job.fidelity)
            seed = self._experiment.seed
            state = train_quantized(base, allocation, self._pool, config, steps, seed, start=start, options=options)
            save_trained(job.output, state)
        job.checkpoint.unlink(missing_ok=True)
        return state

    def _start(self, job: ScoringJob, base: PreparedBase) -> TrainedState | None:
        """Return the state that a training starts from; None: the base."""
        if job.start is not None:
            return load_trained(job.start.path, base, job.start.configuration.allocation)
        shared = self._kept.at(job.configuration.kept).shared
        return None if shared is None else shared.at(job.configuration.allocation)

    def _judge(self, base: PreparedBase, state: TrainedState) -> float:
        """Compute the mean SI-SNR improvement of a state on the mixtures that the job is scored on."""
        mask = _trained_mask(base, state)
        parts = [improvements(self._prepared.separator, mask, batches) for batches in self._batches]
        return float(np.concatenate(parts).mean())

    @cached_property
    def _pool(self) -> TrainingPool:
        if self._factory.pool is None:
            raise ValueError("a job that trains wants training mixtures")
        return load_pool(self._factory.pool)


def _trained_mask(base: PreparedBase, state: TrainedState) -> Callable[[KeptInput], Tensor]:
    mask = trained_mask_function(base, state)
    return lambda features: mask(features.normalised)


def _others(names: Sequence[str], heard: Sequence[Heard]) -> dict[str, float]:
    """Compute the metrics other than SI-SNR, each with the half width of its interval if it has one.

    Raises:
        ValueError: a metric has no value for any mixture.
    """
    found = {}
    for name in names:
        estimate = QUALITY_METRICS.load(name).of(heard)
        if estimate is None:
            raise ValueError(f"no mixture has a '{name}'; wanted transcripts and a recogniser that knows their words")
        found[name] = estimate.value
        if estimate.low is not None and estimate.high is not None:
            found[f"{name}_ci95"] = (estimate.high - estimate.low) / 2
    return found


def trained_name(
    experiment: str, configuration: Configuration, fidelity: Fidelity, start: str | None, steps: int | None = None
) -> str:
    """Return the file name of a candidate's trained weights: a hash of everything they depend on.

    Args:
        experiment: the experiment's `search_digest`, which covers how candidates are trained.
        configuration: what is kept of the network, and the width of every site.
        fidelity: the fidelity that it is trained for.
        start: name of the file that training starts from; None: the base.
        steps: number of training steps, if the experiment does not say it.
    """
    content: dict[str, object] = {
        "experiment": experiment,
        "allocation": configuration.allocation.to_json(),
        "fidelity": fidelity.value,
        "start": start,
    }
    if steps is not None:
        content["steps"] = steps
    if configuration.structure:
        content["structure"] = configuration.kept
    return f"{digest(content)[:24]}.safetensors"
