"""The curvature sensitivity: the trace of the loss's Hessian at a site, times the squared error that quantizing it makes.

To second order an error d at a site changes the loss by 1/2 d' H d. If its values are independent and alike, that is in the mean
Tr(H) |d|^2 / (2 n) with n values: `average-curvature`, in dB, the average trace of HAWQ-V2 (arXiv 1911.03852, equation 2.11).
`curvature` is not divided by n, as in the reference system (arXiv 2111.14479). Both keep the one half that the papers drop.

The trace is Hutchinson's estimate (Communications in Statistics 19(2), 1990): z' H z has mean Tr(H) for z with independent values
of mean 0 and variance 1. A site is probed alone. Probing all at once, one product for all of them, has the terms between sites as
noise: on a trained network those made the relative spread of a single probe 1 to 100 and more, against 0.1 to 0.5 alone.

An activation site is treated like weights, its tensor in place of theirs. The network behind a site is piecewise linear in the
site's tensor, so the Hessian there is the Gauss-Newton matrix J' H_L J, with J that of the estimate and H_L the loss's Hessian
in it; nothing further is approximated.

The empirical Fisher variant takes the squared norm of each mixture's gradient in place of the trace: one backward pass for
all sites, in other units and good for ranking only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwsearch.data.seeding import generator
from hwsearch.errors import UserError
from hwsearch.sensitivity.choices import SiteChoices, by_site_and_width, layer_of
from hwsearch.sensitivity.gradient import site_gradients
from hwsearch.sensitivity.mixture import AnalysedMixture, separation_loss
from hwsearch.sensitivity.prefix import continue_from, layer_output, output_site
from hwsearch.sensitivity.table import Method, SensitivityTable, over_mixtures
from hwsearch.separator.allocation import is_weight
from hwsearch.separator.folding import input_site
from hwsearch.separator.prepare import PreparedBase

PROBES_PER_VISIT = 4
"""Probes drawn each time a mixture's graph is built: building it costs about as much as one probe, keeping those of all mixtures
much memory."""

MIN_SAMPLES = 16
"""Probes over all mixtures; from fewer the standard error is itself too uncertain to stop by."""


class Probe(StrEnum):
    """Distribution of a probe's values. Rademacher has the least variance: diagonal terms of the Hessian contribute none."""

    RADEMACHER = "rademacher"
    GAUSSIAN = "gaussian"


@dataclass(frozen=True)
class ProbeRule:
    """How a trace is probed, and when that ends.

    Attributes:
        probe: distribution of the probes.
        relative_error: stop when the probes' standard error is at most this share of the trace.
        max_probes: per mixture; stop there in any case. Probes come in visits of `PROBES_PER_VISIT`, so it is rounded up.
        seed: of the probes; each site, mixture and visit has its own generator.
    """

    probe: Probe = Probe.RADEMACHER
    relative_error: float = 0.05
    max_probes: int = 48
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Trace:
    """Probed trace of the Hessian at a site, in dB per squared unit of the site.

    Attributes:
        samples: [mixtures, probes], one z' H z each.
    """

    samples: NDArray[np.float64]

    @property
    def by_mixture(self) -> NDArray[np.float64]:
        """Trace of each mixture's Hessian, [mixtures]."""
        return np.asarray(self.samples.mean(axis=1))

    @property
    def value(self) -> float:
        """Trace of the mean loss over the mixtures."""
        return float(self.samples.mean())

    @property
    def probe_error(self) -> float:
        """Standard error of `value` for these mixtures, from the probes' spread; NaN with a single probe."""
        mixtures, probes = self.samples.shape
        if probes == 1:
            return float("nan")
        return float(np.sqrt(self.samples.var(axis=1, ddof=1).sum() / probes) / mixtures)


def hutchinson(gradient: Tensor, x: Tensor, probe: Probe, count: int, random: torch.Generator) -> list[float]:
    """`count` samples of z' H z by Hessian-vector products.

    Args:
        gradient: of the loss with respect to `x`, with its graph (`create_graph`).
        x: the variable.
        probe: distribution of z.
        count: number of probes.
        random: where they are drawn from.
    """
    samples = []
    for _ in range(count):
        z = _draw(x, probe, random)
        (product,) = torch.autograd.grad(gradient, x, grad_outputs=z, retain_graph=True)
        samples.append(float((z * product).sum(dtype=torch.float64)))
    return samples


def probe_trace(base: PreparedBase, mixtures: Sequence[AnalysedMixture], site: str, rule: ProbeRule) -> Trace:
    """Probe the trace of one site until it is known well enough.

    A pure function of its arguments, whatever other sites are probed: one job per site is how it is run in parallel.

    Raises:
        UserError: the loss or its curvature is not finite.
    """
    visits: list[list[list[float]]] = []
    while True:
        visits.append([_visit(base, mixture, site, rule, len(visits)) for mixture in mixtures])
        trace = Trace(np.concatenate([np.array(visit) for visit in visits], axis=1))
        if not np.isfinite(trace.samples).all():
            raise UserError(f"sensitivity: the curvature at site '{site}' is not finite; wanted a base that was trained well")
        probes = trace.samples.shape[1]
        certain = trace.samples.size >= MIN_SAMPLES and trace.probe_error <= rule.relative_error * abs(trace.value)
        if certain or probes >= rule.max_probes:
            return trace


def fisher_traces(base: PreparedBase, mixtures: Sequence[AnalysedMixture], sites: Sequence[str]) -> dict[str, Trace]:
    """The empirical Fisher variant: |dL/dsite|^2 of each mixture in place of the Hessian's trace, one sample per mixture.

    Raises:
        UserError: the loss is no finite number.
    """
    gradients = [site_gradients(base, mixture) for mixture in mixtures]
    norms = np.array([[float(found[site].double().square().sum()) for site in sites] for found in gradients])
    return {site: Trace(norms[:, [index]]) for index, site in enumerate(sites)}


def squared_errors(choices: SiteChoices, mixture: AnalysedMixture, *, average: bool) -> NDArray[np.float64]:
    """|Q(x) - x|^2 of every site and width, [sites, widths]; divided by the number of values if `average`.

    Weights have the same error in every mixture, activations their own.
    """
    folded = choices.base.folded

    def error(site: str, bits: int) -> float:
        x = folded.layers[layer_of(site)].weight if is_weight(site) else mixture.tensors[site]
        quantized = choices.weight(site, bits) if is_weight(site) else choices.activation(site, bits, x)
        total = float((quantized - x).double().square().sum())
        return total / x.numel() if average else total

    return by_site_and_width(choices, ([error(site, bits) for bits in choices.of(site)] for site in choices.sites))


def curvature_table(
    sites: Sequence[str],
    widths: Sequence[int],
    traces: Mapping[str, Trace],
    errors: Sequence[NDArray[np.float64]],
    method: Method,
) -> SensitivityTable:
    """Half the trace times the squared error, mean over mixtures.

    Args:
        sites: names.
        widths: candidate widths, rising.
        traces: of each site, over the same mixtures in the same order as `errors`.
        errors: what `squared_errors` gave for each mixture, averaged where the method is.
        method: `curvature`, `average-curvature`, `fisher` or `average-fisher`.

    Returns:
        The table. Its standard error is over mixtures, which holds that of the probes; for a single mixture, the probes' alone.
    """
    by_mixture = np.stack([traces[site].by_mixture for site in sites], axis=1)
    stacked = np.stack(errors)
    table = over_mixtures(method, sites, widths, 0.5 * by_mixture[:, :, None] * stacked)
    if len(errors) > 1:
        return table
    probe_error = np.array([traces[site].probe_error for site in sites])
    return replace(table, standard_error=0.5 * probe_error[:, None] * stacked[0])


def _visit(base: PreparedBase, mixture: AnalysedMixture, site: str, rule: ProbeRule, visit: int) -> list[float]:
    """`PROBES_PER_VISIT` samples of one mixture at one site; the graph starts at the site."""
    folded, tensors = base.folded, mixture.tensors
    if is_weight(site):
        layer = layer_of(site)
        x = folded.layers[layer].weight.detach().requires_grad_()
        start, y = output_site(layer), layer_output(folded, layer, tensors[input_site(layer)], x)
    else:
        x = tensors[site].detach().requires_grad_()
        start, y = site, x
    loss = separation_loss(base.separator, continue_from(folded, start, y, tensors), mixture)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    seed = int(generator("hutchinson", rule.seed, site, mixture.name, visit).integers(2**62))
    return hutchinson(gradient, x, rule.probe, PROBES_PER_VISIT, torch.Generator().manual_seed(seed))


def _draw(x: Tensor, probe: Probe, random: torch.Generator) -> Tensor:
    if probe is Probe.GAUSSIAN:
        return torch.randn(x.shape, generator=random, dtype=x.dtype)
    return torch.randint(0, 2, x.shape, generator=random).mul_(2).sub_(1).to(x.dtype)
