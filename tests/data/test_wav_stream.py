"""WAV data from a pipe are what libsndfile reads from the file, and what cannot be read is one line."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.data.audio import wav_header
from hwsearch.data.wav_stream import WavStream
from hwsearch.errors import UserError


def header_at_most(content: bytes, size: int) -> bytes:
    """The data with another stated length of the samples."""
    at = content.index(b"data") + 4
    return content[:at] + struct.pack("<I", size) + content[at + 4 :]


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT"])
@pytest.mark.parametrize("form", ["WAV", "WAVEX"])
@given(
    samples=st.integers(1, 900), channels=st.integers(1, 7), block=st.integers(1, 300), stated=st.sampled_from(["true", 0, -1])
)
@settings(max_examples=10, deadline=None)
def test_the_samples_are_those_of_the_file(
    tmp_path_factory: pytest.TempPathFactory, subtype: str, form: str, samples: int, channels: int, block: int, stated: str | int
) -> None:
    path = tmp_path_factory.mktemp("wav") / "x.wav"
    sound = np.random.default_rng(samples).uniform(-1, 1, (samples, channels)).astype(np.float32)
    sf.write(path, sound, 8000, subtype=subtype, format=form)
    wanted = sf.read(path, dtype="float32", always_2d=True)[0].T
    content = path.read_bytes()
    if isinstance(stated, int):
        content = header_at_most(content, stated % 2**32)
    stream = WavStream.open(io.BytesIO(content), "a pipe")
    assert (stream.sample_rate, stream.channels) == (8000, channels)
    blocks = list(stream.blocks(block))
    assert all(each.shape[1] == block for each in blocks[:-1])
    found = np.concatenate(blocks, axis=1)
    if isinstance(stated, int):
        found = found[:, :samples]  # what follows the samples counts as sound, too
    np.testing.assert_array_equal(found, wanted)


def test_our_own_streams_are_read(tmp_path: Path) -> None:
    sound = np.arange(10, dtype="<f4") / 10
    stream = WavStream.open(io.BytesIO(wav_header(8000, 2, None) + sound.tobytes()), "a pipe")
    np.testing.assert_array_equal(np.concatenate(list(stream.blocks(3)), axis=1), sound.reshape(-1, 2).T)


def test_parts_behind_the_samples_are_no_sound(tmp_path: Path) -> None:
    content = wav_header(8000, 1, 16) + np.ones(4, "<f4").tobytes() + b"LIST" + struct.pack("<I", 4) + b"INFO"
    (block,) = WavStream.open(io.BytesIO(content), "a pipe").blocks(100)
    assert block.shape == (1, 4)


WHOLE = wav_header(8000, 2, None)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", "no WAV data, it begins with b''"),
        (b"fLaC" + bytes(40), "no WAV data, it begins with b'fLaC'"),
        (WHOLE[:30], "the chunk b'fmt ' of 18 bytes is cut off or too long"),
        (WHOLE[:36], "ends before the first sample"),
        (WHOLE[:20] + struct.pack("<H", 7) + WHOLE[22:], "2 channels of 32 bits in WAV's format 7"),
        (WHOLE[:22] + struct.pack("<H", 0) + WHOLE[24:], "0 channels"),
        (WHOLE[:12] + b"junk" + struct.pack("<I", 2**30) + bytes(30), "the chunk b'junk' of 1073741824 bytes"),
        (WHOLE[:12] + b"data" + bytes(30), "0 channels of 0 bits"),
    ],
)
def test_what_is_no_sound_is_one_line(content: bytes, wanted: str) -> None:
    with pytest.raises(UserError, match=f"a pipe: .*(?:{wanted}).*wanted WAV") as caught:
        WavStream.open(io.BytesIO(content), "a pipe")
    assert "\n" not in str(caught.value)


def test_samples_that_are_no_numbers_are_refused() -> None:
    sound = np.array([0, 1, np.nan, 3], "<f4")
    stream = WavStream.open(io.BytesIO(WHOLE + sound.tobytes()), "a pipe")
    with pytest.raises(UserError, match="a pipe: holds NaN or infinite samples: sample 2 of channel 1"):
        list(stream.blocks(1))
