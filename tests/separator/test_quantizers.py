"""Weights and activations land on the grids that the widths promise, where the error is least."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.experiment import QuantizationConfig
from hwsearch.separator.quantizers import (
    BIAS_LIMIT,
    ZERO_TENSOR_SCALE,
    ActivationGrid,
    bias_integers,
    fake_quantize,
    mse_scale,
    quantize_weight,
    stored_scale,
    weight_limit,
    weight_scale,
)

MSE = QuantizationConfig()
MAX = QuantizationConfig(weight_scale_method="max")
WIDTHS = [2, 3, 4, 5, 6, 7, 8, 16]
MSE_TENSOR = QuantizationConfig(weight_scale="per_tensor")


def squared_error(row: np.ndarray, scale: float, limit: int) -> float:
    return float(((np.clip(np.rint(row / scale), -limit, limit) * scale - row) ** 2).sum())


def least_squared_error(row: np.ndarray, limit: int) -> float:
    """The global optimum over all scales: between two scales at which some weight changes its integer, the
    error is a parabola in the scale, whose minimum is known."""
    changes = np.unique(np.abs(row)[:, None] / (np.arange(limit) + 0.5))
    best = np.inf
    for low, high in zip(changes, [*changes[1:], 4 * changes[-1]], strict=True):
        integers = np.clip(np.rint(row / ((low + high) / 2)), -limit, limit)
        energy = (integers**2).sum()
        if energy:
            scale = np.clip((row * integers).sum() / energy, low, high)
            best = min(best, float(((integers * scale - row) ** 2).sum()))
    return best


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("draw", ["normal", "laplace", "uniform", "outlier"])
def test_mse_clipping_finds_the_global_optimum(bits, draw):
    random = np.random.default_rng(bits)
    rows = {
        "normal": random.standard_normal((12, 40)),
        "laplace": random.laplace(size=(12, 40)),
        "uniform": random.uniform(-1, 1, (12, 40)),
        "outlier": random.standard_normal((12, 40)) * np.r_[np.ones(39), 20.0],
    }[draw]
    limit = weight_limit(bits)
    tensor = torch.from_numpy(rows)
    scales = mse_scale(tensor, tensor.abs().amax(dim=1) / limit, limit).numpy()
    found = np.array([squared_error(row, scale, limit) for row, scale in zip(rows, scales, strict=True)])
    least = np.array([least_squared_error(row, limit) for row in rows])
    assert (found >= least * (1 - 1e-9)).all()
    # The more levels, the more optima of nearly the same error; up to four bits none is missed.
    assert (found <= least * (1.0001 if bits <= 4 else 1.04)).all(), found / least
    assert found.sum() <= 1.003 * least.sum()


@given(st.integers(0, 10_000), st.sampled_from(WIDTHS), st.sampled_from([MSE, MAX, MSE_TENSOR]))
@settings(max_examples=60, deadline=None)
def test_integers_are_in_the_narrow_range_and_scales_positive(seed, bits, config):
    weight = torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(seed)) ** 3
    scale = weight_scale(weight, bits, config)
    assert scale.shape == ((6, 1, 1) if config.weight_scale == "per_channel" else (1, 1, 1))
    assert bool((scale > 0).all())
    assert not (scale.numpy().view(np.uint32) & 0xFFFF).any(), "no bfloat16 values"
    integers = quantize_weight(weight, scale, bits).integers
    assert integers.dtype == torch.int32
    assert int(integers.abs().max()) <= 2 ** (bits - 1) - 1


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_more_bits_never_raise_the_error_of_mse_scales(seed):
    weight = torch.randn(4, 10, 1, generator=torch.Generator().manual_seed(seed))
    errors = [
        float((quantize_weight(weight, weight_scale(weight, bits, MSE), bits).value - weight).square().sum())
        for bits in (2, 3, 4, 5, 6, 7, 8)
    ]
    assert all(more <= fewer * 1.001 for fewer, more in pairwise(errors)), errors


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_mse_is_never_worse_than_max(bits):
    weight = torch.randn(16, 20, 3, generator=torch.Generator().manual_seed(bits))
    errors = [
        (quantize_weight(weight, weight_scale(weight, bits, config), bits).value - weight).square().sum(dim=(1, 2))
        for config in (MSE, MAX)
    ]
    assert bool((errors[0] <= errors[1] * (1 + 1e-5)).all())


def test_two_bits_are_ternary():
    weight = torch.randn(4, 50, 1, generator=torch.Generator().manual_seed(0))
    assert set(quantize_weight(weight, weight_scale(weight, 2, MSE), 2).integers.unique().tolist()) == {-1, 0, 1}


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_largest_weight_is_not_clipped_under_max_scales(bits):
    """Nor is it where clipping gains nothing. The scale is the next bfloat16 value, so the step is 1/128 wider at most."""
    weight = torch.randn(200, 30, 1, generator=torch.Generator().manual_seed(bits)) ** 3
    limit, largest = weight_limit(bits), weight.abs().amax(dim=1, keepdim=True)
    for config in (MAX, MSE) if bits > 8 else (MAX,):
        scale = weight_scale(weight, bits, config)
        assert bool((largest <= limit * scale * (1 + 1e-6)).all())
        assert bool((limit * scale < largest * (1 + 2**-7 + 1e-6)).all())
        error = (quantize_weight(weight, scale, bits).value - weight).abs()
        assert bool((error <= 0.5 * scale * (1 + 2**-6)).all())


@given(st.lists(st.floats(2.0**-100, 2.0**100, width=32), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_stored_scales_are_the_nearest_float32_values_with_an_empty_lower_half(values):
    exact = np.array(values, np.float32)
    found = stored_scale(torch.from_numpy(exact)).numpy()
    assert found.dtype == np.float32
    assert not (found.view(np.uint32) & 0xFFFF).any()
    below = (exact.view(np.uint32) & 0xFFFF0000).view(np.float32).astype(float)
    above = ((exact.view(np.uint32) & 0xFFFF0000) + 0x10000).view(np.float32).astype(float)
    np.testing.assert_array_equal(np.abs(found - exact.astype(float)), np.minimum(exact - below, above - exact))


def test_a_stored_scale_is_never_zero():
    assert bool((stored_scale(torch.tensor([0.0, 1e-45, 1e-40])) > 0).all())


@pytest.mark.parametrize("config", [MSE, MAX, MSE_TENSOR])
def test_zero_tensors_and_zero_channels_quantize_to_zero(config):
    zeros = torch.zeros(3, 4, 1)
    scale = weight_scale(zeros, 4, config)
    assert bool((scale == ZERO_TENSOR_SCALE).all())
    assert not quantize_weight(zeros, scale, 4).integers.any()
    zeros[0] = 0.875  # seven times a scale that bfloat16 holds
    mixed = quantize_weight(zeros, weight_scale(zeros, 4, config), 4)
    assert not mixed.integers[1:].any()
    torch.testing.assert_close(mixed.value[0], zeros[0])


def test_an_almost_dead_channel_leaves_its_bias_within_32_bits():
    weight = torch.ones(2, 4, 1)
    weight[1] *= 1e-12
    scale = weight_scale(weight, 8, MSE).flatten()
    bias = torch.tensor([0.5, 0.5])
    integers = bias_integers(bias, scale * 0.01)
    assert float(integers.abs().max()) < BIAS_LIMIT
    torch.testing.assert_close(integers * scale * 0.01, bias, rtol=1e-4, atol=0)


@given(
    st.integers(4, 8),
    st.floats(0.0009765625, 10.0, width=32),
    st.integers(0, 255),
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=30),
)
@settings(max_examples=200, deadline=None)
def test_activations_follow_the_formula_of_onnx_quantize_linear(bits, scale, zero_point, values):
    """saturate(round_half_even(x / scale) + zero_point), in float32, then back."""
    zero_point = min(zero_point, 2**bits - 1)
    x = np.array(values, np.float32)
    integers = np.clip(np.rint(x / np.float32(scale)) + zero_point, 0, 2**bits - 1)
    wanted = (integers - zero_point).astype(np.float32) * np.float32(scale)
    grid = ActivationGrid(bits, scale, zero_point)
    found = fake_quantize(torch.from_numpy(x), grid)
    np.testing.assert_array_equal(found.numpy(), wanted)
    assert grid.low * (1 + 1e-6) <= float(found.min())
    assert float(found.max()) <= grid.high * (1 + 1e-6)


def test_half_way_activations_go_to_the_even_quotient():
    grid = ActivationGrid(8, 1.0, 7)
    halves = torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5])
    assert fake_quantize(halves, grid).tolist() == [-2.0, 0.0, 0.0, 2.0, 2.0]
