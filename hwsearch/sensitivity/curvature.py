"""The curvature sensitivity: the trace of the loss's Hessian at a site, times the squared error of quantization.

To second order, an error d at a site changes the loss by 1/2 d' H d. If the n values of d are independent and identically
distributed, the mean of this change is Tr(H) |d|^2 / (2 n). This is `average-curvature`, in dB; Tr(H) / n is the average trace
of HAWQ-V2 (arXiv 1911.03852, equation 2.11). `curvature` is not divided by n, as in the reference system (arXiv 2111.14479).
Both keep the factor 1/2 that the papers drop. An activation is treated like weights.

The Hessian is approximated by the Gauss-Newton matrix J' H_L J, where J is the Jacobian of the estimate, and H_L is the Hessian
of the loss with respect to the estimate. The approximation is exact if only convolutions, sums and rectifiers follow the site.
A sigmoid, a product of activations or a norm makes it inexact. H_L is a multiple of P P plus a part of rank two
(`loss_hessian`), so

    Tr(J' H_L J) = spread |P J|^2 + sum of weight |J' direction|^2.

The second part is exact. The first is Hutchinson's estimate (Communications in Statistics 19(2), 1990): z' M z has mean Tr(M)
if z has independent values of mean 0 and variance 1. Because Tr(P J J' P) = Tr(J' P P J), z may be drawn at the estimate instead
of the site. One backward pass J' P z then probes every site at once. With Hessian-vector products, terms between sites would
spoil such joint probes. Both matrices have the same nonzero eigenvalues, so Gaussian probes have the same variance on either
side. Rademacher probes have less.

The empirical Fisher variant takes the squared norm of each mixture's gradient in place of the trace. It needs one backward pass
for all sites and has other units, so it only ranks sites.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwsearch.data.seeding import generator
from hwsearch.errors import UserError
from hwsearch.process.interrupts import checkpoint
from hwsearch.sensitivity.choices import SiteChoices, by_site_and_width
from hwsearch.sensitivity.gradient import mask_with_graph, site_gradients
from hwsearch.sensitivity.loss_hessian import loss_hessian
from hwsearch.sensitivity.mixture import AnalysedMixture, separation_loss
from hwsearch.sensitivity.table import SensitivityTable, over_mixtures
from hwsearch.separator.allocation import is_weight
from hwsearch.separator.prepare import PreparedBase

PROBES_PER_VISIT = 4
"""Probes drawn each time a mixture's graph is built. Building the graph and computing the exact part cost as much as four
probes; keeping the graphs of all mixtures would take much memory."""

MIN_SAMPLES = 16
"""Least number of probes over all mixtures. With fewer, the standard error is too uncertain to stop by."""

Probe = Literal["rademacher", "gaussian"]
"""Distribution of a probe's values. Rademacher has less variance: diagonal terms of the matrix contribute none."""


@dataclass(frozen=True)
class ProbeRule:
    """How a trace is probed, and when probing ends.

    Attributes:
        probe: distribution of the probes.
        relative_error: stop when the probes' standard error is at most this share of the trace.
        max_probes: most probes per mixture, rounded up to a multiple of `PROBES_PER_VISIT`.
        seed: seed of the probes; each mixture and visit has its own generator.
    """

    probe: Probe = "rademacher"
    relative_error: float = 0.05
    max_probes: int = 48
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Trace:
    """Probed trace of the Hessian at a site, in dB per squared unit of the site.

    Attributes:
        samples: [mixtures, probes].
    """

    samples: NDArray[np.float64]

    @property
    def by_mixture(self) -> NDArray[np.float64]:
        """Trace for each mixture's loss, [mixtures]."""
        return np.asarray(self.samples.mean(axis=1))

    @property
    def value(self) -> float:
        """Trace for the mean loss over the mixtures."""
        return float(self.samples.mean())

    @property
    def probe_error(self) -> float:
        """Standard error of `value` for these mixtures, from the probes' spread; NaN with a single probe."""
        mixtures, probes = self.samples.shape
        if probes == 1:
            return float("nan")
        return float(np.sqrt(self.samples.var(axis=1, ddof=1).sum() / probes) / mixtures)


def probe_traces(
    base: PreparedBase, mixtures: Iterable[AnalysedMixture], sites: Sequence[str], rule: ProbeRule
) -> dict[str, Trace]:
    """Probe the trace of every site until it is known well enough.

    Sites share the probes, but each stops by itself. So its trace does not depend on which others are probed with it. `mixtures`
    is iterated once per visit.

    Raises:
        UserError: the loss or its curvature is not finite.
    """
    visits: list[dict[str, NDArray[np.float64]]] = []
    traces: dict[str, Trace] = {}
    while wanted := [site for site in sites if site not in traces]:
        found = [_visit(base, mixture, wanted, rule, len(visits)) for mixture in mixtures]
        visits.append({site: np.stack([samples[site] for samples in found]) for site in wanted})
        for site in wanted:
            trace = Trace(np.concatenate([visit[site] for visit in visits], axis=1))
            if not np.isfinite(trace.samples).all():
                raise UserError(f"sensitivity: the curvature at site '{site}' is not finite; wanted a base that was trained well")
            certain = trace.samples.size >= MIN_SAMPLES and trace.probe_error <= rule.relative_error * abs(trace.value)
            if certain or trace.samples.shape[1] >= rule.max_probes:
                traces[site] = trace
    return traces


def trace_samples(
    base: PreparedBase, mixture: AnalysedMixture, sites: Sequence[str], probes: Tensor
) -> dict[str, NDArray[np.float64]]:
    """Estimate the trace of a mixture's Hessian, once for each probe.

    Args:
        base: the network.
        mixture: the mixture on which the loss is taken.
        sites: weights and activations.
        probes: [probes, samples], at the estimate.

    Returns:
        Samples [probes] by site.

    Raises:
        UserError: the loss is not finite.
    """
    mask, graph = mask_with_graph(base, mixture)
    separation_loss(base.separator, mask, mixture)  # refuses a loss that is not finite
    samples = mixture.target.shape[-1]
    estimates = base.separator.synthesise(mixture.analysis, mask, samples).reshape(-1, samples)
    variables = [graph[site] for site in sites]
    # The loss is a mean over speakers. The part of each speaker depends on that speaker's estimate alone.
    found = [
        _speaker_samples(estimate, target, variables, probes)
        for estimate, target in zip(estimates, mixture.target.reshape(-1, samples), strict=True)
    ]
    return dict(zip(sites, np.mean(found, axis=0).T, strict=True))


def _speaker_samples(estimate: Tensor, target: Tensor, variables: Sequence[Tensor], probes: Tensor) -> NDArray[np.float64]:
    """Traces for one speaker's loss, [probes, variables]."""
    hessian = loss_hessian(estimate.detach(), target)

    def squared_norms(direction: Tensor) -> NDArray[np.float64]:
        """|J' direction|^2 for every variable."""
        checkpoint()
        gradients = torch.autograd.grad(estimate, variables, direction, retain_graph=True, materialize_grads=True)
        return np.array([float(gradient.square().sum(dtype=torch.float64)) for gradient in gradients])

    exact = sum(weight * squared_norms(direction) for weight, direction in hessian.directions)
    return np.array([hessian.spread * squared_norms(probe) + exact for probe in hessian.project(probes)])


def fisher_scores(choices: SiteChoices, mixture: AnalysedMixture) -> dict[str, NDArray[np.float64]]:
    """Half of |dL/dsite|^2 times the squared error, [sites, widths]: its sum (`fisher`) and its mean (`average-fisher`).

    Raises:
        UserError: the loss is not finite.
    """
    gradients = site_gradients(choices.base, mixture)
    norms = np.array([[float(gradients[site].double().square().sum())] for site in choices.sites])
    sums, means = squared_errors(choices, mixture)
    return {"fisher": 0.5 * norms * sums, "average-fisher": 0.5 * norms * means}


def squared_errors(choices: SiteChoices, mixture: AnalysedMixture) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The squared error |Q(x) - x|^2 of every site and width: its sum and its mean over the values, both [sites, widths].

    The error of weights is the same for every mixture; that of activations is not.
    """
    parameters, sizes, rows = choices.base.graph.parameters, list[list[int]](), list[list[float]]()
    for site in choices.sites:
        x = parameters[site] if is_weight(site) else mixture.tensors[site]
        sizes.append([x.numel()])
        rows.append([])
        for bits in choices.of(site):
            checkpoint()
            quantized = choices.weight(site, bits) if is_weight(site) else choices.activation(site, bits, x)
            rows[-1].append(float((quantized - x).double().square().sum()))
    sums = by_site_and_width(choices, rows)
    return sums, sums / np.array(sizes)


def curvature_table(
    method: str, sites: Sequence[str], widths: Sequence[int], traces: Sequence[Trace], errors: Sequence[NDArray[np.float64]]
) -> SensitivityTable:
    """Make the table: half the trace times the squared error, averaged over mixtures.

    Args:
        method: `curvature` or `average-curvature`.
        sites: names.
        widths: candidate widths, rising.
        traces: one for each site, over the same mixtures in the same order as `errors`.
        errors: for each mixture the sums of `squared_errors`, or their means for `average-curvature`.

    Returns:
        The table. Its standard error is taken over mixtures, which includes the error of the probes. For a single mixture, it is
        the error of the probes alone.
    """
    by_mixture = np.stack([trace.by_mixture for trace in traces], axis=1)
    stacked = np.stack(errors)
    table = over_mixtures(method, sites, widths, 0.5 * by_mixture[:, :, None] * stacked)
    if len(errors) > 1:
        return table
    probe_error = np.array([[trace.probe_error] for trace in traces])
    return replace(table, standard_error=0.5 * probe_error * stacked[0])


def _visit(
    base: PreparedBase, mixture: AnalysedMixture, sites: Sequence[str], rule: ProbeRule, visit: int
) -> dict[str, NDArray[np.float64]]:
    """Draw `PROBES_PER_VISIT` samples of the trace for one mixture, by site."""
    seed = int(generator("hutchinson", rule.seed, mixture.name, visit).integers(2**62))
    random = torch.Generator().manual_seed(seed)
    return trace_samples(base, mixture, sites, draw_probes(mixture.target, rule.probe, PROBES_PER_VISIT, random))


def draw_probes(x: Tensor, probe: Probe, count: int, random: torch.Generator) -> Tensor:
    """Draw independent values of mean 0 and variance 1, [count, samples], for `x` [..., samples], alike on every device."""
    shape = count, x.shape[-1]
    if probe == "gaussian":
        return torch.randn(shape, generator=random, dtype=x.dtype).to(x.device)
    return torch.randint(0, 2, shape, generator=random).mul_(2).sub_(1).to(x)
