"""A recording in which a microphone has recorded nothing is refused, or its microphone named."""

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from numpy.typing import NDArray

from hwsearch.data.audio import open_recording
from hwsearch.data.channels import inspect
from hwsearch.errors import UserError

from .conftest import RATE, babble


def four() -> NDArray[np.float32]:
    return np.stack([babble(0.5, channel) for channel in range(4)])


def inspected(path: Path, samples: NDArray[np.float32], rate: int = RATE, subtype: str = "FLOAT") -> list[str]:
    sf.write(path, samples.T, rate, subtype=subtype)
    return inspect(open_recording(path), RATE, 4)


def test_a_good_recording_has_nothing_to_warn_of(tmp_path: Path) -> None:
    sound = four()
    sound[2] = np.clip(20 * sound[2], -1, 1)
    sound[3] = -sound[1]
    assert inspected(tmp_path / "x.wav", sound) == []
    assert inspected(tmp_path / "x.wav", 1e-3 * four(), subtype="PCM_16") == []


@pytest.mark.parametrize(
    ("value", "state"), [(0.0, "is silent"), (9e-6, "is silent"), (0.25, "never moves from 0.25"), (-1.0, "never moves from -1")]
)
def test_a_microphone_that_recorded_nothing_is_named_and_the_first_is_needed(tmp_path: Path, value: float, state: str) -> None:
    path = tmp_path / "x.wav"
    sound = four()
    sound[2] = value
    assert inspected(path, sound) == [f"{path}: channel 3 {state}; the result may be wrong"]
    sound[0] = value
    with pytest.raises(UserError, match=rf"x\.wav: channel 1 {state}; wanted sound there"):
        inspected(path, sound)


def test_dead_microphones_are_found_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwsearch.data.audio._BLOCK_VALUES", 400)
    sound = four()
    sound[0, :-1] = sound[1] = sound[2] = 0.0
    sound[2, 250] = 0.5
    path = tmp_path / "x.wav"
    assert inspected(path, sound) == [f"{path}: channel 2 is silent; the result may be wrong"]


def test_channels_that_hold_the_same_samples_are_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwsearch.data.audio._BLOCK_VALUES", 400)
    path, sound = tmp_path / "x.wav", four()
    sound[3] = sound[1]
    assert inspected(path, sound) == [f"{path}: channels 2 and 4 are the same; the result may be wrong"]
    sound[:] = sound[0]
    assert inspected(path, sound) == [f"{path}: channels 1, 2, 3 and 4 are the same; the result may be wrong"]
    sound[3, -1] += 0.01
    assert inspected(path, sound) == [f"{path}: channels 1, 2 and 3 are the same; the result may be wrong"]
    sound[1:] = 0.0
    assert inspected(path, sound) == [f"{path}: channel {channel} is silent; the result may be wrong" for channel in (2, 3, 4)]


def test_a_silent_recording_is_refused_as_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="silent: no sample reaches 1e-05 of full scale"):
        inspected(tmp_path / "x.wav", 0 * four())


def test_another_rate_or_number_of_channels_names_both(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sample rate is 96000 Hz; wanted 8000 Hz"):
        inspected(tmp_path / "x.wav", four(), rate=96000)
    for channels, found in ((1, "1 channel"), (2, "2 channels"), (5, "5 channels")):
        with pytest.raises(UserError, match=f"{found}; wanted 4"):
            inspected(tmp_path / "x.wav", np.resize(four(), (channels, 100)))
