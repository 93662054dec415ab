"""Reading and writing of sound files."""

import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from hw_models.reading import no_file
from hwsearch.data.truncation import refuse_truncated
from hwsearch.errors import UserError
from hwsearch.files.writing import atomic_write

SILENCE_PEAK = 1e-5
"""A recording is silent if all its samples are below this (-100 dB of full scale, a third of one 16-bit step)."""

LOUDEST = 2.0**31
"""Largest sample accepted. Full scale is 1; unscaled 32-bit integers are within this limit. The squares of the spectra of much
larger samples would overflow."""

RATES = (1000, 1_000_000)
"""Smallest and largest sample rate accepted, in Hz."""

_UNKNOWN = 2**62
"""libsndfile reports at least this number of samples for a file that does not state its length."""

_BLOCK_VALUES = 2**20
"""Number of samples, over all channels, that are read at a time."""

_NO_LENGTH = 2**32 - 1
"""Length in the header of a WAV stream, as other programs write it."""

_LARGEST_WAV = 2**32 - 64
"""Largest size of the samples in a WAV file, in bytes: the header counts them in 32 bits."""


@dataclass(frozen=True)
class Recording:
    """A sound file whose header has been read.

    Attributes:
        path: the file.
        sample_rate: in Hz.
        channels: number of channels.
        samples: number of samples in each channel.
        identity: identifies this version of the file.
    """

    path: Path
    sample_rate: int
    channels: int
    samples: int
    identity: tuple[int, ...]

    @property
    def source(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.samples / self.sample_rate

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Read all samples, in blocks of [channels, samples]; full scale is 1.

        Raises:
            UserError: the file has changed, is truncated or empty, or cannot be decoded, or a sample is not finite or larger
                than `LOUDEST`.
        """
        with _opened(self.path) as (stream, identity):
            if identity != self.identity:
                raise UserError(f"{self.path}: has changed since it was opened; wanted a finished recording")
            done = 0
            while len(block := _read(stream, self.path, max(1, _BLOCK_VALUES // self.channels))):
                check_samples(block, str(self.path), done)
                done += len(block)
                yield np.ascontiguousarray(block.T)
        if done == 0:
            raise UserError(f"{self.path}: the recording is empty (0 samples)")
        if done < self.samples:
            raise UserError(f"{self.path}: truncated: {done} of {self.samples} samples are there")

    def part(self, first: int, count: int) -> NDArray[np.float32]:
        """Read `count` samples from sample `first` on, as [channels, samples]; full scale is 1.

        Raises:
            UserError: as `blocks`, or the part is not within the recording.
        """
        with _opened(self.path) as (stream, identity):
            if identity != self.identity:
                raise UserError(f"{self.path}: has changed since it was opened; wanted a finished recording")
            if not 0 <= first <= first + count <= self.samples:
                raise UserError(f"{self.path}: {self.samples} samples; wanted those from {first} to {first + count}")
            stream.seek(first)
            block = _read(stream, self.path, count)
        if len(block) < count:
            raise UserError(f"{self.path}: truncated: {first + len(block)} of {self.samples} samples are there")
        check_samples(block, str(self.path), first)
        return np.ascontiguousarray(block.T)


def open_recording(path: Path) -> Recording:
    """Read the header of a sound file.

    Raises:
        UserError: the file is missing, empty, truncated or no audio, or its sample rate is not in `RATES`.
    """
    with _opened(path) as (stream, identity):
        recording = Recording(path, int(stream.samplerate), int(stream.channels), int(stream.frames), identity)
    if not RATES[0] <= recording.sample_rate <= RATES[1]:
        raise UserError(f"{path}: sample rate is {recording.sample_rate} Hz; wanted {RATES[0]} to {RATES[1]} Hz")
    if recording.samples == 0:
        raise UserError(f"{path}: the recording is empty (0 samples)")
    return recording


def decode(path: Path) -> tuple[NDArray[np.float32], int]:
    """Read a whole sound file.

    Returns:
        Samples [channels, samples] with full scale 1, and the sample rate in Hz.

    Raises:
        UserError: as `open_recording` and `Recording.blocks`, or the recording is silent.
    """
    recording = open_recording(path)
    samples = np.concatenate(list(recording.blocks()), axis=1)
    refuse_silent(path, float(np.abs(samples).max()))
    return samples, recording.sample_rate


def refuse_silent(path: Path, peak: float, where: str = "") -> None:
    """Raise `UserError` if the largest sample of a recording, or of the part of it that `where` names, is silence."""
    if peak < SILENCE_PEAK:
        raise UserError(f"{path}: silent{where}: no sample reaches {SILENCE_PEAK:g} of full scale")


def write_audio(path: Path, audio: NDArray[np.float32], sample_rate: int) -> None:
    """Write `audio`, [samples] or [channels, samples], as `write_blocks` does."""
    channels = 1 if audio.ndim == 1 else len(audio)
    write_blocks(path, [audio], sample_rate, channels, audio.shape[-1])


def write_blocks(
    path: Path, blocks: Iterable[NDArray[np.float32]], sample_rate: int, channels: int, samples: int | None = None
) -> None:
    """Write a 32-bit float WAV file block by block, atomically.

    Float samples never clip. Equal samples give equal files; with libsndfile the header would contain a time stamp.

    Args:
        path: the file.
        blocks: consecutive parts of the audio, [samples] or [channels, samples].
        sample_rate: in Hz.
        channels: number of channels.
        samples: total number of samples in each channel, if it is known.

    Raises:
        UserError: the file cannot be written, or would be too large for a WAV file.
    """
    frame = 4 * channels

    def check(samples: int) -> None:
        if frame * samples > _LARGEST_WAV:
            raise UserError(f"{path}: {samples} samples are more than a WAV file can hold; wanted a shorter recording")

    def write(temporary: Path) -> None:
        done = 0
        with temporary.open("wb") as stream:
            stream.write(wav_header(sample_rate, channels, 0))
            for block in blocks:
                done += block.shape[-1]
                check(done)
                stream.write(np.ascontiguousarray(block.T, dtype="<f4").data)
            stream.seek(0)
            stream.write(wav_header(sample_rate, channels, frame * done))

    check(samples or 0)

    atomic_write(path, write)


def wav_header(sample_rate: int, channels: int, size: int | None) -> bytes:
    """Return the header of a float32 WAV file with so many bytes of samples; None if nobody knows how many."""
    samples = 0 if size is None else size // (4 * channels)
    kind = struct.pack("<HHIIHHH", 3, channels, sample_rate, 4 * channels * sample_rate, 4 * channels, 32, 0)
    stated = _NO_LENGTH if size is None else size
    chunks = struct.pack("<4sI", b"fmt ", len(kind)) + kind + struct.pack("<4sII4sI", b"fact", 4, samples, b"data", stated)
    return struct.pack("<4sI4s", b"RIFF", min(4 + len(chunks) + stated, _NO_LENGTH), b"WAVE") + chunks


@contextmanager
def _opened(path: Path) -> Iterator[tuple[sf.SoundFile, tuple[int, ...]]]:
    """Open a sound file; give it with its identity."""
    with _file(path) as file:
        found = os.fstat(file.fileno())
        if found.st_size == 0:
            raise UserError(f"{path}: the file is empty (0 bytes); wanted a recording")
        refuse_truncated(file, path)
        file.seek(0)
        try:
            # The handle in place of the path: libsndfile cannot open every name, and would guess a format from some suffixes.
            stream = sf.SoundFile(file.fileno(), closefd=False)
        except sf.SoundFileError as error:
            raise _unreadable(path, error) from None
        with stream:
            if stream.frames >= _UNKNOWN:
                raise UserError(f"{path}: does not say how many samples it holds; wanted a file that was finished, not a stream")
            yield stream, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _file(path: Path) -> FileIO:
    reason = no_file(path)
    if reason is None:
        try:
            return path.open("rb", buffering=0)
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
    raise UserError(f"{path}: {reason}; wanted a recording")


def _read(stream: sf.SoundFile, path: Path, count: int) -> NDArray[np.float32]:
    try:
        block: NDArray[np.float32] = stream.read(count, dtype="float32", always_2d=True)
    except sf.SoundFileError as error:
        raise _unreadable(path, error) from None
    return block


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(getattr(error, "error_string", error)).split()).rstrip(".")
    return UserError(f"{path}: not readable as audio ({reason}); wanted WAV or FLAC")


def check_samples(block: NDArray[np.float32], source: str, before: int) -> None:
    """Raise `UserError` if samples are not finite or too large.

    Args:
        block: [samples, channels].
        source: what they come from.
        before: number of samples before the block.
    """
    wrong = ~(np.abs(block) <= LOUDEST)
    if wrong.any():
        sample, channel = (int(index) for index in np.argwhere(wrong)[0])
        where = f"sample {before + sample + 1} of channel {channel + 1}"
        value = float(block[sample, channel])
        if np.isfinite(value):
            raise UserError(f"{source}: {where} is {value:g}; wanted at most {LOUDEST:g} (full scale is 1)")
        raise UserError(f"{source}: holds NaN or infinite samples: {where} is {value:g}")
