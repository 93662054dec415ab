"""PESQ and STOI: known values, order of quality, and a reason for every utterance without a value."""

import warnings

import numpy as np
import pystoi
import pytest

from hwsearch.metrics.errors import MetricUnavailable
from hwsearch.metrics.perceptual import pesq_score, stoi_score


def speech(seconds: float, sample_rate: int, seed: int = 0) -> np.ndarray:
    """Syllables: noise-excited harmonics of a gliding pitch, four bursts a second."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * sample_rate)) / sample_rate
    phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * time + seed)) / sample_rate
    harmonics = sum(np.sin(k * phase + rng.uniform(0, 6)) / k for k in range(1, 25))
    envelope = np.maximum(0, np.sin(2 * np.pi * 2 * time + rng.uniform(0, 6))) ** 2
    return 0.1 * envelope * harmonics


def noisy(clean: np.ndarray, snr_db: float) -> np.ndarray:
    noise = np.random.default_rng(9).standard_normal(clean.size)
    return clean + noise * np.sqrt((clean**2).mean() / (noise**2).mean()) * 10 ** (-snr_db / 20)


@pytest.mark.parametrize(("sample_rate", "slope", "offset"), [(8000, 1.4945, 4.6607), (16000, 1.3669, 3.8224)])
def test_pesq_of_a_copy_is_the_mapped_ceiling(sample_rate: int, slope: float, offset: float) -> None:
    """Raw PESQ of a copy is 4.5; ITU-T P.862.1 and P.862.2 give the mapping to MOS-LQO."""
    clean = speech(2, sample_rate)
    ceiling = 0.999 + (4.999 - 0.999) / (1 + np.exp(-slope * 4.5 + offset))
    assert pesq_score(clean, clean, sample_rate) == pytest.approx(ceiling, abs=1e-3)


def test_more_noise_means_less_pesq_and_less_stoi() -> None:
    clean = speech(3, 8000)
    versions = [noisy(clean, snr_db) for snr_db in (30, 15, 0)]
    for score in (pesq_score, stoi_score):
        values = [score(version, clean, 8000) for version in versions]
        assert values == sorted(values, reverse=True)
        assert values[0] - values[-1] > 0.1


def test_stoi_is_one_for_a_copy_and_low_for_an_unrelated_signal() -> None:
    clean = speech(3, 8000)
    assert stoi_score(clean, clean, 8000) == pytest.approx(1)
    assert stoi_score(np.random.default_rng(0).standard_normal(clean.size), clean, 8000) < 0.4


def test_the_target_is_the_reference() -> None:
    """STOI is not symmetric: swapping estimate and target gives another value."""
    clean = speech(3, 10000)
    bad = noisy(clean, 0)
    assert stoi_score(bad, clean, 10000) == pystoi.stoi(clean, bad, 10000)
    assert stoi_score(bad, clean, 10000) != pytest.approx(stoi_score(clean, bad, 10000), abs=1e-3)


@pytest.mark.parametrize("score", [pesq_score, stoi_score])
def test_silence_is_unavailable_and_says_which_signal(score: type[pesq_score]) -> None:
    clean = speech(1, 8000)
    with pytest.raises(MetricUnavailable, match="target is silent"):
        score(clean, np.zeros_like(clean), 8000)
    with pytest.raises(MetricUnavailable, match="estimate is silent"):
        score(np.zeros_like(clean), clean, 8000)


def test_short_utterances_are_unavailable_without_a_warning() -> None:
    clean = speech(0.2, 8000, seed=3) + 1e-3 * np.random.default_rng(0).standard_normal(1600)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(MetricUnavailable, match="STOI needs 30 frames"):
            stoi_score(clean, clean, 8000)
        with pytest.raises(MetricUnavailable, match=r"PESQ takes 0\.25 to 20 s"):
            pesq_score(clean, clean, 8000)


@pytest.mark.parametrize(
    ("count", "samples", "loud", "reason"),
    [
        pytest.param(60, 4000, 2000, r"30\.00 s long", id="more utterances than the reference implementation's arrays hold"),
        pytest.param(6, 2800, 400, "PESQ refused: No utterances detected", id="bursts shorter than an utterance"),
    ],
)
def test_what_pesq_cannot_score_is_unavailable(count: int, samples: int, loud: int, reason: str) -> None:
    bursts = np.zeros((count, samples))
    bursts[:, :loud] = np.random.default_rng(0).standard_normal((count, loud))
    with pytest.raises(MetricUnavailable, match=reason):
        pesq_score(bursts.ravel(), bursts.ravel(), 8000)


def test_undefined_rates_and_channels_are_errors_of_the_caller() -> None:
    clean = speech(1, 8000)
    with pytest.raises(ValueError, match="44100 Hz"):
        pesq_score(clean, clean, 44100)
    with pytest.raises(ValueError, match="one channel"):
        stoi_score(np.stack([clean, clean]), np.stack([clean, clean]), 8000)
