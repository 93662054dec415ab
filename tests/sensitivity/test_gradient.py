"""Gradients against finite differences, and the score against the loss changes it stands for."""

import numpy as np
import pytest
import torch

from hwsearch.errors import UserError
from hwsearch.sensitivity.choices import changed_tensors
from hwsearch.sensitivity.gradient import gradient_scores, site_gradients
from hwsearch.sensitivity.mixture import separation_loss
from hwsearch.separator.allocation import is_weight
from tests.sensitivity.other_network import other_base
from tests.sensitivity.small import (
    WIDTHS,
    broken_base,
    double_base,
    double_choices,
    double_mixture,
    in_double,
    loss_with,
    small_mixture,
)
from tests.separator.small import KINDS, RELU, all_sites

STEP = 1e-6


@pytest.mark.parametrize("kind", [*KINDS, "other"])
def test_every_gradient_is_the_slope_of_the_loss(kind):
    """In one random direction per site, by central differences."""
    base = in_double(other_base()) if kind == "other" else double_base(KINDS[kind])
    mixture = double_mixture(base, samples=300 if kind == "other" else 1000)
    gradients = site_gradients(base, mixture)
    assert set(gradients) == {*base.sites.weights, *base.sites.activations}
    for site, gradient in gradients.items():
        x = base.graph.parameters[site] if is_weight(site) else mixture.tensors[site]
        direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        up, down = (float(loss_with(base, mixture, site, x + sign * STEP * direction)) for sign in (1, -1))
        assert float((gradient * direction).sum()) == pytest.approx((up - down) / (2 * STEP), rel=1e-4, abs=1e-6), site


@pytest.mark.parametrize("site", ["blocks.1.expand.weight", "input_proj.output", "blocks.1.project.output"])
def test_the_score_is_the_mean_square_of_small_loss_changes_with_random_signs(site):
    base = double_base()
    mixture = double_mixture(base)
    choices = double_choices(base, (site,), (4, 8))
    start, changed = changed_tensors(choices, site, choices.of(site), mixture.tensors)
    error = changed[1:] - mixture.tensors[start]
    random = torch.Generator().manual_seed(0)
    small = 1e-3
    squares = []
    for _ in range(600):
        signs = torch.randint(0, 2, error.shape, generator=random) * 2.0 - 1.0
        up, down = (
            float(
                separation_loss(
                    base.separator,
                    choices.continuation.continue_from(
                        start, mixture.tensors[start] + sign * small * signs * error, mixture.tensors
                    ),
                    mixture,
                )
            )
            for sign in (1, -1)
        )
        squares.append(((up - down) / (2 * small)) ** 2)
    score = gradient_scores(choices, mixture)[0, 1]
    standard_error = np.std(squares, ddof=1) / np.sqrt(len(squares))
    assert abs(np.mean(squares) - score) < 4 * standard_error
    assert standard_error < 0.1 * score


def test_one_pass_scores_every_site_and_width():
    base = double_base()
    choices = double_choices(base, all_sites(RELU), WIDTHS)
    scores = gradient_scores(choices, double_mixture(base))
    assert scores.shape == (len(choices.sites), len(WIDTHS))
    widths_taken = [len(choices.of(site)) for site in choices.sites]
    assert np.isfinite(scores).sum(axis=1).tolist() == widths_taken
    np.testing.assert_allclose(scores[:, -1], 0.0, atol=1e-12)
    assert (scores[:, 1] > scores[:, 2]).all()


def test_a_loss_that_is_no_number_is_a_clear_error():
    base = broken_base()
    with pytest.raises(
        UserError, match=r"^mixture 'noise-3': the loss of the full-precision network is nan; wanted a finite number"
    ):
        site_gradients(base, small_mixture(base))
