import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsearch.metrics.recognisers.augmentation import (
    FASTEST,
    add_at,
    augment,
    change_speed,
    coloured_noise,
    reverberate,
)

seeds = st.integers(0, 2**32 - 1)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(seeds, st.floats(-20, 40))
def test_a_disturbance_is_added_at_the_wanted_ratio(seed: int, ratio_db: float) -> None:
    audio = rng(seed).standard_normal(1000).astype(np.float32)
    disturbance = 0.1 * rng(seed + 1).standard_normal(300).astype(np.float32)
    added = add_at(audio, disturbance, ratio_db) - audio
    measured = 10 * np.log10((audio.astype(float) ** 2).mean() / (added.astype(float) ** 2).mean())
    assert measured == pytest.approx(ratio_db, abs=0.05)


def test_silence_disturbs_nothing() -> None:
    audio = rng(0).standard_normal(100).astype(np.float32)
    assert np.array_equal(add_at(audio, np.zeros(10, np.float32), 0.0), audio)


@given(seeds)
def test_a_click_in_a_room_rings_and_dies_away(seed: int) -> None:
    click = np.zeros(8000, np.float32)
    click[100] = 1
    response = reverberate(click, 8000, rng(seed))
    assert response.size == click.size
    assert np.abs(response[:100]).max() < 1e-6
    assert response[100] == pytest.approx(1, abs=1e-5)
    ratio = -10 * np.log10((response[101:].astype(float) ** 2).sum())
    assert -3.1 <= ratio <= 15.1
    assert np.abs(response[100 + 4000 :]).max() < 1e-5  # the longest T60 is half a second


@given(seeds)
def test_speed_stays_within_its_bounds(seed: int) -> None:
    changed = change_speed(rng(seed).standard_normal(4000).astype(np.float32), rng(seed))
    assert 4000 / FASTEST - 2 <= changed.size <= 4000 * FASTEST + 2


def test_noise_is_never_bluer_than_white() -> None:
    for seed in range(5):
        spectrum = np.abs(np.fft.rfft(coloured_noise(8000, rng(seed)))) ** 2
        assert spectrum[:1000].sum() > 0.8 * spectrum[3000:].sum()


def test_the_seed_fixes_the_augmentation() -> None:
    audio, other = (rng(seed).standard_normal(4000).astype(np.float32) for seed in (0, 1))
    assert np.array_equal(augment(audio, other, 8000, rng(2)), augment(audio, other, 8000, rng(2)))
    versions = [augment(audio, other, 8000, rng(seed)) for seed in range(20)]
    assert all(version.dtype == np.float32 and np.isfinite(version).all() for version in versions)
