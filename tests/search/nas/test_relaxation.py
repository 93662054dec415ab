"""Choices made continuous."""

import numpy as np
import pytest
import torch
from scipy.special import softmax

from hwsearch.search.nas.relaxation import relaxed_choice, start_logits, temperature_at
from tests.search.nas.small import problem_of


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


LOGITS = torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.0, -torch.inf], [0.3, -torch.inf, -torch.inf]])


def test_the_temperature_falls_by_the_same_factor_at_every_step():
    temperatures = [temperature_at(step, 5, (2.0, 0.125)) for step in range(5)]
    assert temperatures == pytest.approx([2.0, 1.0, 0.5, 0.25, 0.125])
    assert temperature_at(0, 1, (2.0, 0.125)) == 2.0


def test_the_start_rises_from_the_narrowest_to_the_widest():
    problem = problem_of(["blocks.0.expand.weight"])
    logits = start_logits(problem)
    assert torch.isinf(logits).numpy().tolist() == (~problem.option_valid).tolist()
    np.testing.assert_allclose(logits[problem.choice_of[problem.sites.index("blocks.0.expand.weight")]], [-2.0, -1.0, 0.0])


@pytest.mark.parametrize("temperature", [3.0, 1.0, 0.1])
def test_softmax_is_that_of_scipy(temperature):
    shares, probabilities = relaxed_choice(LOGITS, temperature, "softmax", generator())
    np.testing.assert_allclose(shares, softmax(LOGITS.numpy() / temperature, axis=1), rtol=1e-5)
    assert torch.equal(shares, probabilities)


@pytest.mark.parametrize("kind", ["softmax", "gumbel"])
def test_rows_sum_to_one_and_missing_options_have_no_share_and_no_gradient(kind):
    logits = LOGITS.clone().requires_grad_()
    shares, probabilities = relaxed_choice(logits, 0.1, kind, generator())
    for rows in (shares, probabilities):
        np.testing.assert_allclose(rows.detach().sum(dim=1), 1.0, rtol=1e-6)
        assert (rows[torch.isinf(LOGITS)] == 0).all()
    (shares * torch.arange(9.0).reshape(3, 3)).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[torch.isinf(LOGITS)] == 0).all()


def test_cold_gumbel_samples_are_single_options_as_often_as_they_are_likely():
    noise = generator(1)
    draws = torch.stack([relaxed_choice(LOGITS, 1e-3, "gumbel", noise)[0] for _ in range(4000)])
    assert float((draws.max(dim=2).values > 0.99).float().mean()) > 0.99
    # Four standard errors of a share of 4000 draws.
    np.testing.assert_allclose(draws.mean(dim=0), softmax(LOGITS.numpy(), axis=1), atol=4 * 0.5 / 4000**0.5)
