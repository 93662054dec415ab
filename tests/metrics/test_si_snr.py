"""SI-SNR against fast_bss_eval, against known geometry, and at its edges."""

import fast_bss_eval
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsearch.metrics.errors import MetricUnavailable
from hwsearch.metrics.si_snr import LIMIT_DB, si_snr

seeds = st.integers(0, 2**32 - 1)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@given(seeds, st.floats(-30, 60))
def test_agrees_with_fast_bss_eval(seed: int, snr_db: float) -> None:
    target = noise(seed, 400) + 0.3
    estimate = target + 10 ** (-snr_db / 20) * noise(seed + 1, 400)
    reference = fast_bss_eval.si_sdr(target[None], estimate[None], zero_mean=True)
    assert si_snr(estimate, target) == pytest.approx(float(reference[0]), abs=1e-6)


@given(seeds, st.floats(-100, 100))
def test_orthogonal_noise_gives_the_ratio_of_the_energies(seed: int, snr_db: float) -> None:
    """Noise made orthogonal to target and to the constant leaves nothing to the projection but the target."""
    target = noise(seed, 200)
    target -= target.mean()
    disturbance = noise(seed + 1, 200)
    disturbance -= disturbance.mean()
    disturbance -= (disturbance @ target) / (target @ target) * target
    disturbance *= np.linalg.norm(target) / np.linalg.norm(disturbance) * 10 ** (-snr_db / 20)
    assert si_snr(target + disturbance, target) == pytest.approx(snr_db, abs=1e-4)


@given(seeds, st.floats(1e-12, 1e12), st.floats(1e-12, 1e12), st.floats(-1, 1))
def test_gain_and_offset_change_nothing(seed: int, gain: float, target_gain: float, offset: float) -> None:
    target, estimate = noise(seed, 100), noise(seed, 100) + noise(seed + 1, 100)
    changed = si_snr(-gain * (estimate + offset), target_gain * (target - offset))
    assert changed == pytest.approx(si_snr(estimate, target), abs=1e-6)


def test_batches_give_what_single_utterances_give() -> None:
    target, estimate = noise(0, 2, 3, 50), noise(1, 2, 3, 50)
    batch = si_snr(estimate, target)
    assert isinstance(batch, np.ndarray)
    assert batch.shape == (2, 3)
    for index in np.ndindex(2, 3):
        assert batch[index] == pytest.approx(si_snr(estimate[index], target[index]))


def test_a_perfect_copy_and_an_orthogonal_estimate_stay_finite() -> None:
    target = np.array([1.0, -1.0, 1.0, -1.0])
    assert si_snr(target, target) == LIMIT_DB
    assert si_snr(np.array([1.0, 1.0, -1.0, -1.0]), target) == -LIMIT_DB


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0])
def test_silence_has_no_si_snr(value: float) -> None:
    silent, sound = np.full(100, value, dtype=np.float32), noise(0, 100)
    with pytest.raises(MetricUnavailable, match="target is silent"):
        si_snr(sound, silent)
    with pytest.raises(MetricUnavailable, match="estimate is silent"):
        si_snr(silent, sound)


def test_a_silent_utterance_of_a_batch_is_named() -> None:
    target = noise(0, 4, 50)
    target[2] = 0
    with pytest.raises(MetricUnavailable, match="target is silent at index 2"):
        si_snr(noise(1, 4, 50), target)


def test_unusable_signals_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        si_snr(noise(0, 10), noise(0, 11))
    with pytest.raises(MetricUnavailable, match="no samples"):
        si_snr(np.zeros(0), np.zeros(0))
    with pytest.raises(MetricUnavailable, match="not finite"):
        si_snr(np.array([1.0, np.nan]), np.array([1.0, 2.0]))
