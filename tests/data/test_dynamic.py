from pathlib import Path

import numpy as np
import pytest

from hwsearch.data.dynamic import DynamicMixtures, speech_by_speaker
from hwsearch.data.rooms import build_bank
from hwsearch.errors import UserError
from hwsearch.experiment import Split
from tests.data.test_rooms import DATA


@pytest.fixture
def mixtures(tmp_path: Path) -> DynamicMixtures:
    rng = np.random.default_rng(0)
    bank = build_bank(DATA, "x", Split.TEST, tmp_path, 1, lambda done, total: None)
    speech = {f"s{i}": [rng.standard_normal(9000).astype(np.float32)] for i in range(4)}
    return DynamicMixtures(speech, bank, DATA.mixtures, 8000, 8000, ("x",))


def test_example_is_a_function_of_its_name(mixtures: DynamicMixtures) -> None:
    first = mixtures.example(3, 5)
    mixtures.example(9, 9)
    again = mixtures.example(3, 5)
    assert np.array_equal(first.mixture, again.mixture)
    assert first.doa_deg == again.doa_deg
    assert not np.array_equal(first.mixture, mixtures.example(3, 6).mixture)
    assert not np.array_equal(first.mixture, mixtures.example(4, 5).mixture)


def test_examples_have_one_length_and_a_direction_of_their_room(mixtures: DynamicMixtures) -> None:
    directions = {doa for room in mixtures.bank.rooms for doa in room.doa_deg}
    for index in range(8):
        example = mixtures.example(0, index)
        assert example.mixture.shape == (4, 8000)
        assert example.target.shape == (8000,)
        assert example.mixture.dtype == np.float32
        assert example.doa_deg in directions


def test_speed_changes_length_and_pitch() -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(8000) / 8000).astype(np.float32)
    speech = speech_by_speaker([("a", tone), ("b", tone)], 8000, (0.8, 1.0))
    slow = speech["a"][0]
    assert len(slow) == pytest.approx(10000, abs=2)
    spectrum = np.abs(np.fft.rfft(slow[1000:9000]))
    assert np.argmax(spectrum) == pytest.approx(440 * 0.8, abs=2)


def test_one_speaker_cannot_be_mixed() -> None:
    with pytest.raises(UserError, match="1 speaker"):
        speech_by_speaker([("a", np.ones(100, dtype=np.float32))], 8000, (1.0,))
