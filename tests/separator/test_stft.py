import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.separator.form import frame_count
from hwsearch.separator.stft import istft, stft


@settings(max_examples=30, deadline=None)
@given(
    samples=st.integers(300, 3000),
    sizes=st.sampled_from([(128, 64), (256, 128), (256, 64), (512, 256)]),
    seed=st.integers(0, 2**16),
)
def test_round_trip_returns_the_waveform(samples: int, sizes: tuple[int, int], seed: int) -> None:
    waveform = torch.randn(2, 3, samples, generator=torch.Generator().manual_seed(seed))
    spectrum = stft(waveform, *sizes)
    assert spectrum.shape == (2, 3, sizes[0] // 2 + 1, frame_count(samples, sizes[1]))
    torch.testing.assert_close(istft(spectrum, *sizes, samples), waveform, atol=1e-4, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(samples=st.integers(300, 1500), seed=st.integers(0, 999))
def test_a_masked_signal_stays_bounded_to_its_last_sample(samples: int, seed: int) -> None:
    """The end of a recording is no louder than its middle, whatever its length is against the hop."""
    rng = torch.Generator().manual_seed(seed)
    waveform = torch.rand(samples, generator=rng) - 0.5
    spectrum = stft(waveform, 256, 128)
    masked = istft(spectrum * torch.rand(spectrum.shape, generator=rng), 256, 128, samples)
    assert float(masked.abs().max()) < 2.0


def test_agrees_with_scipy() -> None:
    waveform = np.random.default_rng(0).standard_normal(1024).astype(np.float32)
    window = scipy.signal.get_window("hann", 256, fftbins=True)
    padded = np.pad(waveform, 128)
    frames = np.stack([padded[start : start + 256] * window for start in range(0, 1024 + 1, 128)])
    expected = np.fft.rfft(frames, axis=1).T
    np.testing.assert_allclose(stft(torch.from_numpy(waveform), 256, 128).numpy(), expected, atol=1e-3)


def test_frame_is_centred_on_its_sample() -> None:
    click = torch.zeros(2048)
    click[7 * 128] = 1.0
    energy = stft(click, 256, 128).abs().square().sum(dim=0)
    assert int(energy.argmax()) == 7


@pytest.mark.parametrize("samples", [256, 257, 383])
def test_short_signals_keep_their_length(samples: int) -> None:
    assert istft(stft(torch.randn(samples), 256, 128), 256, 128, samples).shape == (samples,)
