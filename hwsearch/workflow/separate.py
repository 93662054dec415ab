"""The separation of a recording by an exported file."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwsearch.data.audio import open_recording, write_blocks
from hwsearch.data.channels import inspect
from hwsearch.errors import UserError
from hwsearch.files.writing import check_writable
from hwsearch.process.cores import check_threads
from hwsearch.workflow.caller import SILENT, Listener, Progress

LONG_SECONDS = 60
"""Progress is shown for recordings longer than this."""


def separate_file(
    model: Path, path: Path, doa_deg: float | None, output: Path, threads: int = 1, listener: Listener = SILENT
) -> None:
    """Separate a recording into a WAV file. Memory does not grow with the length of the recording.

    The file has one channel, the speaker in the given direction, or one for each speaker if the model uses no direction.

    Args:
        model: an exported ONNX file.
        path: the recording.
        doa_deg: the direction of the wanted speaker, if the model uses one.
        output: the WAV file to write. It must not be the recording.
        threads: number of threads of ONNX Runtime.
        listener: hears of warnings, and of the progress of a long recording.

    Raises:
        UserError: a file, the direction or the number of threads cannot be used.
    """
    check_threads(threads)
    if doa_deg is not None and not 0 <= doa_deg <= 360:
        raise UserError(f"direction {doa_deg} degrees; wanted 0 to 360")
    if output.suffix.lower() != ".wav" or os.path.realpath(output) == os.path.realpath(path):
        raise UserError(f"{output}: wanted another file than the recording, with a name that ends in .wav")
    recording = open_recording(path)
    check_writable(output)
    # Loading ONNX Runtime takes seconds. Mistakes are refused before.
    from hwsearch.export.runtime import OnnxSeparator

    separator = OnnxSeparator(model, threads)
    rate, front_end = separator.description.sample_rate, separator.front_end
    if doa_deg is not None and not front_end.directed:
        raise UserError(f"direction {doa_deg} degrees; '{model}' separates all speakers, whatever their direction: wanted none")
    for warning in inspect(recording, rate, front_end.microphones):
        listener.said(f"warning: {warning}")
    samples = recording.samples
    long = samples > LONG_SECONDS * rate
    progress = (listener if long else SILENT).progress("seconds separated")
    blocks = _counted(separator.separate_blocks(recording.blocks, samples, doa_deg), samples, rate, progress)
    write_blocks(output, blocks, rate, channels=front_end.speakers, samples=samples)


def _counted(blocks: Iterable[NDArray[np.float32]], samples: int, rate: int, progress: Progress) -> Iterator[NDArray[np.float32]]:
    done = 0
    for block in blocks:
        yield block
        done += block.shape[-1]
        progress(done // rate, samples // rate)
