import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwsearch.metrics.recognisers.log_mel import FFT, HOP, LOWEST_HZ, MEL_BANDS, log_mel, mel_filters

FILTERS = torch.from_numpy(mel_filters())


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("band", range(0, MEL_BANDS, 3))
def test_a_tone_at_the_centre_of_a_band_is_loudest_there(band: int) -> None:
    """Centres from the inverse of the mel formula, written the other way round (base e)."""
    low, high = (1127.01 * np.log(1 + hertz / 700) for hertz in (LOWEST_HZ, 4000))
    centre = 700 * np.expm1((low + (high - low) * (band + 1) / (MEL_BANDS + 1)) / 1127.01)
    response = FILTERS[:, round(centre * FFT / 8000)]
    assert abs(int(response.argmax()) - band) <= 1
    assert response[band] > 0.4


def test_no_band_is_deaf() -> None:
    assert FILTERS.shape == (MEL_BANDS, FFT // 2 + 1)
    assert (FILTERS.amax(dim=1) > 0.3).all()
    assert (FILTERS >= 0).all()


@given(st.integers(1, 4000), st.floats(1e-6, 1e6))
def test_gain_changes_nothing(samples: int, gain: float) -> None:
    audio = noise(samples)
    features = log_mel(audio, FILTERS)
    assert features.shape == (MEL_BANDS, samples // HOP + 1)
    assert torch.allclose(log_mel(audio * gain, FILTERS), features, atol=1e-3)


def test_bands_have_zero_mean_and_silence_gives_finite_features() -> None:
    assert torch.allclose(log_mel(noise(8000), FILTERS).mean(dim=1), torch.zeros(MEL_BANDS), atol=1e-4)
    assert torch.isfinite(log_mel(torch.zeros(800), FILTERS)).all()
