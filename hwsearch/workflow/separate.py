"""One speaker from a recording, by an exported file: what the command line does, step by step."""

import os
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwsearch.cores import check_threads
from hwsearch.data.audio import open_recording, write_blocks
from hwsearch.data.channels import inspect
from hwsearch.errors import UserError
from hwsearch.files import check_writable
from hwsearch.terminal import Advance, progress_bar, tell

LONG_SECONDS = 60
"""Recordings longer than this show how far their separation is."""


def separate_file(model: Path, path: Path, doa_deg: float | None, output: Path, threads: int) -> None:
    """Separate a recording into a WAV file, in memory that does not grow with the recording.

    A model that looks at the direction writes the speaker there; another writes every speaker into a channel of its own.

    Args:
        model: an exported ONNX file.
        path: the recording.
        doa_deg: direction of the wanted speaker, for a model that looks at it.
        output: the file to be, which must not be the recording.
        threads: of ONNX Runtime.

    Raises:
        UserError: one of them cannot be used.
    """
    check_threads(threads)
    if doa_deg is not None and not 0 <= doa_deg <= 360:
        raise UserError(f"direction {doa_deg} degrees; wanted 0 to 360")
    if output.suffix.lower() != ".wav" or os.path.realpath(output) == os.path.realpath(path):
        raise UserError(f"{output}: wanted another file than the recording, with a name that ends in .wav")
    recording = open_recording(path)
    check_writable(output)
    # The network's libraries take seconds to load: not before what can be refused at once.
    from hwsearch.export.runtime import OnnxSeparator

    separator = OnnxSeparator(model, threads)
    rate, front_end = separator.description.sample_rate, separator.front_end
    if doa_deg is not None and not front_end.directed:
        raise UserError(f"direction {doa_deg} degrees; '{model}' separates all speakers, whatever their direction: wanted none")
    found = inspect(recording, rate, front_end.microphones)
    for warning in found.warnings:
        tell(f"warning: {warning}")
    long = found.samples > LONG_SECONDS * rate
    with progress_bar("seconds separated") if long else nullcontext(_show_nothing) as advance:
        blocks = separator.separate_blocks(recording.blocks, found.samples, doa_deg)
        write_blocks(
            output, _counted(blocks, found.samples, rate, advance), rate, channels=front_end.speakers, samples=found.samples
        )


def _counted(blocks: Iterable[NDArray[np.float32]], samples: int, rate: int, advance: Advance) -> Iterator[NDArray[np.float32]]:
    done = 0
    for block in blocks:
        yield block
        done += block.shape[-1]
        advance(done // rate, samples // rate)


def _show_nothing(done: int, total: int) -> None:
    del done, total
