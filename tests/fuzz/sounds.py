"""Sound files of every kind that recordings come in, and strategies that damage their headers."""

import io
import struct
from typing import Any, Final

import numpy as np
import soundfile as sf
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.fuzz.edits import Draw, raw_bytes
from tests.fuzz.things import Thing

KINDS: Final = (
    *(("WAV", "PCM_16"), ("WAV", "PCM_U8"), ("WAV", "PCM_24"), ("WAV", "PCM_32"), ("WAV", "FLOAT"), ("WAV", "DOUBLE")),
    *(("WAV", "ULAW"), ("WAV", "ALAW"), ("WAVEX", "PCM_16"), ("WAVEX", "FLOAT"), ("W64", "PCM_16"), ("RF64", "FLOAT")),
    *(("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("AIFF", "PCM_16"), ("AU", "FLOAT"), ("CAF", "FLOAT")),
)
"""What libsndfile reads."""

COUNTS: Final = (0, 1, 2, 3, 4, 7, 8, 127, 255, 256, 8000, 44100, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
SAMPLES: Final = (0.0, 1.0, -1.0, 2.0, 1e-30, 1e-40, 1e10, 1e19, 3e38, -3e38, float("inf"), float("-inf"), float("nan"))

HEADER_BYTES: Final = 48


def sound_file(sound: NDArray[np.float32], rate: int, kind: tuple[str, str]) -> bytes:
    """Samples [channels, samples] as a file of a kind."""
    stream = io.BytesIO()
    with np.errstate(all="ignore"):
        sf.write(stream, sound.T, rate, format=kind[0], subtype=kind[1])
    return stream.getvalue()


def recordings(content: bytes) -> st.SearchStrategy[Thing]:
    """A recording as a file of some kind, as it is or damaged: its header, its bytes, its samples, its shape."""
    frames, rate = sf.read(io.BytesIO(content), dtype="float32", always_2d=True)
    sound = frames.T
    return st.one_of(
        _headers(sound_file(sound, rate, ("WAV", "PCM_16"))),
        _headers(sound_file(sound, rate, ("FLAC", "PCM_16"))),
        st.sampled_from(KINDS).flatmap(lambda kind: raw_bytes(sound_file(sound, rate, kind))),
        _samples(sound, rate),
        _shapes(sound, rate),
    )


@st.composite
def _headers(draw: Draw, content: bytes) -> Thing:
    """Some numbers of a header at other values."""
    story: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        offset, layout = 2 * draw(st.integers(2, HEADER_BYTES // 2)), draw(st.sampled_from(("<H", "<I", ">I")))
        most = 256 ** struct.calcsize(layout) - 1
        value = draw(st.sampled_from([count for count in COUNTS if count <= most]) | st.integers(0, most))
        content = content[:offset] + struct.pack(layout, value) + content[offset + struct.calcsize(layout) :]
        story.append(f"{value} at {offset}")
    return Thing(content, tuple(story))


@st.composite
def _samples(draw: Draw, sound: NDArray[np.float32], rate: int) -> Thing:
    """Single samples or whole channels at extreme values."""
    changed = sound.copy()
    story: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        channel = draw(st.integers(0, len(sound) - 1))
        piece: Any = draw(st.sampled_from((slice(None), slice(0, 1), slice(-1, None), slice(100, 200))))
        value = draw(st.sampled_from(SAMPLES))
        changed[channel, piece] = value
        story.append(f"channel {channel + 1}, {piece}: {value}")
    kind = draw(st.sampled_from((("WAV", "FLOAT"), ("WAV", "DOUBLE"), ("WAV", "PCM_16"), ("CAF", "FLOAT"))))
    return Thing(sound_file(changed, rate, kind), (*story, *kind))


@st.composite
def _shapes(draw: Draw, sound: NDArray[np.float32], rate: int) -> Thing:
    """Another number of channels or samples, another rate, another kind."""
    kind = draw(st.sampled_from([kind for kind in KINDS if kind[0] != "OGG"]))
    channels = draw(st.sampled_from((1, 2, max(1, len(sound) - 1), len(sound), 8)))
    samples = draw(st.sampled_from((0, 1, 2, 100, 127, 128, 129, 1000)))
    rate = draw(st.sampled_from((rate, 1, 7999, 8000, 16000, 44100, 96000, 192000, 655350)))
    chosen = np.resize(sound, (channels, sound.shape[1]))[:, :samples]
    return Thing(sound_file(chosen, rate, kind), (f"{channels} channels, {samples} samples, {rate} Hz", *kind))
