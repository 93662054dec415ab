"""The relaxed network, against the scorer's network and finite differences."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from hwsearch.network.run import run
from hwsearch.search.exact.problem import AllocationProblem
from hwsearch.search.nas.network import RelaxedNetwork, make_options
from hwsearch.search.nas.relaxation import relaxed_choice
from hwsearch.separator.allocation import ACTIVATION_WIDTHS, WEIGHT_WIDTHS, is_weight
from hwsearch.separator.fast import FastNetwork
from tests.search.nas.small import POOL, problem_of
from tests.separator.small import KINDS, RELU, all_sites, allocations
from tests.training.graphs import FEATURES as GRAPH_FEATURES
from tests.training.graphs import cycled, graph_base
from tests.training.pools import small_base

FEATURES = POOL.batch((0, 1), small_base().separator).analysis.normalised.transpose(0, 1)


def full_problem(config):
    """Every site free at every width it can take."""
    widths = tuple((site, WEIGHT_WIDTHS if is_weight(site) else ACTIVATION_WIDTHS) for site in all_sites(config))
    return AllocationProblem(widths, np.zeros((len(widths), len(WEIGHT_WIDTHS))), ())


OPTIONS = {name: make_options(small_base(config), full_problem(config)) for name, config in KINDS.items()}


def logits_of(problem, allocation):
    """Logits that prefer one allocation."""
    logits = torch.zeros(problem.option_valid.shape).masked_fill(~torch.from_numpy(problem.option_valid), -torch.inf)
    for row, (site, widths) in enumerate(problem.widths):
        logits[row, widths.index(allocation.by_site[site])] = 1.0
    return logits


def row_of(problem, site):
    return int(problem.choice_of[problem.sites.index(site)])


def shares_of(problem, site, of_site):
    """The only option of every other choice, and a mixture at one site."""
    shares = torch.from_numpy(problem.option_valid).float()
    shares[row_of(problem, site)] = torch.tensor(of_site)
    return shares


def even_shares(problem):
    return torch.from_numpy(problem.option_valid / problem.option_valid.sum(axis=1, keepdims=True)).float()


def outputs(base, network, features, shares, allocation):
    """Of the relaxed network, and of the scorer's network at an allocation."""
    found = network.mask(features.transpose(0, 1), shares).detach().transpose(0, 1)
    return found, FastNetwork(base.graph, base.calibration, base.quantization).mask_function(allocation)(features)


def check_same(found, wanted):
    """Sums in another order may round a value to the next step of its grid, rarely."""
    far = (found - wanted).abs() > 1e-4 * wanted.abs().max()
    assert float(far.float().mean()) < 0.02


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("train_weights", [False, True])
def test_a_cold_choice_is_the_network_of_its_allocation(kind, train_weights):
    options = OPTIONS[kind]
    network = RelaxedNetwork(options, train_weights=train_weights)

    @settings(deadline=None, max_examples=8)
    @given(allocation=allocations(KINDS[kind]))
    def check(allocation):
        shares, _ = relaxed_choice(logits_of(options.problem, allocation), 1e-3, "softmax", torch.Generator())
        assert set(shares.flatten().tolist()) == {0.0, 1.0}
        check_same(*outputs(options.base, network, FEATURES.transpose(0, 1), shares, allocation))

    check()


def test_a_cold_choice_on_a_graph_that_is_no_tcn_is_the_network_of_its_allocation():
    """Norms, slopes per channel, a stride and back, a concatenation and products; weights of a group share their scales."""
    base = graph_base()
    widths = dict.fromkeys(base.sites.weights, (2, 4, 32)) | dict.fromkeys(base.sites.activations, (4, 8, 32))
    problem = AllocationProblem(tuple(widths.items()), np.zeros((len(widths), 3)), ())
    network = RelaxedNetwork(make_options(base, problem))
    for weights, activations in (((2, 4, 32), (8, 32)), ((4, 32, 2), (32, 4, 8)), ((32, 2), (8,))):
        allocation = cycled(base, weights, activations)
        shares = (logits_of(problem, allocation) == 1.0).float()
        check_same(*outputs(base, network, GRAPH_FEATURES, shares, allocation))


def test_weights_in_a_mixture_are_the_mean_of_their_versions():
    """At half 2 and half 8 bits, against the network with the mean of the two weights."""
    site = "blocks.0.expand.weight"
    options = make_options(small_base(), problem_of([site], widths=(2, 8)))
    shares = shares_of(options.problem, site, [0.5, 0.5])
    graph = options.base.graph
    weights = {f"{name}.weight": weights.mean(dim=0) for name, (weights, _) in options.layers.items()}
    mixed = replace(graph, parameters={**graph.parameters, **weights})
    (wanted,) = run(mixed, {"features": FEATURES.transpose(0, 1)})
    np.testing.assert_allclose(RelaxedNetwork(options).mask(FEATURES, shares).transpose(0, 1), wanted, rtol=1e-3, atol=1e-4)


def test_gradients_of_weight_shares_are_those_of_finite_differences():
    """Activations in floating point, so that the network is smooth between its kinks."""
    sites = ["blocks.0.expand.weight", "blocks.1.depthwise.weight", "mask_head.weight"]
    options = make_options(small_base(), problem_of(sites))
    network = RelaxedNetwork(options)
    shares = even_shares(options.problem).requires_grad_()
    probe = torch.randn(network.mask(FEATURES, shares).shape, generator=torch.Generator().manual_seed(5))
    (network.mask(FEATURES, shares) * probe).sum().backward()
    for site in sites:
        row = row_of(options.problem, site)
        for column in range(3):
            ends = []
            for step in (-1e-2, 1e-2):
                moved = shares.detach().clone()
                moved[row, column] += step
                ends.append(float((network.mask(FEATURES, moved).double() * probe).sum()))
            slope = (ends[1] - ends[0]) / 2e-2
            assert float(shares.grad[row, column]) == pytest.approx(slope, rel=0.05, abs=0.05)


def test_activations_pass_gradients_where_nothing_is_clipped():
    """With one 4-bit activation before the head, the share of its 4-bit version moves the output by the difference of the two."""
    site = "blocks.1.add.output"
    options = make_options(small_base(), problem_of([site], widths=(4, 8)))
    network = RelaxedNetwork(options)
    row = row_of(options.problem, site)
    shares = shares_of(options.problem, site, [0.25, 0.75]).requires_grad_()
    features = FEATURES.clone().requires_grad_()
    total = network.mask(features, shares).sum()
    total.backward()
    alone = [shares_of(options.problem, site, share) for share in ([1.0, 0.0], [0.0, 1.0])]
    only = [float(network.mask(FEATURES, share).sum()) for share in alone]
    assert float(total.detach()) == pytest.approx(0.25 * only[0] + 0.75 * only[1], rel=1e-3, abs=1e-2)
    assert float(shares.grad[row, 0] - shares.grad[row, 1]) == pytest.approx(only[0] - only[1], rel=1e-3, abs=1e-2)
    assert float(features.grad.abs().max()) > 0


def test_trained_weights_have_the_gradient_of_the_mixture_and_the_base_stays():
    site = "blocks.0.expand.weight"
    options = make_options(small_base(), problem_of([site], widths=(2, 8)))
    graph = options.base.graph
    before = graph.parameters[site].clone()
    network = RelaxedNetwork(options, train_weights=True)
    network.mask(FEATURES, even_shares(options.problem)).square().sum().backward()
    leaves = {f"{name}.weight": weights.mean(dim=0).requires_grad_() for name, (weights, _) in options.layers.items()}
    (wanted,) = run(replace(graph, parameters={**graph.parameters, **leaves}), {"features": FEATURES.transpose(0, 1)})
    wanted.square().sum().backward()
    for name, (weight, bias) in network.masters.items():
        gradient = leaves[f"{name}.weight"].grad
        largest = float(gradient.abs().max())
        np.testing.assert_allclose(weight.grad, gradient, rtol=1e-2, atol=1e-3 * largest)
        assert float(bias.grad.abs().max()) > 0
    with torch.no_grad():
        network.masters["blocks.0.expand"][0].zero_()
    assert torch.equal(graph.parameters[site], before)


def test_sites_of_a_group_share_their_mixture():
    group = ("blocks.0.expand.weight", "blocks.1.expand.weight")
    options = make_options(small_base(), problem_of(group, groups=(group,)))
    problem = options.problem
    assert problem.option_valid.sum() == len(all_sites(RELU)) - 2 + 3
    shares = shares_of(problem, group[0], [1.0, 0.0, 0.0])
    allocation = problem.allocation(problem.expand(np.zeros((1, len(problem.members)), np.int8))[0])
    assert [allocation.by_site[site] for site in group] == [2, 2]
    found, wanted = outputs(options.base, RelaxedNetwork(options), FEATURES.transpose(0, 1), shares, allocation)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
