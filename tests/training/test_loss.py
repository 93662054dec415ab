import math
from itertools import pairwise, permutations

import fast_bss_eval
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.metrics import si_snr as metric
from hwsearch.training.loss import half_cosine, ordered, si_snr


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 9999), level=st.floats(0.01, 3.0))
def test_agrees_with_fast_bss_eval(seed: int, level: float) -> None:
    rng = np.random.default_rng(seed)
    target = rng.standard_normal((2, 800))
    estimate = target + level * rng.standard_normal((2, 800)) + 0.3
    expected = fast_bss_eval.si_sdr(target[:, None], estimate[:, None], zero_mean=True)[:, 0]
    found = si_snr(torch.from_numpy(estimate), torch.from_numpy(target))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)


def test_orthogonal_noise_gives_the_power_ratio() -> None:
    time = torch.arange(8000) / 8000 * 2 * math.pi
    target, noise = torch.sin(50 * time), torch.cos(70 * time)
    assert float(si_snr(3 * (target + 0.1 * noise), target)) == pytest.approx(20.0, abs=1e-3)


@pytest.mark.parametrize(("estimate", "target"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (1.0, 1.0)])
def test_silence_and_perfection_stay_finite_with_finite_gradients(estimate: float, target: float) -> None:
    wave = torch.randn(1, 400, generator=torch.Generator().manual_seed(0))
    x = (estimate * wave).requires_grad_()
    loss = si_snr(x, target * wave).sum()
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert bool(torch.isfinite(x.grad).all())


@pytest.mark.parametrize("speakers", [2, 3])
def test_the_best_order_is_that_of_brute_force(speakers: int) -> None:
    random = torch.Generator().manual_seed(speakers)
    references = torch.randn(6, speakers, 400, generator=random)
    shuffled = torch.stack([each[torch.randperm(speakers, generator=random)] for each in references])
    estimates = shuffled + 0.8 * torch.randn(shuffled.shape, generator=random)
    for found, wanted, estimate in zip(ordered(references, estimates), references, estimates, strict=True):
        scores = {order: np.mean(metric.si_snr(estimate, wanted[list(order)])) for order in permutations(range(speakers))}
        assert torch.equal(found, wanted[list(max(scores, key=scores.__getitem__))])


def test_one_speaker_stays_as_it_is() -> None:
    references = torch.randn(3, 50)
    assert ordered(references, torch.randn(3, 50)) is references


def test_the_learning_rate_falls_from_the_first_to_the_last() -> None:
    rates = [half_cosine(step / 50, 1e-3, 2e-5) for step in range(51)]
    assert (rates[0], rates[25], rates[-1]) == (1e-3, pytest.approx((1e-3 + 2e-5) / 2), pytest.approx(2e-5))
    assert all(later < earlier for earlier, later in pairwise(rates))
