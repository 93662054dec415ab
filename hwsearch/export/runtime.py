"""Separate recordings of any length with an exported file."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_errors
from torch import Tensor

from hwsearch.data.audio import LOUDEST
from hwsearch.errors import UserError
from hwsearch.export.description import read_model
from hwsearch.export.network import INPUT, OUTPUT
from hwsearch.export.streaming import spectral_pieces, waveform_pieces
from hwsearch.export.structure import check_structure
from hwsearch.files.reading import MODEL_BYTES, read_content
from hwsearch.network.context import context
from hwsearch.process.cores import check_threads
from hwsearch.separator.front_end import SpectralFrontEnd

CHUNK_FRAMES = 1024
"""Frames separated at a time, which bounds the memory whatever the recording's length.

A network of which every frame depends on all gets the whole recording at once.
"""

_REFUSALS = (
    onnxruntime_errors.Fail,
    onnxruntime_errors.InvalidArgument,
    onnxruntime_errors.InvalidGraph,
    onnxruntime_errors.InvalidProtobuf,
    onnxruntime_errors.NotImplemented,
    onnxruntime_errors.RuntimeException,
)

_SAMPLES_PER_FRAME = 128
"""Samples of a waveform that count as a frame."""

_BLOCK_SAMPLES = 65_536
"""Samples of an array that are taken at a time."""


class OnnxSeparator:
    """A separator read from a file of `export_onnx`.

    Args:
        path: the file.
        threads: threads within one operation; 0 leaves the choice to ONNX Runtime.

    Raises:
        UserError: no such file, no ONNX, not one of ours, or one that does not fit its own description; or more threads than this
            machine can run.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        if threads != 0:
            check_threads(threads)
        content = read_content(path, "an exported separator", MODEL_BYTES)
        model, self.description = read_model(content, str(path))
        check_structure(model, self.description, str(path))
        try:
            # From bytes: a graph that refers to files outside itself is refused.
            self._session = open_session(content, threads)
        except _REFUSALS as error:
            raise UserError(f"{path}: ONNX Runtime refuses it ({_reason(error)}); export it again") from None
        self.front_end = self.description.front_end
        channels = {INPUT: self.front_end.inputs, OUTPUT: self.front_end.outputs}
        tensors = [*self._session.get_inputs(), *self._session.get_outputs()]
        found = {tensor.name: (tensor.type, tensor.shape[:2], list(map(type, tensor.shape[2:]))) for tensor in tensors}
        # The number of frames has a name.
        if found != {name: ("tensor(float)", [1, count], [str]) for name, count in channels.items()}:
            raise UserError(f"{path}: its graph does not fit its description; export it again")

    def output(self, raw: Tensor) -> Tensor:
        """The front end's raw input to the network's output, [1, channels, frames] both.

        Raises:
            UserError: ONNX Runtime cannot run the graph on it.
        """
        try:
            outputs: list[NDArray[np.float32]] = self._session.run([OUTPUT], {INPUT: raw.numpy()})
        except _REFUSALS as error:
            raise UserError(f"the model cannot be run ({_reason(error)}); export it again") from None
        return torch.from_numpy(outputs[0])

    def separate(
        self, mixture: NDArray[np.float32], doa_deg: float | None = None, chunk_frames: int = CHUNK_FRAMES
    ) -> NDArray[np.float32]:
        """The target's waveform at microphone 0, or those of all speakers.

        Args:
            mixture: [mics, samples] at the description's sample rate.
            doa_deg: direction of the target, where the front end looks at it.
            chunk_frames: frames separated at a time; see `separate_blocks`.

        Returns:
            [samples], or [speakers, samples].

        Raises:
            UserError: another number of microphones, no samples, samples that are no sound, or a direction out of range.
        """
        wanted = self.front_end.microphones
        if mixture.ndim != 2 or mixture.shape[0] != (wanted or max(mixture.shape[0], 1)) or mixture.shape[1] == 0:
            array = self.description.microphones
            raise UserError(f"a recording of shape {mixture.shape}; wanted [{wanted or 1}, samples] for the array '{array.name}'")
        if mixture.dtype.kind not in "fiu":
            raise UserError(f"a recording of type {mixture.dtype}; wanted float32")
        if not (mixture.min() >= -LOUDEST and mixture.max() <= LOUDEST):
            raise UserError(f"the recording holds samples that are not finite, or beyond {LOUDEST:g}; full scale is 1")

        def blocks() -> Iterator[NDArray[np.float32]]:
            for start in range(0, mixture.shape[1], _BLOCK_SAMPLES):
                yield mixture[:, start : start + _BLOCK_SAMPLES].astype(np.float32)

        return np.concatenate(list(self.separate_blocks(blocks, mixture.shape[1], doa_deg, chunk_frames)), axis=-1)

    def separate_blocks(
        self,
        blocks: Callable[[], Iterator[NDArray[np.float32]]],
        samples: int,
        doa_deg: float | None = None,
        chunk_frames: int = CHUNK_FRAMES,
    ) -> Iterator[NDArray[np.float32]]:
        """The target's waveform at microphone 0, or those of all speakers, of a recording that need not be in memory as a whole.

        It is read twice: for its level, which is that of all of it, and to separate it. That is done in chunks, each with as many
        frames of context as the network and the front end reach, so that the result is that of the whole recording up to
        rounding.

        Args:
            blocks: reads the recording from its beginning, [mics, a number of samples] at a time, all of them finite and none
                beyond `LOUDEST`.
            samples: how many there are in all.
            doa_deg: direction of the target, where the front end looks at it.
            chunk_frames: frames of a spectrum separated at a time, or as much sound, where the network does not look at all
                of it.

        Returns:
            [a number of samples], or [speakers, a number of samples], at a time, `samples` in all.

        Raises:
            UserError: no direction or one out of range, or the result is not finite.
        """
        if chunk_frames < 1:
            raise UserError(f"chunks of {chunk_frames} frames; wanted at least 1")
        reach = context(self.description.network.graph)
        match self.front_end:
            case SpectralFrontEnd():
                made = spectral_pieces(
                    self.front_end, self.output, blocks, samples, self._direction(doa_deg), chunk_frames, reach
                )
            case _:
                made = waveform_pieces(self.output, blocks, samples, chunk_frames * _SAMPLES_PER_FRAME, reach)
        return _finite(made)

    def _direction(self, doa_deg: float | None) -> float:
        array = self.description.microphones
        if doa_deg is None:
            raise UserError(f"no direction; this model wants that of the target, 0 to {array.max_doa_deg:.0f} degrees")
        if not 0.0 <= doa_deg <= array.max_doa_deg:
            raise UserError(f"direction {doa_deg} degrees; wanted 0 to {array.max_doa_deg:.0f} for '{array.name}'")
        return doa_deg


def _finite(pieces: Iterator[Tensor]) -> Iterator[NDArray[np.float32]]:
    for piece in pieces:
        if not piece.isfinite().all():
            raise UserError("the separated sound is not finite: the model does not fit this recording")
        yield piece.numpy()


def open_session(content: bytes, threads: int = 1, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    """A session of ONNX Runtime on the processor that is silent about errors, as it raises them.

    Args:
        content: the bytes of a model.
        threads: threads within one operation; 0 leaves the choice to ONNX Runtime.
        optimized: where to write the graph that the session runs.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
