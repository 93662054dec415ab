"""Every method on a network with strides, branches, gates and norms, against runs of the whole network by hand."""

import numpy as np
import pytest
import torch
from torch.autograd.functional import hessian, jacobian

from hwsearch.sensitivity.choices import SiteChoices, make_choices
from hwsearch.sensitivity.curvature import trace_samples
from hwsearch.sensitivity.jobs import Kind
from hwsearch.sensitivity.mixture import AnalysedMixture
from hwsearch.sensitivity.one_site import one_site_masks
from hwsearch.sensitivity.work import of_mixture
from hwsearch.separator.allocation import is_weight, weight_limit
from hwsearch.training.loss import si_snr
from tests.sensitivity.other_network import other_base
from tests.sensitivity.small import candidates, double_mixture, in_double, run_sites, small_mixture, with_parameter
from tests.separator.bfloat16 import next_bfloat16

BASE = other_base()
SITES = (*BASE.sites.weights, *BASE.sites.activations)


def with_site_at(choices: SiteChoices, mixture: AnalysedMixture, site: str, bits: int) -> torch.Tensor:
    """The network's output with one site rounded, by the formulas."""
    graph, features = choices.base.graph, mixture.analysis.normalised
    if bits == 32:
        return run_sites(graph, features)
    if is_weight(site):
        weight = graph.parameters[site]
        scale = next_bfloat16(weight.abs().max() / weight_limit(bits))
        return run_sites(with_parameter(graph, site, (weight / scale).round() * scale), features)
    grid = choices.base.calibration.grids[site][bits]

    def rounded(at: str, x: torch.Tensor) -> torch.Tensor:
        if at != site:
            return x
        return (((x / grid.scale).round() + grid.zero_point).clamp(0, 2**bits - 1) - grid.zero_point) * grid.scale

    return run_sites(graph, features, rounded)


def test_sites_are_those_of_a_network_with_branches() -> None:
    assert len(BASE.sites.weights) == 6
    assert "left.output" not in SITES
    assert {"concatenate.output", "norm.output", "multiply.output", "mask.output"} <= set(SITES)
    assert BASE.graph.outputs[0] not in BASE.sites.tensors.values()  # it is cut off a site


def test_masks_are_those_of_whole_runs_with_one_site_rounded() -> None:
    mixture = small_mixture(BASE)
    choices = make_choices(BASE, candidates(SITES, (2, 4, 8, 32)))
    found = dict(one_site_masks(choices, mixture))
    assert tuple(found) == SITES
    for site, masks in found.items():
        for bits, mask in zip(choices.of(site), masks, strict=True):
            wanted = with_site_at(choices, mixture, site, bits)[0]
            torch.testing.assert_close(mask, wanted, rtol=1e-4, atol=1e-4)
            assert bits == 32 or not torch.equal(mask, mixture.output[0]), site


def test_all_that_is_read_off_a_mixture_is_a_number_for_every_site_and_width() -> None:
    mixture = small_mixture(BASE)
    choices = make_choices(BASE, candidates(SITES, (4, 8)))
    walk = (Kind.MEASURED, Kind.OUTPUT_NOISE, Kind.KL, Kind.PAPER_KL)
    for kinds in (walk, (Kind.GRADIENT,), (Kind.FISHER,), (Kind.ERRORS,)):
        for quantities in of_mixture(kinds, choices, mixture).values():
            assert all(np.isfinite(values).all() and values.any() for values in quantities.values())


@pytest.mark.parametrize("site", ["left.weight", "up.weight"])
def test_the_trace_is_that_of_the_gauss_newton_matrix(site: str) -> None:
    """Probes at every sample of the estimate in turn, against the Jacobian by autograd and the loss's Hessian."""
    base = in_double(BASE)
    mixture = double_mixture(base, samples=300)
    samples = mixture.target.shape[-1]

    def estimate(weight: torch.Tensor) -> torch.Tensor:
        mask = run_sites(with_parameter(base.graph, site, weight), mixture.analysis.normalised)
        return base.separator.synthesise(mixture.analysis, mask, samples)[0]

    weight = base.graph.parameters[site]
    slopes = jacobian(estimate, weight).reshape(samples, -1)
    curved = hessian(lambda waveform: -si_snr(waveform[None], mixture.target).sum(), estimate(weight))
    units = torch.eye(samples, dtype=torch.float64)
    found = trace_samples(base, mixture, [site], torch.cat([torch.zeros_like(units[:1]), units]))[site]
    exact_part = found[0]
    assert (found[1:] - exact_part).sum() + exact_part == pytest.approx(float((slopes.T @ curved @ slopes).trace()), rel=1e-9)
