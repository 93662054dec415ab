from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from hwsearch.data.utterance import SPEECH_RMS, Utterance, load_speech
from hwsearch.errors import UserError

from .conftest import RATE, babble


def _utterance(root: Path, *paths: str, name: str = "csv:x") -> Utterance:
    return Utterance(name, "csv:s", root, paths, None)


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples.astype(np.float64)))))


@pytest.mark.parametrize("gain", [0.001, 0.1, 1.0])
def test_speech_comes_at_one_level(tmp_path: Path, gain: float) -> None:
    sf.write(tmp_path / "a.wav", gain * babble(1.0, 1), RATE, subtype="FLOAT")
    assert _rms(load_speech(_utterance(tmp_path, "a.wav"), RATE)) == pytest.approx(SPEECH_RMS, rel=1e-4)


def test_silence_at_the_ends_is_cut_to_the_margin(tmp_path: Path) -> None:
    silence = np.zeros(RATE, np.float32)
    sf.write(tmp_path / "a.wav", np.concatenate([silence, babble(1.0, 1), silence]), RATE)
    speech = load_speech(_utterance(tmp_path, "a.wav"), RATE)
    assert len(speech) == pytest.approx(1.1 * RATE, abs=0.02 * RATE)


@pytest.mark.parametrize("rate", [16000, 22050, 44100])
def test_a_tone_keeps_its_pitch_and_length_through_the_change_of_rate(tmp_path: Path, rate: int) -> None:
    time = np.arange(rate) / rate
    sf.write(tmp_path / "a.wav", 0.3 * np.sin(2 * np.pi * 1000 * time), rate)
    speech = load_speech(_utterance(tmp_path, "a.wav"), RATE)
    assert len(speech) == pytest.approx(RATE, abs=1)
    assert np.argmax(np.abs(np.fft.rfft(speech))) * RATE / len(speech) == pytest.approx(1000, abs=2)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = babble(0.5, 1), babble(0.5, 2)
    sf.write(tmp_path / "a.wav", np.stack([left, right], axis=1), RATE, subtype="FLOAT")
    speech = load_speech(_utterance(tmp_path, "a.wav"), RATE)
    mean = (left + right) / 2
    np.testing.assert_allclose(speech, mean * SPEECH_RMS / _rms(mean), rtol=1e-4, atol=1e-6)


def test_channels_that_cancel_are_an_error(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", np.stack([babble(0.5, 1), -babble(0.5, 1)], axis=1), RATE, subtype="FLOAT")
    with pytest.raises(UserError, match=r"a\.wav: silent"):
        load_speech(_utterance(tmp_path, "a.wav"), RATE)


def test_joined_parts_stand_in_order_with_pauses_that_depend_on_the_id(tmp_path: Path) -> None:
    for number, frequency in enumerate((500, 1000, 2000)):
        sf.write(
            tmp_path / f"{number}.wav",
            0.3 * np.sin(2 * np.pi * frequency * np.arange(RATE // 2) / RATE),
            RATE,
        )
    paths = ("2.wav", "0.wav", "1.wav")
    speech = load_speech(_utterance(tmp_path, *paths), RATE)
    np.testing.assert_array_equal(speech, load_speech(_utterance(tmp_path, *paths), RATE))
    assert len(load_speech(_utterance(tmp_path, *paths, name="csv:y"), RATE)) != len(speech)
    quiet = np.flatnonzero(np.convolve(np.abs(speech) > 0, np.ones(80), "same") == 0)
    first_end, second_end = quiet[0], quiet[np.argmax(np.diff(quiet)) + 1]
    segments = (speech[:first_end], speech[first_end + RATE // 4 : second_end], speech[-RATE // 4 :])
    peaks = [np.argmax(np.abs(np.fft.rfft(part))) * RATE / len(part) for part in segments]
    np.testing.assert_allclose(peaks, (2000, 500, 1000), rtol=0.01)
    assert 1.5 * RATE + 2 * 0.06 * RATE <= len(speech) <= 1.5 * RATE + 2 * 0.25 * RATE
