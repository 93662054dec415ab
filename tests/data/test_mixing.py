import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.data.mixing import PEAK, Voice, draw_overlap, early_part, place, render
from hwsearch.experiment import MixtureConfig, Split

CONFIG = MixtureConfig(count={Split.TEST: 1})


@settings(max_examples=200, deadline=None)
@given(a=st.integers(100, 5000), b=st.integers(100, 5000), overlap=st.floats(0.3, 1.0), seed=st.integers(0, 999))
def test_overlap_is_the_one_asked_for_or_the_nearest_possible(a: int, b: int, overlap: float, seed: int) -> None:
    placement = place(np.random.default_rng(seed), a, b, overlap)
    speaking = np.zeros((2, placement.samples), dtype=bool)
    speaking[0, placement.target_start : placement.target_start + a] = True
    speaking[1, placement.interferer_start : placement.interferer_start + b] = True
    assert speaking[0].sum() == a
    assert speaking[1].sum() == b
    assert speaking.any(axis=0).all(), "the mixture has no gap and no tail"
    measured = speaking.all(axis=0).mean()
    assert measured == pytest.approx(placement.overlap(a, b))
    assert measured == pytest.approx(min(overlap, min(a, b) / max(a, b)), abs=2 / placement.samples)


def test_mean_overlap_is_the_configured_one() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([draw_overlap(rng, CONFIG) for _ in range(4000)])
    assert drawn.mean() == pytest.approx(0.85, abs=0.005)
    assert drawn.min() >= 0.6
    assert drawn.max() <= 1.0


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), sir_db=st.floats(-10, 10), kind=st.sampled_from(["reverberant", "early"]))
def test_mixture_is_the_scaled_sum_of_direct_convolutions(seed: int, sir_db: float, kind: str) -> None:
    rng = np.random.default_rng(seed)
    target, interferer = (rng.standard_normal(n).astype(np.float32) for n in (900, 700))
    responses = (rng.standard_normal((2, 3, 200)) * np.exp(-np.arange(200) / 30)).astype(np.float32)
    placement = place(rng, 900, 700, 0.7)
    config = CONFIG.model_copy(update={"target": kind, "early_ms": 5.0})
    voices = Voice(target, responses[0]), Voice(interferer, responses[1])
    mixed, found = render(rng, *voices, placement, sir_db, config, 8000)

    def image(speech: np.ndarray, start: int, response: np.ndarray) -> np.ndarray:
        whole = np.convolve(np.pad(speech, (start, 0)).astype(np.float64), response.astype(np.float64))
        return np.pad(whole, (0, placement.samples))[: placement.samples]

    targets = np.stack([image(target, placement.target_start, response) for response in responses[0]])
    others = np.stack([image(interferer, placement.interferer_start, response) for response in responses[1]])
    scale = np.sqrt((targets[0] ** 2).sum() / 900 / ((others[0] ** 2).sum() / 700) / 10 ** (sir_db / 10))
    mixture = targets + scale * others
    gain = PEAK / np.abs(mixture).max()
    np.testing.assert_allclose(mixed, gain * mixture, atol=1e-5)
    wanted = targets[0]
    if kind == "early":
        wanted = image(target, placement.target_start, early_part(responses[0, 0], 5.0, 8000))
    np.testing.assert_allclose(found, gain * wanted, atol=1e-5)


def test_early_part_ends_behind_the_direct_sound() -> None:
    response = np.zeros(2000, dtype=np.float32)
    response[100], response[400], response[600] = 1.0, 0.5, 0.4
    early = early_part(response, 50.0, 8000)
    assert early[400] == 0.5
    assert not early[500:].any()


def test_noise_has_the_level_asked_for() -> None:
    rng = np.random.default_rng(1)
    speech = [scipy.signal.lfilter([1], [1, -0.9], rng.standard_normal(40000)).astype(np.float32) for _ in range(2)]
    response = np.zeros((4, 10), dtype=np.float32)
    response[:, 0] = 1.0
    noisy = CONFIG.model_copy(update={"noise_snr_db": 20.0})
    placement = place(rng, 40000, 40000, 1.0)
    voices = Voice(speech[0], response), Voice(speech[1], response)
    clean, clean_target = render(rng, *voices, placement, 0.0, CONFIG, 8000)
    mixed, target = render(rng, *voices, placement, 0.0, noisy, 8000)
    clean *= np.vdot(target, clean_target) / np.vdot(clean_target, clean_target)  # the two have different peaks
    noise = mixed - clean
    assert 10 * np.log10((clean**2).mean() / (noise**2).mean()) == pytest.approx(20.0, abs=0.1)
    assert abs(np.corrcoef(noise)[0, 1]) < 0.03, "sensor noise is independent between microphones"
