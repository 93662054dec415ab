"""Features of plane waves whose geometry is worked out here by hand, sample by sample."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.data.arrays import ARRAYS, MicrophoneArray
from hwsearch.separator.features import (
    angle_feature,
    apply_mask,
    beam_features,
    features,
    starting_mask,
    steering_phase,
    superdirective_weights,
)
from hwsearch.separator.form import DIAGONAL_LOADING, feature_count
from hwsearch.separator.stft import stft

RATE = 8000
SPEED = 343.0


def plane_wave(array: MicrophoneArray, doa_deg: float, samples: int = 4096, seed: int = 0) -> torch.Tensor:
    """Band-limited noise that crosses the array from a direction: sinusoids, each delayed exactly."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / RATE
    wave = np.zeros((array.microphones, samples))
    for _ in range(60):
        frequency, phase = rng.uniform(150, 3800), rng.uniform(0, 2 * np.pi)
        for m, (x, y) in enumerate(array.positions):
            towards = x * np.cos(np.deg2rad(doa_deg)) + y * np.sin(np.deg2rad(doa_deg))
            wave[m] += np.cos(2 * np.pi * frequency * (time + towards / SPEED) + phase)
    return torch.from_numpy(wave.astype(np.float32))[None]


@pytest.mark.parametrize("name", ["linear15", "linear6", "circular6", "linear4"])
@pytest.mark.parametrize("doa", [20.0, 75.0, 130.0])
def test_angle_feature_is_one_for_a_plane_wave_from_the_target(name: str, doa: float) -> None:
    array = ARRAYS[name]
    spectrum = stft(plane_wave(array, doa), 256, 128)
    result = features(spectrum, torch.tensor([doa]), array, RATE, "steered", beam=False)
    af = result[0, 129:258]
    loud = spectrum[0, 0].abs() > spectrum[0, 0].abs().median() * 3
    assert float(af[loud].median()) > 0.98
    wrong = features(spectrum, torch.tensor([(doa + 60) % 180]), array, RATE, "steered", beam=False)[0, 129:258]
    assert float(wrong[loud].median()) < float(af[loud].median()) - 0.3


def test_steered_phase_differences_vanish_for_the_target() -> None:
    array = ARRAYS["linear6"]
    spectrum = stft(plane_wave(array, 50.0), 256, 128)
    result = features(spectrum, torch.tensor([50.0]), array, RATE, "steered", beam=False)
    pairs = len(array.pairs)
    cosines = result[0, 258 : 258 + pairs * 129].reshape(pairs, 129, -1)
    loud = spectrum[0, 0].abs() > spectrum[0, 0].abs().median() * 3
    assert float(cosines[:, loud].median()) > 0.98


def test_phase_difference_of_a_pair_is_that_of_the_path_length() -> None:
    """One sinusoid at the centre of a bin: IPD = 2 pi f (d cos theta) / c."""
    array = ARRAYS["linear4"]
    frequency, doa = 20 * RATE / 256, 40.0
    time = np.arange(2048) / RATE
    wave = np.stack([np.cos(2 * np.pi * frequency * (time + x * np.cos(np.deg2rad(doa)) / SPEED)) for x, _ in array.positions])
    spectrum = stft(torch.from_numpy(wave.astype(np.float32))[None], 256, 128)
    angles = features(spectrum, torch.tensor([doa]), array, RATE, "angle", beam=False)[0, 258:].reshape(len(array.pairs), 129, -1)
    for index, (first, second) in enumerate(array.pairs):
        path = (array.positions[first, 0] - array.positions[second, 0]) * np.cos(np.deg2rad(doa))
        expected = np.angle(np.exp(2j * np.pi * frequency * path / SPEED))
        assert float(angles[index, 20, 8]) == pytest.approx(expected, abs=1e-3)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), microphones=st.integers(2, 7))
def test_angle_feature_is_the_mean_over_all_pairs(seed: int, microphones: int) -> None:
    phase = torch.rand(1, microphones, 5, 4, generator=torch.Generator().manual_seed(seed)) * 6.3
    steered = torch.polar(torch.ones_like(phase), phase)
    pairs = [(m, n) for m in range(microphones) for n in range(m)]
    expected = torch.stack([torch.cos(phase[:, m] - phase[:, n]) for m, n in pairs]).mean(dim=0)
    torch.testing.assert_close(angle_feature(steered), expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(gain=st.floats(1e-3, 1e3), ipd=st.sampled_from(["none", "angle", "cos_sin", "steered"]))
def test_gain_of_the_recording_changes_nothing(gain: float, ipd: str) -> None:
    array = ARRAYS["linear4"]
    wave = torch.randn(1, 4, 2048, generator=torch.Generator().manual_seed(3))
    quiet, loud = (features(stft(wave * g, 256, 128), torch.tensor([30.0]), array, RATE, ipd, beam=True) for g in (1.0, gain))
    assert quiet.shape[1] == feature_count(array, 129, ipd, beam=True)
    # Raw angles may wrap from -pi to pi by rounding; their cosine may not.
    torch.testing.assert_close(torch.cos(quiet[:, 516:]), torch.cos(loud[:, 516:]), atol=2e-2, rtol=0)
    torch.testing.assert_close(quiet[:, :516], loud[:, :516], atol=2e-2, rtol=1e-2)


def test_silence_gives_finite_features() -> None:
    array = ARRAYS["linear6"]
    result = features(stft(torch.zeros(1, 6, 1024), 256, 128), torch.tensor([10.0]), array, RATE, "steered", beam=True)
    assert bool(torch.isfinite(result).all())


def test_steering_phase_is_that_of_a_plane_waves_advance() -> None:
    array = ARRAYS["circular6"]
    phase = steering_phase(array, torch.tensor([70.0], dtype=torch.float64), 129, RATE)
    direction = np.array([np.cos(np.deg2rad(70.0)), np.sin(np.deg2rad(70.0))])
    expected = 2 * np.pi * (array.positions @ direction)[:, None] / SPEED * np.linspace(0, 4000, 129)
    np.testing.assert_allclose(phase[0].numpy(), expected, atol=1e-9)


def diffuse_gain(weights: np.ndarray, positions: np.ndarray, frequency: float) -> float:
    """Mean power that a beam passes of plane waves from all directions of the sphere, by summing over them."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((20000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    delays = np.hstack([positions, np.zeros((len(positions), 1))]) @ directions.T / SPEED
    waves = np.exp(2j * np.pi * frequency * delays)
    return float(np.mean(np.abs(weights.conj() @ waves) ** 2))


@pytest.mark.parametrize("name", ["linear6", "circular6"])
def test_superdirective_beam_passes_the_target_and_least_of_a_diffuse_field(name: str) -> None:
    array = ARRAYS[name]
    phase = steering_phase(array, torch.tensor([55.0], dtype=torch.float64), 129, RATE)
    weights = superdirective_weights(array, phase, RATE)[0].numpy()
    steering = np.exp(1j * phase[0].numpy()).T
    np.testing.assert_allclose((weights.conj() * steering).sum(axis=1), 1.0, atol=1e-4)
    for index in (10, 32, 64):
        frequency = index * RATE / 2 / 128
        loaded = diffuse_gain(weights[index], array.positions, frequency) + DIAGONAL_LOADING * np.sum(np.abs(weights[index]) ** 2)
        rng = np.random.default_rng(index)
        for _ in range(20):
            other = weights[index] + 0.05 * (rng.standard_normal(array.microphones) + 0j)
            other = other / (other.conj() @ steering[index]).conj()
            worse = diffuse_gain(other, array.positions, frequency) + DIAGONAL_LOADING * np.sum(np.abs(other) ** 2)
            assert loaded <= worse * 1.01


def test_beam_features_of_a_plane_wave_are_one_from_the_target_and_less_from_elsewhere() -> None:
    array = ARRAYS["linear6"]
    spectrum = stft(plane_wave(array, 100.0), 256, 128)
    loud = spectrum[0, 0].abs() > spectrum[0, 0].abs().median() * 3
    for doa, expected in ((100.0, 1.0), (30.0, 0.0)):
        phase = steering_phase(array, torch.tensor([doa]), 129, RATE)
        share, wiener = beam_features(spectrum, superdirective_weights(array, phase, RATE), phase)
        assert float(share[0][loud].median()) == pytest.approx(expected, abs=0.2)
        assert float(wiener[0][loud].median()) == pytest.approx(expected, abs=0.35)


def test_mask_is_added_to_the_beams_share() -> None:
    array = ARRAYS["linear6"]
    spectrum = stft(torch.randn(1, 6, 2048), 256, 128)
    raw = features(spectrum, torch.tensor([80.0]), array, RATE, "steered", beam=True)
    phase = steering_phase(array, torch.tensor([80.0]), 129, RATE)
    share, _ = beam_features(spectrum, superdirective_weights(array, phase, RATE), phase)
    mask = torch.randn(1, 258, spectrum.shape[-1])
    expected = spectrum[:, 0] * (torch.complex(mask[:, :129], mask[:, 129:]) + share)
    found = apply_mask(spectrum[:, 0], mask, starting_mask(raw, 129, beam=True))
    torch.testing.assert_close(found, expected)
    alone = apply_mask(spectrum[:, 0], mask, starting_mask(raw, 129, beam=False))
    torch.testing.assert_close(alone, spectrum[:, 0] * torch.complex(mask[:, :129], mask[:, 129:]))
