"""Sound files: decoded with every fault named, written whole or not at all."""

import struct
from pathlib import Path

import numpy as np
import soundfile as sf
from numpy.typing import NDArray
from scipy.io import wavfile

from hwsearch.errors import UserError
from hwsearch.files import atomic_write

SILENCE_PEAK = 1e-5
"""A recording whose samples all stay below this (-100 dB of full scale) counts as silent: a third of one
16-bit step."""

_STREAMED = 0xFFFF_FFFF
"""The size that programs write into a WAV header when they do not know it yet."""


def decode(path: Path) -> tuple[NDArray[np.float32], int]:
    """Read a whole sound file.

    Returns:
        samples [channels, samples], full scale is 1, and the sample rate in Hz.

    Raises:
        UserError: the file is missing, empty, truncated, no audio, holds NaN or infinity, or is silent.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; wanted a recording")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty (0 bytes); wanted a recording")
    _refuse_truncated_wav(path)
    try:
        with sf.SoundFile(path) as stream:
            rate, frames = int(stream.samplerate), stream.frames
            samples = stream.read(dtype="float32", always_2d=True)
    except (sf.SoundFileError, OSError) as error:
        reason = " ".join(str(getattr(error, "error_string", error)).split()).rstrip(".")
        raise UserError(f"{path}: not readable as audio ({reason}); wanted WAV or FLAC") from None
    if len(samples) == 0:
        raise UserError(f"{path}: the recording is empty (0 samples)")
    if len(samples) < frames:
        raise UserError(f"{path}: truncated: {len(samples)} of {frames} samples are there")
    if not np.isfinite(samples).all():
        raise UserError(f"{path}: holds NaN or infinite samples")
    if np.abs(samples).max() < SILENCE_PEAK:
        raise UserError(f"{path}: silent: no sample reaches {SILENCE_PEAK:g} of full scale")
    return np.ascontiguousarray(samples.T), rate


def read_recording(path: Path, sample_rate: int, channels: int) -> NDArray[np.float32]:
    """Read a multi-channel recording that must fit the separator.

    Nothing is resampled or mixed down: phase differences between channels are what the separator listens to.

    Returns:
        samples [channels, samples].

    Raises:
        UserError: as `decode`, or the sample rate or the number of channels is not the one wanted.
    """
    samples, rate = decode(path)
    if rate != sample_rate:
        raise UserError(f"{path}: sample rate is {rate} Hz; wanted {sample_rate} Hz")
    if len(samples) != channels:
        raise UserError(f"{path}: {_channels(len(samples))}; wanted {channels}")
    return samples


def write_audio(path: Path, audio: NDArray[np.float32], sample_rate: int) -> None:
    """Write `audio` [samples] or [channels, samples] as a 32-bit float WAV file, atomically.

    Float samples never clip, and scipy's writer, unlike libsndfile's, puts no time stamp into the header:
    equal samples give equal bytes.
    """
    frames = np.ascontiguousarray(np.asarray(audio, dtype=np.float32).T)
    atomic_write(path, lambda temporary: wavfile.write(temporary, sample_rate, frames))


def _channels(count: int) -> str:
    return f"{count} channel{'s' * (count != 1)}"


def _refuse_truncated_wav(path: Path) -> None:
    """Walk the chunks of a WAV file: libsndfile quietly shortens one whose end is missing."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        if stream.read(4) != b"RIFF":
            return
        stream.seek(12)
        while len(header := stream.read(8)) == 8:
            name, length = struct.unpack("<4sI", header)
            if name == b"data":
                there = size - stream.tell()
                if length not in (0, _STREAMED) and there < length:
                    raise UserError(f"{path}: truncated: {there} of {length} bytes of samples are there")
                return
            stream.seek(length + length % 2, 1)
