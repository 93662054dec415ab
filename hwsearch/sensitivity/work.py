"""The work of the jobs, in the process that runs them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from hwsearch.data.dataset import open_dataset
from hwsearch.errors import UserError
from hwsearch.experiment import Split
from hwsearch.extensions import SENSITIVITIES
from hwsearch.sensitivity.choices import SiteChoices, make_choices
from hwsearch.sensitivity.curvature import ProbeRule, fisher_scores, probe_traces, squared_errors
from hwsearch.sensitivity.gradient import gradient_scores
from hwsearch.sensitivity.jobs import MEAN_SQUARED_ERROR, SQUARED_ERROR, Job, Result
from hwsearch.sensitivity.kernels import through_onednn
from hwsearch.sensitivity.methods import Kind
from hwsearch.sensitivity.mixture import AnalysedMixture, MixtureReader
from hwsearch.sensitivity.one_site import OneSiteOutput, Score, full_precision_output, score_sites
from hwsearch.sensitivity.recoverability import score_trained
from hwsearch.sensitivity.scores import (
    bernoulli_kl,
    measured_losses,
    measured_si_snr,
    output_divergence,
    output_noise,
    paper_kl,
)
from hwsearch.separator.factory import BaseFactory

if TYPE_CHECKING:
    from hwsearch.training.pool import TrainingPool

Quantities = Mapping[str, NDArray[np.float64]]
"""Values [sites, widths] by the name of the quantity."""


class WorkFactory(BaseFactory):
    """Builds the function that runs jobs."""

    def __call__(self) -> Callable[[Job], tuple[Result, ...]]:
        """Load the base once. Mixtures and quantized weights are prepared when a job needs them.

        Raises:
            UserError: an unusable base or data set, or a device that this process does not see.
        """
        torch.set_num_threads(1)
        prepared = self.prepared()
        if (shared := self.shared_state(prepared)) is not None:
            prepared = shared.as_base(prepared)
        base = replace(prepared, graph=through_onednn(prepared.graph))
        base.weights.take(prepared.weights.to_tensors(), self.calibration)  # the weights are the same
        config = self.experiment.sensitivity
        mixtures = MixtureReader(base, self.data_folder, open_dataset(self.data_folder, Split.VALIDATION)[: config.mixtures])
        choices = lru_cache(maxsize=2)(partial(make_choices, base))
        rule = ProbeRule(config.probe, config.relative_error, config.max_probes, self.experiment.seed)

        @cache
        def pool() -> "TrainingPool":
            from hwsearch.training.pool import load_pool

            if self.pool is None:
                raise ValueError("training wants examples")
            return load_pool(self.pool)

        def results_of(job: Job) -> list[Result]:
            match job.kinds[0]:
                case Kind.TRACE as kind:
                    traces = probe_traces(base, mixtures, [site for site, _ in job.candidates], rule)
                    return [Result(kind=kind, subject=site, samples=trace.samples.tolist()) for site, trace in traces.items()]
                case Kind.TRAINING as kind:
                    scores = score_trained(base, mixtures, job.candidates, pool(), self.experiment)
                    bits = job.candidates[0][1][0] if job.candidates else None
                    return [Result(kind=kind, subject=job.subject, samples=tuple((score,) for score in scores), bits=bits)]
                case _:
                    here = choices(job.candidates)
                    found = of_mixture(job.kinds, here, mixtures.named(job.subject))
                    return [
                        Result(
                            kind=kind,
                            subject=job.subject,
                            by_width={name: _by_width(here, job.subject, name, values) for name, values in quantities.items()},
                        )
                        for kind, quantities in found.items()
                    ]

        def run(job: Job) -> tuple[Result, ...]:
            start = time.process_time()
            results = results_of(job)
            seconds = round((time.process_time() - start) / len(results), 3)
            return tuple(result.model_copy(update={"seconds": seconds}) for result in results)

        return run


def of_mixture(kinds: Sequence[str], choices: SiteChoices, mixture: AnalysedMixture) -> dict[str, Quantities]:
    """Compute the quantities of a job's kinds, by kind.

    Raises:
        UserError: a loss or an output that is not finite. The message names mixture and site.
    """
    kind = kinds[0]
    if kind in _SCORES:
        full = full_precision_output(choices.base.separator, mixture)
        scores = score_sites(choices, mixture, [_SCORES[each](full) for each in kinds])
        return {each: _quantities(each, values, full) for each, values in zip(kinds, scores, strict=True)}
    match kind:
        case Kind.FISHER:
            return {kind: fisher_scores(choices, mixture)}
        case Kind.ERRORS:
            return {kind: dict(zip((SQUARED_ERROR, MEAN_SQUARED_ERROR), squared_errors(choices, mixture), strict=True))}
        case Kind.GRADIENT:
            return {kind: {kind: gradient_scores(choices, mixture)}}
    compute = SENSITIVITIES.load(kind).compute
    if compute is None:
        raise ValueError(f"nothing computes '{kind}'")
    return {kind: {kind: compute(choices, mixture)}}


_SCORES: Mapping[str, Callable[[OneSiteOutput], Score]] = {
    Kind.MEASURED: lambda full: measured_si_snr,
    Kind.OUTPUT_NOISE: output_noise,
    Kind.KL: partial(output_divergence, divergence=bernoulli_kl),
    Kind.PAPER_KL: partial(output_divergence, divergence=paper_kl),
}
"""Scores of the output with one site quantized, given the full-precision output."""


def _quantities(kind: str, scores: NDArray[np.float64], full: OneSiteOutput) -> Quantities:
    if kind == Kind.MEASURED:
        return measured_losses(measured_si_snr(full)[0], scores)
    return {"output-noise-ratio" if kind == Kind.OUTPUT_NOISE else kind: scores}


def _by_width(choices: SiteChoices, mixture: str, quantity: str, values: NDArray[np.float64]) -> dict[str, dict[int, float]]:
    """Convert values [sites, widths] to numbers by site and width, and refuse those that are not finite."""
    found: dict[str, dict[int, float]] = {}
    for (site, tried), row in zip(choices.candidates, values.tolist(), strict=True):
        found[site] = {bits: number for bits, number in zip(choices.widths, row, strict=True) if bits in tried}
        for bits, number in found[site].items():
            if not np.isfinite(number):
                raise UserError(
                    f"mixture '{mixture}': {quantity} of site '{site}' at {bits} bits is {number}; wanted a finite number "
                    "(train the base or build the data again)"
                )
    return found
