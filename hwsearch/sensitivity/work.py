"""The work of the jobs, in the process that runs them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from hwsearch.data.dataset import open_dataset
from hwsearch.errors import UserError
from hwsearch.experiment import Experiment, Split
from hwsearch.sensitivity.choices import SiteChoices, make_choices
from hwsearch.sensitivity.curvature import Probe, ProbeRule, curvature_table, fisher_traces, probe_trace, squared_errors
from hwsearch.sensitivity.gradient import gradient_scores
from hwsearch.sensitivity.jobs import MEAN_SQUARED_ERROR, SQUARED_ERROR, Job, Kind, Result
from hwsearch.sensitivity.kl import bernoulli_kl, output_divergence, paper_kl
from hwsearch.sensitivity.measured import measure
from hwsearch.sensitivity.mixture import AnalysedMixture, MixtureReader
from hwsearch.sensitivity.output_noise import output_noise
from hwsearch.sensitivity.recoverability import score_trained
from hwsearch.sensitivity.table import Method
from hwsearch.separator.prepare import prepare_base

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

    def __call__(self) -> Callable[[Job], Result]:
        """Load the base once; mixtures and quantized weights are made when a job wants them.

        Raises:
            UserError: an unusable base or data set.
        """
        torch.set_num_threads(1)
        base = prepare_base(self.experiment, self.base, self.data_folder, self.calibration)
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

        def run(job: Job) -> Result:
            match job.kind:
                case Kind.TRACE:
                    trace = probe_trace(base, mixtures, job.subject, rule)
                    return Result(kind=job.kind, subject=job.subject, samples=trace.samples.tolist())
                case Kind.TRAINING:
                    scores = score_trained(base, mixtures, job.candidates, pool(), self.experiment)
                    bits = job.candidates[0][1][0] if job.candidates else None
                    return Result(kind=job.kind, subject=job.subject, samples=tuple((score,) for score in scores), bits=bits)
                case _:
                    mixture = mixtures.named(job.subject)
                    found = _QUANTITIES[job.kind](choices(job.candidates), mixture)
                    by_width = {name: _by_width(job, name, values) for name, values in found.items()}
                    return Result(kind=job.kind, subject=job.subject, by_width=by_width)

        return run


def _measured(choices: SiteChoices, mixture: AnalysedMixture) -> dict[str, NDArray[np.float64]]:
    scores = measure(choices, mixture)
    return {
        Method.MEASURED: scores.lost_db,
        Method.MEASURED_NOISE: scores.noise_added,
        Method.MEASURED_NOISE_RATIO: scores.noise_ratio,
    }


def _fisher(choices: SiteChoices, mixture: AnalysedMixture) -> dict[str, NDArray[np.float64]]:
    norms = fisher_traces(choices.base, [mixture], choices.sites)
    found: dict[str, NDArray[np.float64]] = {}
    for method, average in ((Method.FISHER, False), (Method.AVERAGE_FISHER, True)):
        errors = squared_errors(choices, mixture, average=average)
        found[method] = curvature_table(choices.sites, choices.widths, norms, [errors], method).value
    return found


_QUANTITIES: dict[Kind, Callable[[SiteChoices, AnalysedMixture], dict[str, NDArray[np.float64]]]] = {
    Kind.MEASURED: _measured,
    Kind.OUTPUT_NOISE: lambda choices, mixture: {Method.OUTPUT_NOISE: output_noise(choices, mixture)},
    Kind.KL: lambda choices, mixture: {Method.KL: output_divergence(choices, mixture, bernoulli_kl)},
    Kind.PAPER_KL: lambda choices, mixture: {Method.PAPER_KL: output_divergence(choices, mixture, paper_kl)},
    Kind.GRADIENT: lambda choices, mixture: {Method.GRADIENT: gradient_scores(choices, mixture)},
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
