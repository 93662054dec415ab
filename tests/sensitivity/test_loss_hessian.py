"""The closed form of the loss's second derivative against automatic differentiation of the loss itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.functional import hessian

from hwsearch.sensitivity.loss_hessian import LossHessian, loss_hessian
from hwsearch.training.loss import si_snr


def dense(found: LossHessian, samples: int) -> torch.Tensor:
    projection = found.project(torch.eye(samples, dtype=torch.float64))
    matrix = found.spread * projection @ projection
    for weight, direction in found.directions:
        matrix = matrix + weight * torch.outer(direction, direction)
    return matrix


def check(estimate: torch.Tensor, target: torch.Tensor) -> None:
    wanted = hessian(lambda e: -si_snr(e, target), estimate)
    torch.testing.assert_close(
        dense(loss_hessian(estimate, target), len(target)), wanted, rtol=1e-7, atol=1e-9 * wanted.abs().max()
    )


@given(st.integers(0, 2**31), st.integers(3, 12), st.floats(-30, 30), st.floats(-2, 2))
@settings(deadline=None, max_examples=50)
def test_it_is_the_derivative_of_the_gradient(seed: int, samples: int, snr_db: float, offset: float) -> None:
    """From bad estimates to good ones, with an offset, which the loss does not see."""
    target, noise = torch.randn(2, samples, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    check(0.7 * target + 10 ** (-snr_db / 20) * noise + offset, target + offset / 2)


@pytest.mark.parametrize("scale", [1e-3, 1e-4])
def test_it_holds_where_the_floors_of_the_loss_count(scale: float) -> None:
    """A target so soft that the absolute floor is a share of its energy, and an estimate beyond the relative floor."""
    target, noise = torch.randn(2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    check(scale * (target + 0.3 * noise), scale * target)
    check(target + 1e-4 * noise, target)


def test_moving_along_mean_or_scale_changes_nothing() -> None:
    """The loss is blind to both, so that the Hessian has no curvature along them but that of a slope in another direction."""
    target, noise = torch.randn(2, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    estimate = target + 0.5 * noise
    matrix = dense(loss_hessian(estimate, target), 10)
    constant = torch.ones(10, dtype=torch.float64)
    centred = estimate - estimate.mean()
    assert float((matrix @ constant).norm()) < 1e-9 * float(matrix.norm())
    assert abs(float(centred @ matrix @ centred)) < 1e-6 * float(matrix.norm())
