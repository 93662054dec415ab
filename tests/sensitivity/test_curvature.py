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
    Probe,
    ProbeRule,
    Trace,
    curvature_table,
    draw_probes,
    fisher_traces,
    probe_traces,
    squared_errors,
    trace_samples,
)
from hwsearch.sensitivity.gradient import mask_with_graph, site_gradients
from hwsearch.sensitivity.mixture import separation_loss
from hwsearch.sensitivity.prefix import Continuation
from hwsearch.separator.quantizers import fake_quantize
from tests.sensitivity.small import (
    WIDTHS,
    broken_base,
    candidates,
    double_base,
    double_mixture,
    run_sites,
    small_mixture,
    with_parameter,
)
from tests.separator.small import KINDS, RELU, all_sites

LONG = ProbeRule(relative_error=0.0, max_probes=200)


def exact_weight_trace(base, mixture, layer):
    def loss(weight):
        network = with_parameter(base.graph, f"{layer}.weight", weight)
        return separation_loss(base.separator, run_sites(network, mixture.analysis.normalised), mixture)

    weight = base.graph.parameters[f"{layer}.weight"]
    return float(hessian(loss, weight).reshape(weight.numel(), -1).trace())


def exact_activation_trace(base, mixture, site):
    def loss(x):
        mask = run_sites(base.graph, mixture.analysis.normalised, lambda at, y: x if at == site else y)
        return separation_loss(base.separator, mask, mixture)

    x = mixture.tensors[site]
    return float(hessian(loss, x).reshape(x.numel(), -1).trace())


def hessian_vector_samples(base, mixture, site, count, random):
    """z' H z at the site by double backward, without any of the closed forms."""
    mask, variables = mask_with_graph(base, mixture)
    x = variables[site]
    (gradient,) = torch.autograd.grad(separation_loss(base.separator, mask, mixture), x, create_graph=True)
    samples = []
    for z in draw_probes(x.reshape(1, -1), Probe.RADEMACHER, count, random):
        (product,) = torch.autograd.grad(gradient, x, z.reshape(x.shape), retain_graph=True)
        samples.append(float((z.reshape(x.shape) * product).sum()))
    return np.array(samples)


def test_probes_at_every_sample_of_the_estimate_in_turn_give_the_exact_trace():
    """Tr(P J J' P) is the sum over the unit vectors: nothing is random but the rounding."""
    base = double_base()
    mixture = double_mixture(base, samples=300)
    sites = {
        "blocks.0.depthwise.weight": exact_weight_trace(base, mixture, "blocks.0.depthwise"),
        "mask_head.weight": exact_weight_trace(base, mixture, "mask_head"),
        "input_proj.output": exact_activation_trace(base, mixture, "input_proj.output"),
        "blocks.1.depthwise.output": exact_activation_trace(base, mixture, "blocks.1.depthwise.output"),
        "mask_head.output": exact_activation_trace(base, mixture, "mask_head.output"),
    }
    units = torch.eye(mixture.target.shape[-1], dtype=torch.float64)
    samples = trace_samples(base, mixture, list(sites), units)
    nothing = trace_samples(base, mixture, list(sites), torch.zeros_like(units[:1]))  # the exact part alone
    for site, exact in sites.items():
        assert (samples[site] - nothing[site]).sum() + nothing[site][0] == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_probes_at_the_estimate_have_the_mean_of_probes_at_the_site(kind):
    base = double_base(KINDS[kind])
    mixture = double_mixture(base)
    for site in ("input_proj.weight", "blocks.1.project.weight", "blocks.1.expand.output"):
        there = hessian_vector_samples(base, mixture, site, 200, torch.Generator().manual_seed(0))
        here = probe_traces(base, [mixture], [site], LONG)[site]
        error = math.hypot(there.std(ddof=1) / math.sqrt(200), here.probe_error)
        assert abs(there.mean() - here.value) < 4 * error
        assert error < 0.2 * here.value


@pytest.mark.parametrize("probe", Probe)
def test_probes_have_the_mean_and_variance_of_theory(probe):
    """Variance of z' M z: 2 (|M|^2 - sum of squared diagonal) for Rademacher, 2 |M|^2 for Gaussian probes."""
    half = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = half + half.T
    z = draw_probes(matrix[:1], probe, 4000, torch.Generator().manual_seed(1))
    samples = ((z @ matrix) * z).sum(dim=1).numpy()
    off = matrix.square().sum() - (matrix.diagonal().square().sum() if probe is Probe.RADEMACHER else 0.0)
    assert abs(samples.mean() - float(matrix.trace())) < 4 * math.sqrt(2 * off / 4000)
    assert samples.var() == pytest.approx(2 * float(off), rel=0.15)


@pytest.mark.parametrize(("kind", "probe"), [*((kind, Probe.RADEMACHER) for kind in KINDS), ("relu", Probe.GAUSSIAN)])
def test_the_trace_of_a_weight_site_is_that_of_the_exact_hessian(kind, probe):
    base = double_base(KINDS[kind])
    mixtures = [double_mixture(base, seed) for seed in (3, 4)]
    layers = ("blocks.0.depthwise", "blocks.1.expand")
    traces = probe_traces(base, mixtures, [f"{layer}.weight" for layer in layers], ProbeRule(probe, 0.0, 100))
    for layer in layers:
        trace = traces[f"{layer}.weight"]
        exact = [exact_weight_trace(base, mixture, layer) for mixture in mixtures]
        assert abs(trace.value - np.mean(exact)) < 4 * trace.probe_error
        assert trace.probe_error < 0.2 * abs(trace.value)


@pytest.mark.parametrize("site", ["input_proj.output", "blocks.1.depthwise.output", "mask_head.output"])
def test_the_trace_of_an_activation_site_is_that_of_the_exact_hessian(site):
    base = double_base()
    mixture = double_mixture(base, samples=400)
    trace = probe_traces(base, [mixture], [site], LONG)[site]
    assert abs(trace.value - exact_activation_trace(base, mixture, site)) < 4 * trace.probe_error
    assert trace.probe_error < 0.1 * abs(trace.value)


def test_the_average_curvature_is_the_loss_of_small_random_errors():
    """Second differences of the loss, without any derivative: (L(d) + L(-d)) / 2 - L = d' H d / 2."""
    base = double_base()
    mixture = double_mixture(base)
    site = "blocks.0.add.output"
    choices = make_choices(base, candidates((site,), (8,)))
    trace = probe_traces(base, [mixture], [site], LONG)[site]
    table = curvature_table(
        choices.sites, choices.widths, {site: trace}, [squared_errors(choices, mixture, average=True)], "average-curvature"
    )
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


def test_the_fisher_trace_is_the_squared_gradient_of_each_mixture():
    base = double_base()
    mixtures = [double_mixture(base, seed) for seed in (3, 4)]
    traces = fisher_traces(base, mixtures, ("mask_head.weight", "input_proj.output"))
    for site, trace in traces.items():
        wanted = [float(site_gradients(base, mixture)[site].norm() ** 2) for mixture in mixtures]
        assert trace.by_mixture.tolist() == pytest.approx(wanted)


def test_the_table_is_half_trace_times_squared_error_over_mixtures():
    base = double_base()
    mixtures = [double_mixture(base, seed) for seed in (3, 4, 5)]
    choices = make_choices(base, candidates(("mask_head.weight", "features"), WIDTHS))
    traces = {site: Trace(np.random.default_rng(0).normal(3.0, 1.0, size=(3, 6))) for site in choices.sites}
    for method, average in (("curvature", False), ("average-curvature", True)):
        errors = [squared_errors(choices, mixture, average=average) for mixture in mixtures]
        table = curvature_table(choices.sites, choices.widths, traces, errors, method)
        weight = base.graph.parameters["mask_head.weight"]
        grid = base.calibration.grids["features"][4]
        for row, tensors in enumerate(([weight] * 3, [mixture.tensors["features"] for mixture in mixtures])):
            quantized = [choices.weight("mask_head.weight", 4) if row == 0 else fake_quantize(x, grid) for x in tensors]
            squares = [((q - x) ** 2).numpy() for q, x in zip(quantized, tensors, strict=True)]
            by_mixture = [
                0.5 * traces[choices.sites[row]].samples[m].mean() * (square.mean() if average else square.sum())
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
    error = squared_errors(choices, mixture, average=True)
    table = curvature_table(choices.sites, choices.widths, {"mask_head.weight": trace}, [error], "average-curvature")
    assert table.standard_error[0, 0] == pytest.approx(0.5 * error[0, 0] * trace.probe_error)


def test_a_loss_that_is_no_number_is_a_clear_error():
    base = broken_base()
    mixture = small_mixture(base)
    for site in ("mask_head.weight", "blocks.0.add.output"):
        with pytest.raises(UserError, match="loss of the full-precision network is nan"):
            probe_traces(base, [mixture], [site], ProbeRule())
