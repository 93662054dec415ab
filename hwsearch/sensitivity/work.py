"""The work of the jobs, in the process that runs them."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import NDArray

from hwsearch.data.dataset import dataset_files, open_dataset
from hwsearch.errors import UserError
from hwsearch.executor.portable import moved_paths
from hwsearch.experiment import Experiment, Split
from hwsearch.extensions import SENSITIVITIES
from hwsearch.process.device import open_device
from hwsearch.sensitivity.choices import SiteChoices, make_choices
from hwsearch.sensitivity.curvature import Probe, ProbeRule, curvature_table, fisher_traces, probe_traces, squared_errors
from hwsearch.sensitivity.gradient import gradient_scores
from hwsearch.sensitivity.jobs import MEAN_SQUARED_ERROR, QUANTITIES, SQUARED_ERROR, Job, Result
from hwsearch.sensitivity.kernels import through_onednn
from hwsearch.sensitivity.kinds import Kind
from hwsearch.sensitivity.kl import bernoulli_kl, output_divergence, paper_kl
from hwsearch.sensitivity.measured import OneSiteScores, measured_si_snr
from hwsearch.sensitivity.mixture import AnalysedMixture, MixtureReader
from hwsearch.sensitivity.one_site import Score, full_precision_output, score_sites
from hwsearch.sensitivity.output_noise import output_noise
from hwsearch.sensitivity.recoverability import score_trained
from hwsearch.separator.networks import code_files, with_code_below
from hwsearch.separator.prepare import prepare_base, prepared_files
from hwsearch.separator.separator import Separator

if TYPE_CHECKING:
    from hwsearch.training.pool import TrainingPool


@dataclass(frozen=True)
class WorkFactory:
    """Builds the function that runs jobs; holds paths, so that it travels light.

    Attributes:
        base: the base file.
        data_folder: the data set.
        calibration: the calibration's file, there before the first worker starts.
        pool: training examples, for jobs that train.
    """

    experiment: Experiment
    base: Path
    data_folder: Path
    calibration: Path
    pool: Path | None

    def files(self) -> Iterable[Path]:
        """All that the jobs read, for workers that do not share it."""
        mixtures = dataset_files(self.data_folder, Split.VALIDATION)
        code = code_files(self.experiment.separator)
        return (*prepared_files(self.base, self.calibration), *code, *mixtures, *(() if self.pool is None else (self.pool,)))

    def below(self, root: Path) -> Self:
        """The same, reading copies below another root."""
        return replace(moved_paths(self, root), experiment=with_code_below(self.experiment, root))

    def __call__(self) -> Callable[[Job], tuple[Result, ...]]:
        """Load the base once. Mixtures and quantized weights are prepared when a job needs them.

        Raises:
            UserError: an unusable base or data set, or a device that this process does not see.
        """
        device = open_device(self.experiment.workers.device)
        torch.set_num_threads(1)
        prepared = prepare_base(self.experiment, self.base, self.data_folder, self.calibration).on(device)
        base = replace(prepared, graph=through_onednn(prepared.graph))
        base.scales.take(prepared.scales.to_json(), str(self.calibration))  # the weights are the same
        config = self.experiment.sensitivity
        mixtures = MixtureReader(base, self.data_folder, open_dataset(self.data_folder, Split.VALIDATION)[: config.mixtures])
        choices = lru_cache(maxsize=2)(partial(make_choices, base))
        rule = ProbeRule(Probe(config.probe), config.relative_error, config.max_probes, self.experiment.seed)

        @cache
        def pool() -> "TrainingPool":
            from hwsearch.training.pool import load_pool

            if self.pool is None:
                raise ValueError("training wants examples")
            return load_pool(self.pool)

        def run(job: Job) -> tuple[Result, ...]:
            start = time.process_time()
            results = results_of(job)
            seconds = round((time.process_time() - start) / len(results), 3)
            return tuple(result.model_copy(update={"seconds": seconds}) for result in results)

        def results_of(job: Job) -> tuple[Result, ...]:
            match job.kinds[0]:
                case Kind.TRACE:
                    traces = probe_traces(base, mixtures, [site for site, _ in job.candidates], rule)
                    return tuple(
                        Result(kind=Kind.TRACE, subject=site, samples=trace.samples.tolist()) for site, trace in traces.items()
                    )
                case Kind.TRAINING:
                    scores = score_trained(base, mixtures, job.candidates, pool(), self.experiment)
                    bits = job.candidates[0][1][0] if job.candidates else None
                    samples = tuple((score,) for score in scores)
                    return (Result(kind=Kind.TRAINING, subject=job.subject, samples=samples, bits=bits),)
                case _:
                    found = of_mixture(job.kinds, choices(job.candidates), mixtures.named(job.subject))
                    return tuple(
                        Result(
                            kind=kind,
                            subject=job.subject,
                            by_width={name: _by_width(job, name, values) for name, values in quantities.items()},
                        )
                        for kind, quantities in found.items()
                    )

        return run


Quantities = Mapping[str, NDArray[np.float64]]
"""Values [sites, widths] by the name of the quantity."""


def of_mixture(kinds: Sequence[str], choices: SiteChoices, mixture: AnalysedMixture) -> dict[str, Quantities]:
    """Compute the quantities that `jobs.QUANTITIES` names for a job's kinds.

    Raises:
        UserError: a loss or an output that is no finite number; names mixture and site.
    """
    if kinds[0] not in set(Kind):
        compute = SENSITIVITIES.load(kinds[0]).compute
        if compute is None:
            raise ValueError(f"nothing computes '{kinds[0]}'")
        return {kinds[0]: {kinds[0]: compute(choices, mixture)}}
    if kinds[0] in _QUANTITIES:
        return {kind: _QUANTITIES[kind](choices, mixture) for kind in kinds}
    separator = choices.base.separator
    scores = score_sites(choices, mixture, [_SCORES[kind](separator, mixture) for kind in kinds])
    return {
        kind: _measured(separator, mixture, values) if kind is Kind.MEASURED else {QUANTITIES[kind][0]: values}
        for kind, values in zip(kinds, scores, strict=True)
    }


_SCORES: Mapping[str, Callable[[Separator, AnalysedMixture], Score]] = {
    Kind.MEASURED: lambda separator, mixture: measured_si_snr,
    Kind.OUTPUT_NOISE: output_noise,
    Kind.KL: lambda separator, mixture: output_divergence(mixture, bernoulli_kl),
    Kind.PAPER_KL: lambda separator, mixture: output_divergence(mixture, paper_kl),
}


def _measured(separator: Separator, mixture: AnalysedMixture, si_snr: NDArray[np.float64]) -> Quantities:
    scores = OneSiteScores(measured_si_snr(full_precision_output(separator, mixture))[0], si_snr)
    return {
        "measured": scores.lost_db,
        "measured-noise": scores.noise_added,
        "measured-noise-ratio": scores.noise_ratio,
    }


def _fisher(choices: SiteChoices, mixture: AnalysedMixture) -> Quantities:
    norms = fisher_traces(choices.base, [mixture], choices.sites)
    found: dict[str, NDArray[np.float64]] = {}
    for method, average in (("fisher", False), ("average-fisher", True)):
        errors = squared_errors(choices, mixture, average=average)
        found[method] = curvature_table(choices.sites, choices.widths, norms, [errors], method).value
    return found


_QUANTITIES: Mapping[str, Callable[[SiteChoices, AnalysedMixture], Quantities]] = {
    Kind.GRADIENT: lambda choices, mixture: {"gradient": gradient_scores(choices, mixture)},
    Kind.FISHER: _fisher,
    Kind.ERRORS: lambda choices, mixture: {
        SQUARED_ERROR: squared_errors(choices, mixture, average=False),
        MEAN_SQUARED_ERROR: squared_errors(choices, mixture, average=True),
    },
}


def _by_width(job: Job, quantity: str, values: NDArray[np.float64]) -> dict[str, dict[int, float]]:
    """Values [sites, widths] as numbers by site and width.

    Raises:
        UserError: one that is not finite; names mixture, site and width.
    """
    widths = sorted({bits for _, tried in job.candidates for bits in tried})
    found = {
        site: {bits: float(row[widths.index(bits)]) for bits in tried}
        for (site, tried), row in zip(job.candidates, values, strict=True)
    }
    for site, by_bits in found.items():
        for bits, number in by_bits.items():
            if not np.isfinite(number):
                raise UserError(
                    f"mixture '{job.subject}': {quantity} of site '{site}' at {bits} bits is {number}; wanted a finite number "
                    "(train the base or build the data again)"
                )
    return found
