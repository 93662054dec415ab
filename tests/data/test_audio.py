import io
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import wavfile

from hwsearch.data.audio import LOUDEST, decode, open_recording, write_audio, write_blocks
from hwsearch.errors import UserError

from .conftest import RATE, babble


def _wav(path: Path, samples: np.ndarray, rate: int = RATE, subtype: str = "FLOAT") -> Path:
    sf.write(path, samples, rate, subtype=subtype)
    return path


FORMATS = [
    *(("WAV", subtype) for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW", "IMA_ADPCM")),
    *((kind, subtype) for kind in ("WAVEX", "RF64", "W64", "AIFF", "AU") for subtype in ("PCM_16", "FLOAT")),
    ("FLAC", "PCM_16"),
    ("FLAC", "PCM_24"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
]


def _encoded(samples: np.ndarray, kind: str, subtype: str) -> bytes:
    content = io.BytesIO()
    sf.write(content, samples, RATE, format=kind, subtype=subtype)
    return content.getvalue()


def _stereo() -> np.ndarray:
    return np.stack([babble(0.5, 1), babble(0.5, 2)], axis=1)


def _refusal(path: Path, read: Callable[[Path], object] = decode) -> str:
    with pytest.raises(UserError) as error:
        read(path)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_a_good_recording_is_read_channel_by_channel_unchanged(tmp_path: Path) -> None:
    stereo = _stereo()
    read, rate = decode(_wav(tmp_path / "x.wav", stereo))
    assert (read.dtype, rate) == (np.float32, RATE)
    np.testing.assert_array_equal(read, stereo.T)


def test_what_is_no_file_is_named_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.wav")
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    for path, reason in (
        (tmp_path / "x.wav", "no such file"),
        (tmp_path, "is a folder"),
        (tmp_path / "fifo.wav", "is a pipe"),
        (tmp_path / "loop.wav", "cannot be read (Too many levels of symbolic links)"),
        (tmp_path / "loop.wav" / "x.wav", "cannot be read (Too many levels of symbolic links)"),
        (Path("/dev/zero"), "is a device"),
        (tmp_path / "x\0y", "no name of a file"),
        (tmp_path / ("x" * 300), "cannot be read (File name too long)"),
    ):
        assert reason in _refusal(path, open_recording)


def test_a_name_that_is_no_text_is_opened_as_any_other(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"b\xff.wav")
    _wav(tmp_path / "x.wav", _stereo()).rename(path)
    np.testing.assert_array_equal(decode(path)[0], _stereo().T)


def test_files_of_no_bytes_and_of_no_samples_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.wav").touch()
    assert "empty (0 bytes)" in _refusal(tmp_path / "x.wav")
    assert "empty (0 samples)" in _refusal(_wav(tmp_path / "x.wav", np.zeros(0, np.float32)))


@pytest.mark.parametrize(("amplitude", "accepted"), [(0.0, False), (5e-6, False), (1e-3, True)])
def test_silence_is_refused_and_quiet_speech_is_not(tmp_path: Path, amplitude: float, accepted: bool) -> None:
    path = _wav(tmp_path / "x.wav", np.full(RATE, amplitude, np.float32))
    if accepted:
        assert decode(path)[0].shape == (1, RATE)
        return
    assert "silent" in _refusal(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_sample_that_is_no_number_is_refused(tmp_path: Path, bad: float) -> None:
    samples = babble(0.5, 1)
    samples[100] = bad
    path = _wav(tmp_path / "x.wav", samples)
    assert f"holds NaN or infinite samples: sample 101 of channel 1 is {bad}" in _refusal(path)


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_samples_too_large_for_any_arithmetic_are_refused_and_unscaled_integers_are_not(tmp_path: Path, subtype: str) -> None:
    stereo = _stereo()
    stereo[17, 1] = -LOUDEST
    assert decode(_wav(tmp_path / "x.wav", stereo, subtype=subtype))[0].min() == -LOUDEST
    stereo[18, 1] = 1e19
    path = _wav(tmp_path / "x.wav", stereo, subtype=subtype)
    assert "sample 19 of channel 2 is 1e+19; wanted at most 2.14748e+09 (full scale is 1)" in _refusal(path)


def test_what_does_not_fit_32_bits_is_infinite(tmp_path: Path) -> None:
    assert "sample 1 of channel 1 is inf" in _refusal(_wav(tmp_path / "x.wav", np.full(100, 1e300), subtype="DOUBLE"))


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
@pytest.mark.parametrize(("kind", "subtype"), FORMATS)
def test_truncated_file(tmp_path: Path, kind: str, subtype: str, kept: float) -> None:
    content = _encoded(babble(2.0, 1), kind, subtype)
    path = tmp_path / "x"
    path.write_bytes(content[: int(len(content) * kept)])
    _refusal(path)


@pytest.mark.parametrize(("kind", "subtype"), FORMATS)
def test_every_format_is_read_as_the_library_decodes_it_at_once(tmp_path: Path, kind: str, subtype: str) -> None:
    content = _encoded(babble(2.0, 1), kind, subtype)
    (tmp_path / "x").write_bytes(content)
    wanted, _ = sf.read(io.BytesIO(content), dtype="float32", always_2d=True)
    np.testing.assert_array_equal(decode(tmp_path / "x")[0], wanted.T)


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_blocks_are_all_samples_in_order(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwsearch.data.audio._BLOCK_VALUES", 2000)
    (tmp_path / "x").write_bytes(_encoded(_stereo(), kind, "PCM_16"))
    blocks = list(open_recording(tmp_path / "x").blocks())
    assert [block.shape for block in blocks] == [(2, 1000)] * 4
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), decode(tmp_path / "x")[0])


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    recording = open_recording(_wav(tmp_path / "x.wav", _stereo()))
    _wav(tmp_path / "x.wav", _stereo()[:-1])
    with pytest.raises(UserError, match="has changed since it was opened"):
        list(recording.blocks())


@pytest.mark.parametrize(("samples", "reason"), [(0, "does not say how many samples"), (2**36 - 1, "")])
def test_flac_that_does_not_know_its_length_or_lies_is_refused(tmp_path: Path, samples: int, reason: str) -> None:
    content = bytearray(_encoded(babble(0.5, 1), "FLAC", "PCM_16"))
    # Behind the marker and the header of STREAMINFO, 108 bits in: 36 bits, the number of samples.
    content[21] = content[21] & 0xF0 | samples >> 32
    content[22:26] = struct.pack(">I", samples & 0xFFFF_FFFF)
    (tmp_path / "x.flac").write_bytes(content)
    assert reason in _refusal(tmp_path / "x.flac")


@pytest.mark.parametrize("field", [slice(22, 24), slice(24, 28)])
@pytest.mark.parametrize("value", [0, 1, -1])
def test_headers_of_no_channels_and_impossible_rates_are_refused(tmp_path: Path, field: slice, value: int) -> None:
    content = bytearray(_encoded(babble(0.5, 1), "WAV", "PCM_16"))
    size = field.stop - field.start
    content[field] = value.to_bytes(size, "little", signed=True)
    path = tmp_path / "x.wav"
    path.write_bytes(content)
    if (size, value) == (2, 1):
        assert decode(path)[0].shape == (1, RATE // 2)
        return
    _refusal(path)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_no_header_crashes_the_reader(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(_encoded(babble(0.1, 1), *data.draw(st.sampled_from(FORMATS))))
    start = data.draw(st.integers(0, 120))
    content[start : start + 8] = data.draw(st.binary(min_size=1, max_size=8))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    try:
        samples, _ = decode(path)
    except UserError as error:
        message = str(error)
        assert message.startswith(f"{path}: ")
    else:
        assert np.isfinite(samples).all()


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
    assert "not readable as audio" in _refusal(path)


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


@pytest.mark.parametrize("channels", [1, 2, 15])
@pytest.mark.parametrize("samples", [0, 1, 1000])
def test_a_file_is_what_another_library_writes_of_all_at_once(tmp_path: Path, channels: int, samples: int) -> None:
    audio = 3 * np.stack([babble(0.125, channel)[:samples] for channel in range(channels)])
    wavfile.write(tmp_path / "wanted.wav", RATE, audio[0] if channels == 1 else np.ascontiguousarray(audio.T))
    wanted = (tmp_path / "wanted.wav").read_bytes()
    write_audio(tmp_path / "whole.wav", audio, RATE)
    pieces = [audio[0], audio[0][:0]] if channels == 1 else [audio[:, :7], audio[:, 7:]]
    write_blocks(tmp_path / "pieces.wav", pieces, RATE, channels, samples)
    assert (tmp_path / "whole.wav").read_bytes() == (tmp_path / "pieces.wav").read_bytes() == wanted


def test_what_no_wav_file_can_hold_is_refused_before_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="more than a WAV file can hold"):
        write_blocks(tmp_path / "x.wav", iter(()), RATE, 1, 2**30)
    assert not list(tmp_path.iterdir())
