import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from hwsearch.data.audio import decode, read_recording, write_audio
from hwsearch.errors import UserError

from .conftest import RATE, babble


def _wav(path: Path, samples: np.ndarray, rate: int = RATE, subtype: str = "FLOAT") -> Path:
    sf.write(path, samples, rate, subtype=subtype)
    return path


def _stereo() -> np.ndarray:
    return np.stack([babble(0.5, 1), babble(0.5, 2)], axis=1)


def _one_line(error: pytest.ExceptionInfo[UserError], path: Path) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_a_good_recording_is_read_channel_by_channel_unchanged(tmp_path: Path) -> None:
    stereo = _stereo()
    read = read_recording(_wav(tmp_path / "x.wav", stereo), RATE, 2)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, stereo.T)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read_recording(tmp_path / "x.wav", RATE, 1)
    assert "no such file" in _one_line(error, tmp_path / "x.wav")


def test_a_folder_is_no_recording(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read_recording(tmp_path, RATE, 1)
    assert "no such file" in _one_line(error, tmp_path)


def test_file_of_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "x.wav").touch()
    with pytest.raises(UserError) as error:
        decode(tmp_path / "x.wav")
    assert "empty" in _one_line(error, tmp_path / "x.wav")


def test_file_of_no_samples(tmp_path: Path) -> None:
    path = _wav(tmp_path / "x.wav", np.zeros(0, np.float32))
    with pytest.raises(UserError) as error:
        decode(path)
    assert "empty" in _one_line(error, path)


@pytest.mark.parametrize(("amplitude", "accepted"), [(0.0, False), (5e-6, False), (1e-3, True)])
def test_silence_is_refused_and_quiet_speech_is_not(tmp_path: Path, amplitude: float, accepted: bool) -> None:
    path = _wav(tmp_path / "x.wav", np.full(RATE, amplitude, np.float32))
    if accepted:
        assert decode(path)[0].shape == (1, RATE)
        return
    with pytest.raises(UserError) as error:
        decode(path)
    assert "silent" in _one_line(error, path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_sample_that_is_no_number_is_refused(tmp_path: Path, bad: float) -> None:
    samples = babble(0.5, 1)
    samples[100] = bad
    path = _wav(tmp_path / "x.wav", samples)
    with pytest.raises(UserError) as error:
        decode(path)
    assert "NaN" in _one_line(error, path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
@pytest.mark.parametrize(("suffix", "subtype"), [("wav", "PCM_16"), ("wav", "FLOAT"), ("flac", "PCM_16")])
def test_truncated_file(tmp_path: Path, suffix: str, subtype: str, kept: float) -> None:
    path = _wav(tmp_path / f"x.{suffix}", babble(2.0, 1), subtype=subtype)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(UserError) as error:
        decode(path)
    _one_line(error, path)


def test_wav_that_was_streamed_without_a_length_is_no_truncated_file(tmp_path: Path) -> None:
    path = _wav(tmp_path / "x.wav", babble(0.5, 1), subtype="PCM_16")
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(content)
    assert decode(path)[0].shape == (1, RATE // 2)


@pytest.mark.parametrize("content", [b"RIFF", b"RIFF\x00\x00\x00\x00WAVE", b"not audio at all" * 100, b"\x00" * 4096])
def test_what_is_no_audio_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        decode(path)
    assert "not readable as audio" in _one_line(error, path)


def test_wrong_rate_names_both_rates(tmp_path: Path) -> None:
    path = _wav(tmp_path / "x.wav", _stereo(), rate=44100)
    with pytest.raises(UserError) as error:
        read_recording(path, RATE, 2)
    assert "44100" in _one_line(error, path)
    assert "8000" in str(error.value)


def test_wrong_channel_count_names_both_counts(tmp_path: Path) -> None:
    path = _wav(tmp_path / "x.wav", _stereo())
    with pytest.raises(UserError) as error:
        read_recording(path, RATE, 6)
    assert "2 channels; wanted 6" in _one_line(error, path)


@pytest.mark.parametrize("channels", [1, 2, 15])
def test_written_audio_reads_back_bit_for_bit_even_beyond_full_scale(tmp_path: Path, channels: int) -> None:
    audio = 3 * np.stack([babble(0.1, channel) for channel in range(channels)])
    write_audio(tmp_path / "x.wav", audio, RATE)
    np.testing.assert_array_equal(decode(tmp_path / "x.wav")[0], audio)


def test_writing_twice_gives_the_same_bytes_and_no_other_file(tmp_path: Path) -> None:
    write_audio(tmp_path / "x.wav", babble(0.1, 1), RATE)
    first = (tmp_path / "x.wav").read_bytes()
    write_audio(tmp_path / "x.wav", babble(0.1, 1), RATE)
    assert (tmp_path / "x.wav").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["x.wav"]
