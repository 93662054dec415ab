"""The separation of a recording by an exported file."""

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hwsearch.data.audio import Recording, open_recording, wav_header, write_blocks
from hwsearch.data.channels import check_format, inspect
from hwsearch.data.directions import Direction, find_directions
from hwsearch.data.wav_stream import Pipe, WavStream
from hwsearch.errors import UserError
from hwsearch.files.writing import check_writable
from hwsearch.process.cores import check_threads
from hwsearch.process.interrupts import checkpoint, interrupt_taken
from hwsearch.workflow.caller import SILENT, Listener, Progress

if TYPE_CHECKING:
    from hwsearch.export.runtime import OnnxSeparator
    from hwsearch.export.sound.stream import Stream

PIPE = Path("-")
"""Stands for the standard input or output."""

MOST_SAMPLES = 2**30 - 2**20
"""A stream ends after so many samples; a WAV file holds little more."""

LONG_SECONDS = 60
"""Progress is shown for recordings longer than this."""


@dataclass(frozen=True)
class Separated:
    """A file with separated sound.

    Attributes:
        path: the file.
        direction: what was found in the recording; None if a direction was given, or the model uses none.
    """

    path: Path
    direction: Direction | None = None


def separate_file(
    model: Path, path: Path, doa_deg: float | None, output: Path, threads: int = 1, listener: Listener = SILENT
) -> tuple[Separated, ...]:
    """Separate a recording into a WAV file. Memory does not grow with the length of the recording.

    The file has one channel, the speaker in the given direction, or one for each speaker if the model uses no direction.

    If the model uses a direction and none is given, the directions of the recording are looked for, and each gets a file of its
    own: `target.wav` becomes `target-1-at-60.wav` for the strongest direction at 60 degrees.

    Args:
        model: an exported ONNX file.
        path: the recording.
        doa_deg: the direction of the wanted speaker, if the model uses one.
        output: the WAV file to write, or the pattern of its name. It must not be the recording.
        threads: number of threads of ONNX Runtime.
        listener: hears of warnings, and of the progress of a long recording.

    Raises:
        UserError: a file, the direction or the number of threads cannot be used.
    """
    _check(path, doa_deg, output, threads)
    recording = open_recording(path)
    separator = _opened(model, doa_deg, threads)
    rate, form = separator.description.sample_rate, separator.form
    for warning in inspect(recording, rate, form.microphones):
        listener.said(f"warning: {warning}")
    if doa_deg is None and form.directed:
        found = _found(separator, recording, output)
        for each in found:
            _separate(separator, recording, None if each.direction is None else each.direction.doa_deg, each.path, listener)
        return found
    _separate(separator, recording, doa_deg, output, listener)
    return (Separated(output),)


def _found(separator: "OnnxSeparator", recording: Recording, output: Path) -> tuple[Separated, ...]:
    """Find the directions of a recording, and name a file for each."""
    array = separator.description.microphones
    directions = find_directions(recording.blocks(), array, separator.description.sample_rate)
    if not directions:
        raise UserError(
            f"{recording.path}: too short to find directions in it; wanted --doa, 0 to {array.max_doa_deg:.0f} degrees"
        )
    found = []
    for number, direction in enumerate(directions, start=1):
        path = output.with_name(f"{output.stem}-{number}-at-{direction.doa_deg:.0f}{output.suffix}")
        _check_output(recording.path, path)
        found.append(Separated(path, direction))
    return tuple(found)


def _separate(separator: "OnnxSeparator", recording: Recording, doa_deg: float | None, output: Path, listener: Listener) -> None:
    rate, samples = separator.description.sample_rate, recording.samples
    long = samples > LONG_SECONDS * rate
    progress = (listener if long else SILENT).progress("seconds separated")
    blocks = _counted(separator.separate_blocks(recording.blocks, samples, doa_deg), samples, rate, progress)
    write_blocks(output, blocks, rate, channels=separator.form.speakers, samples=samples)


def separate_stream(
    model: Path, path: Path, doa_deg: float | None, output: Path, threads: int = 1, listener: Listener = SILENT
) -> None:
    """Separate sound while it comes, and write the target's sound as soon as it is known.

    Args:
        model: an exported ONNX file whose network can stream.
        path: the recording; `PIPE` for WAV data from the standard input.
        doa_deg: the direction of the wanted speaker.
        output: the WAV file to write; `PIPE` for WAV data to the standard output.
        threads: number of threads of ONNX Runtime.
        listener: hears how fast it was.

    An interrupt ends sound from a pipe, not the separation: what was heard until then is written.

    Raises:
        UserError: a file, the direction or the number of threads cannot be used, or the model cannot stream.
    """
    _check(path, doa_deg, output, threads)
    recording = None if path == PIPE else open_recording(path)
    if output == PIPE and (sys.stdout is None or sys.stdout.isatty()):
        raise UserError("the standard output is no pipe; wanted one for the WAV data, or --output FILE")
    separator = _opened(model, doa_deg, threads)
    stream, rate = separator.stream(doa_deg), separator.description.sample_rate
    if recording is None:
        arriving = _arriving(separator)
        _write(_separated(_until_interrupted(arriving.blocks(separator.form.frame_samples)), stream), output, rate)
        interrupt_taken()
        if arriving.missing:
            listener.said(f"warning: the standard input ended {arriving.missing} bytes before the end that it had stated")
    else:
        for warning in inspect(recording, rate, separator.form.microphones):
            listener.said(f"warning: {warning}")
        _write(_separated(_interruptible(recording.blocks()), stream), output, rate)
    spent, late = f"{stream.seconds:.1f} s", f"{1000 * stream.latency / rate:.0f} ms"
    listener.said(f"separated {stream.taken / rate:.1f} s of sound in {spent}, {late} behind the input")


def _arriving(separator: "OnnxSeparator") -> WavStream:
    """Open the WAV data of the standard input."""
    try:
        descriptor = sys.stdin.fileno()
    except (AttributeError, ValueError, OSError):
        raise UserError("there is no standard input; wanted WAV data in a pipe, or --input FILE") from None
    found = WavStream.open(Pipe(descriptor), "the standard input")
    check_format(found, separator.description.sample_rate, separator.form.microphones)
    return found


def _separated(blocks: Iterator[NDArray[np.float32]], stream: "Stream") -> Iterator[NDArray[np.float32]]:
    """Give the target's sound in pieces [samples]."""
    for block in blocks:
        yield stream.push(block)
        if stream.taken > MOST_SAMPLES:
            break
    if not stream.taken:
        raise UserError("the standard input: the recording is empty (0 samples)")
    yield stream.finish()


def _interruptible(blocks: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    for block in blocks:
        checkpoint()
        yield block


def _until_interrupted(blocks: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """Give blocks until they end, or a signal comes: that is how a recording from a microphone ends."""
    try:
        yield from blocks
    except KeyboardInterrupt:
        return


def _write(pieces: Iterator[NDArray[np.float32]], output: Path, rate: int) -> None:
    """Write pieces [samples] to a WAV file, or to the standard output as WAV data of unknown length, each at once."""
    if output != PIPE:
        write_blocks(output, pieces, rate, channels=1)
        return
    sys.stdout.buffer.write(wav_header(rate, 1, None))
    for piece in pieces:
        sys.stdout.buffer.write(piece.astype("<f4").tobytes())
        sys.stdout.buffer.flush()


def _check(path: Path, doa_deg: float | None, output: Path, threads: int) -> None:
    """Refuse what needs no model to be refused."""
    check_threads(threads)
    if doa_deg is not None and not 0 <= doa_deg <= 360:
        raise UserError(f"direction {doa_deg} degrees; wanted 0 to 360")
    if output != PIPE:
        _check_output(path, output)


def _check_output(path: Path, output: Path) -> None:
    if output.suffix.lower() != ".wav" or os.path.realpath(output) == os.path.realpath(path):
        raise UserError(f"{output}: wanted another file than the recording, with a name that ends in .wav")
    check_writable(output)


def _opened(model: Path, doa_deg: float | None, threads: int) -> "OnnxSeparator":
    """Open a model that takes a direction if one was given."""
    # Loading ONNX Runtime takes seconds. Mistakes are refused before.
    from hwsearch.export.runtime import OnnxSeparator

    separator = OnnxSeparator(model, threads)
    if doa_deg is not None and not separator.form.directed:
        raise UserError(f"direction {doa_deg} degrees; '{model}' separates all speakers, whatever their direction: wanted none")
    return separator


def _counted(blocks: Iterable[NDArray[np.float32]], samples: int, rate: int, progress: Progress) -> Iterator[NDArray[np.float32]]:
    done = 0
    for block in blocks:
        yield block
        done += block.shape[-1]
        progress(done // rate, samples // rate)
