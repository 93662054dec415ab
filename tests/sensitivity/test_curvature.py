"""Hutchinson's estimate against exact Hessians, and the table against its formula."""

import math

import numpy as np
import pytest
import torch
from torch.autograd.functional import hessian

from hwsearch.errors import UserError
from hwsearch.sensitivity.choices import make_choices
from hwsearch.sensitivity.curvature import (
    MIN_SAMPLES,
    ProbeRule,
    Trace,
    curvature_table,
    draw_probes,
    probe_traces,
    squared_errors,
    trace_samples,
)
from hwsearch.sensitivity.mixture import separation_loss
from hwsearch.sensitivity.prefix import Continuation
from hwsearch.separator.allocation import is_weight
from hwsearch.separator.quantizers import fake_quantize
from tests.sensitivity.small import (
    WIDTHS,
    broken_base,
    candidates,
    double_base,
    double_mixture,
    loss_with,
    small_mixture,
)
from tests.separator.small import KINDS, RELU, all_sites

LONG = ProbeRule(relative_error=0.0, max_probes=200)


def exact_trace(base, mixture, site):
    x = base.graph.parameters[site] if is_weight(site) else mixture.tensors[site]
    return float(hessian(lambda value: loss_with(base, mixture, site, value), x).reshape(x.numel(), -1).trace())


@pytest.mark.parametrize("kind", KINDS)
def test_probes_at_every_sample_of_the_estimate_in_turn_give_the_exact_trace(kind):
    """Tr(P J J' P) is the sum over the unit vectors: nothing is random but the rounding."""
    base = double_base(KINDS[kind])
    mixture = double_mixture(base, samples=300)
    weights = ("blocks.0.depthwise.weight", "blocks.1.project.weight", "mask_head.weight")
    sites = (*weights, "input_proj.output", "blocks.1.depthwise.output", "mask_head.output")
    units = torch.eye(mixture.target.shape[-1], dtype=torch.float64)
    samples = trace_samples(base, mixture, sites, units)
    nothing = trace_samples(base, mixture, sites, torch.zeros_like(units[:1]))  # the exact part alone
    for site in sites if kind == "relu" else sites[1:-2:2]:
        exact = exact_trace(base, mixture, site)
        assert (samples[site] - nothing[site]).sum() + nothing[site][0] == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_probes_have_the_mean_and_variance_of_theory(probe):
    """Variance of z' M z: 2 (|M|^2 - sum of squared diagonal) for Rademacher, 2 |M|^2 for Gaussian probes."""
    half = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = half + half.T
    z = draw_probes(matrix[:1], probe, 4000, torch.Generator().manual_seed(1))
    samples = ((z @ matrix) * z).sum(dim=1).numpy()
    off = matrix.square().sum() - (matrix.diagonal().square().sum() if probe == "rademacher" else 0.0)
    assert abs(samples.mean() - float(matrix.trace())) < 4 * math.sqrt(2 * off / 4000)
    assert samples.var() == pytest.approx(2 * float(off), rel=0.15)


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_the_probed_trace_is_that_of_the_exact_hessian(probe):
    base = double_base()
    mixtures = [double_mixture(base, seed) for seed in (3, 4)]
    sites = ("blocks.0.depthwise.weight", "blocks.1.expand.weight")
    for site, trace in probe_traces(base, mixtures, sites, ProbeRule(probe, 0.0, 100)).items():
        exact = [exact_trace(base, mixture, site) for mixture in mixtures]
        assert abs(trace.value - np.mean(exact)) < 4 * trace.probe_error
        assert trace.probe_error < 0.2 * abs(trace.value)


def test_the_average_curvature_is_the_loss_of_small_random_errors():
    """Second differences of the loss, without any derivative: (L(d) + L(-d)) / 2 - L = d' H d / 2."""
    base = double_base()
    mixture = double_mixture(base)
    site = "blocks.0.add.output"
    choices = make_choices(base, candidates((site,), (8,)))
    trace = probe_traces(base, [mixture], [site], LONG)[site]
    _, means = squared_errors(choices, mixture)
    table = curvature_table("average-curvature", choices.sites, choices.widths, [trace], [means])
    x = mixture.tensors[site]
    error = fake_quantize(x, base.calibration.grids[site][8]) - x
    amplitude = 0.01 * float(error.square().mean().sqrt())  # so small that no ReLU changes sides
    network, random = Continuation(base.graph, base.sites), torch.Generator().manual_seed(2)
    increases = []
    for _ in range(400):
        d = amplitude * (torch.randint(0, 2, x.shape, generator=random) * 2.0 - 1.0)
        losses = [
            float(separation_loss(base.separator, network.continue_from(site, x + s * d, mixture.tensors), mixture))
            for s in (1, 0, -1)
        ]
        increases.append((losses[0] + losses[2]) / 2 - losses[1])
    found = np.array(increases) * 1e4
    standard_error = math.hypot(found.std(ddof=1) / 20, table.standard_error[0, 0])
    assert abs(table.value[0, 0] - found.mean()) < 4 * standard_error
    assert standard_error < 0.1 * table.value[0, 0]


def test_probing_stops_when_the_trace_is_known_well_enough():
    base = double_base()
    mixtures = [double_mixture(base, seed) for seed in (3, 4)]
    site = "blocks.0.expand.weight"

    def trace(**rule):
        return probe_traces(base, mixtures, [site], ProbeRule(**rule))[site]

    loose, tight = (trace(relative_error=bound, max_probes=400) for bound in (1.0, 0.05))
    assert loose.samples.size == MIN_SAMPLES
    assert loose.samples.shape[1] < tight.samples.shape[1] < 400
    assert tight.probe_error <= 0.05 * tight.value
    capped = trace(relative_error=0.0, max_probes=12)
    assert capped.samples.shape == (2, 12)
    # The same seed begins with the same probes, however many follow; another seed does not.
    np.testing.assert_array_equal(tight.samples[:, :12], capped.samples)
    other = trace(relative_error=0.0, max_probes=12, seed=1)
    assert (other.samples != capped.samples).all()


def test_a_trace_does_not_depend_on_the_sites_that_are_probed_with_it():
    base, rule = double_base(), ProbeRule(relative_error=0.1, max_probes=100)
    mixtures = [double_mixture(base, seed) for seed in (3, 4)]
    together = probe_traces(base, mixtures, all_sites(RELU), rule)
    assert tuple(sorted(together)) == tuple(sorted(all_sites(RELU)))
    assert len({trace.samples.shape[1] for trace in together.values()}) > 1
    for site in all_sites(RELU)[::4]:
        np.testing.assert_array_equal(probe_traces(base, mixtures, [site], rule)[site].samples, together[site].samples)


def test_the_probe_error_is_that_of_a_mean_of_independent_means():
    samples = np.random.default_rng(0).normal([[1.0], [5.0]], [[0.1], [2.0]], size=(2, 50))
    trace = Trace(samples)
    assert trace.value == pytest.approx(samples.mean())
    separate = [row.std(ddof=1) / math.sqrt(50) for row in samples]
    assert trace.probe_error == pytest.approx(math.hypot(*separate) / 2)
    assert math.isnan(Trace(samples[:, :1]).probe_error)


def test_the_table_is_half_trace_times_squared_error_over_mixtures():
    base = double_base()
    mixtures = [double_mixture(base, seed) for seed in (3, 4, 5)]
    choices = make_choices(base, candidates(("mask_head.weight", "features"), WIDTHS))
    traces = [Trace(samples) for samples in np.random.default_rng(0).normal(3.0, 1.0, size=(2, 3, 6))]
    both = zip(*(squared_errors(choices, mixture) for mixture in mixtures), strict=True)
    for average, (method, errors) in enumerate(zip(("curvature", "average-curvature"), both, strict=True)):
        table = curvature_table(method, choices.sites, choices.widths, traces, errors)
        weight = base.graph.parameters["mask_head.weight"]
        grid = base.calibration.grids["features"][4]
        for row, tensors in enumerate(([weight] * 3, [mixture.tensors["features"] for mixture in mixtures])):
            quantized = [choices.weight("mask_head.weight", 4) if row == 0 else fake_quantize(x, grid) for x in tensors]
            squares = [((q - x) ** 2).numpy() for q, x in zip(quantized, tensors, strict=True)]
            by_mixture = [
                0.5 * traces[row].samples[m].mean() * (square.mean() if average else square.sum())
                for m, square in enumerate(squares)
            ]
            assert table.value[row, 1] == pytest.approx(np.mean(by_mixture))
            assert table.standard_error[row, 1] == pytest.approx(np.std(by_mixture, ddof=1) / math.sqrt(3))
        assert (table.value[:, 3] == 0).all()
        assert math.isnan(table.value[1, 0])


def test_with_a_single_mixture_the_standard_error_is_that_of_the_probes():
    base = double_base()
    mixture = double_mixture(base)
    choices = make_choices(base, candidates(("mask_head.weight",), (4,)))
    trace = Trace(np.random.default_rng(0).normal(3.0, 1.0, size=(1, 6)))
    _, error = squared_errors(choices, mixture)
    table = curvature_table("average-curvature", choices.sites, choices.widths, [trace], [error])
    assert table.standard_error[0, 0] == pytest.approx(0.5 * error[0, 0] * trace.probe_error)


def test_a_loss_that_is_no_number_is_a_clear_error():
    base = broken_base()
    mixture = small_mixture(base)
    for site in ("mask_head.weight", "blocks.0.add.output"):
        with pytest.raises(UserError, match="loss of the full-precision network is nan"):
            probe_traces(base, [mixture], [site], ProbeRule())
