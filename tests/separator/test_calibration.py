"""Activation grids hold zero, fit what is seen, and survive a file."""

import json

import numpy as np
import pytest
import torch

from hwsearch.errors import UserError
from hwsearch.network.run import run
from hwsearch.network.sites import find_sites
from hwsearch.separator.calibration import GRID_WIDTHS, Calibration, calibrate, least_squares_grid
from hwsearch.separator.quantizers import fake_quantize
from hwsearch.separator.traced import traced
from tests.separator.small import PRELU, RELU, activation_sites, normalised_features, small_network, small_separator


def brute_force_error(values: torch.Tensor, bits: int) -> float:
    """Least mean squared error over a dense grid of both ends."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    levels = 2**bits - 1
    best = np.inf
    for start in np.linspace(low, 0, 60) if low < 0 else [0.0]:
        for end in np.linspace(0, high, 120)[1:]:
            scale = (end - start) / levels
            zero_point = np.clip(np.rint(-start / scale), 0, levels)
            rounded = (values / scale).round().clamp(-zero_point, levels - zero_point) * scale
            best = min(best, float((rounded - values).square().mean()))
    return best


@pytest.mark.parametrize("bits", [bits for bits in GRID_WIDTHS if bits <= 8])
@pytest.mark.parametrize("draw", ["normal", "relu", "laplace", "skewed"])
def test_the_grid_is_close_to_the_brute_force_optimum(bits, draw):
    random = torch.Generator().manual_seed(0)
    normal = torch.randn(4000, generator=random)
    values = {
        "normal": normal,
        "relu": normal.relu(),
        "laplace": normal * torch.rand(4000, generator=random).log(),
        "skewed": normal.exp() - 1,
    }[draw].double()
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    grid = least_squares_grid(torch.histc(values, 4096, low, high), low, high, bits)
    error = float((fake_quantize(values, grid) - values).square().mean())
    assert error <= 1.05 * brute_force_error(values, bits)


def test_a_grid_of_16_bits_takes_twice_the_range():
    grid = least_squares_grid(torch.ones(4096), -1.0, 3.0, 16)
    assert grid.scale == pytest.approx(8.0 / 65535, rel=1e-6)
    assert grid.low == pytest.approx(-2.0, abs=grid.scale)
    assert grid.high == pytest.approx(6.0, abs=grid.scale)
    values = torch.linspace(-2, 6, 1001)
    assert float((fake_quantize(values, grid) - values).abs().max()) <= 0.5001 * grid.scale + 1e-6


def test_zero_points_are_zero_behind_relu_and_inside_elsewhere():
    _, _, calibration = small_network(RELU)
    for site in activation_sites(RELU):
        for bits in GRID_WIDTHS:
            zero_point = calibration.grids[site][bits].zero_point
            assert zero_point == 0 if site.endswith((".expand.output", ".depthwise.output")) else 0 < zero_point < 2**bits - 1


def test_prelu_outputs_have_room_for_negative_values():
    _, _, calibration = small_network(PRELU)
    assert calibration.grids["blocks.0.expand.output"][8].zero_point > 0


def test_more_bits_fit_better_at_every_site():
    separator, graph, calibration = small_network()
    errors: dict[str, list[float]] = {}

    sites = find_sites(graph).of_tensor

    def measure(name: str, x: torch.Tensor) -> torch.Tensor:
        if (site := sites.get(name)) is not None:
            errors[site] = [float((fake_quantize(x, calibration.grids[site][b]) - x).square().mean()) for b in GRID_WIDTHS]
        return x

    run(graph, {"features": normalised_features(separator, 3000, 1)}, measure)
    assert set(errors) == set(activation_sites(RELU))
    for site, by_width in errors.items():
        assert by_width == sorted(by_width, reverse=True), site


def test_a_calibration_survives_a_file_bit_by_bit():
    _, _, calibration = small_network()
    text = json.dumps(calibration.to_json())
    assert Calibration.from_json(json.loads(text), activation_sites(RELU), "file") == calibration


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: [],
        lambda value: value | {"format": 1},
        lambda value: value | {"grids": {}},
        lambda value: value | {"grids": value["grids"] | {"mask_head.output": {}}},
        lambda value: value["grids"]["mask_head.output"].update({"8": [0.1, 256]}) or value,
        lambda value: value["grids"]["mask_head.output"].update({"8": [-0.1, 2]}) or value,
        lambda value: value["grids"]["mask_head.output"].update({"8": ["x", 2]}) or value,
    ],
)
def test_a_damaged_calibration_is_one_clear_line(damage):
    _, _, calibration = small_network()
    with pytest.raises(UserError, match=r"^cache\.json: ") as caught:
        Calibration.from_json(damage(calibration.to_json()), activation_sites(RELU), "cache.json")
    assert "\n" not in str(caught.value)


def test_a_silent_network_still_gets_grids():
    separator = small_separator()
    features = torch.zeros_like(normalised_features(separator))
    calibration = calibrate(traced(separator), [features])
    assert calibration.grids["features"][8].scale > 0
    assert not fake_quantize(features, calibration.grids["features"][8]).any()


def test_what_is_not_finite_or_missing_is_refused():
    separator = small_separator()
    with pytest.raises(ValueError, match="at least one mixture"):
        calibrate(traced(separator), [])
    whole, broken = normalised_features(separator), normalised_features(separator)
    broken[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        calibrate(traced(separator), [broken, whole])
