"""Separation of recordings of any length with an exported file."""

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
from hwsearch.export.saturation import kernels_saturate
from hwsearch.export.streaming import spectral_pieces, waveform_pieces
from hwsearch.export.structure import check_structure
from hwsearch.files.reading import MODEL_BYTES, read_content
from hwsearch.network.context import context
from hwsearch.process.cores import check_threads
from hwsearch.separator.front_end import SpectralFrontEnd

CHUNK_FRAMES = 1024
"""Frames separated at a time, which bounds the memory for a recording of any length.

A network whose outputs depend on all frames gets the whole recording at once.
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
"""Number of samples that count as a frame of a network on waveforms."""

_BLOCK_SAMPLES = 65_536
"""Length of the blocks that an array is read in."""


class OnnxSeparator:
    """A separator read from a file of `export_onnx`.

    Args:
        path: the file.
        threads: threads within one operation; 0 leaves the choice to ONNX Runtime.

    Raises:
        UserError: there is no such file, it is no export, its graph does not fit its description, or this machine cannot run so
            many threads, or has no VNNI although the file was exported for processors that have.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        if threads != 0:
            check_threads(threads)
        content = read_content(path, "an exported separator", MODEL_BYTES)
        model, self.description = read_model(content, str(path))
        check_structure(model, self.description, str(path))
        if self.description.processors == "vnni" and kernels_saturate():
            raise UserError(f"{path}: exported for processors with VNNI, and this one has none; export it with --for any")
        try:
            # From bytes: a graph that refers to files outside itself is refused.
            self._session = open_session(content, threads)
        except _REFUSALS as error:
            raise UserError(f"{path}: ONNX Runtime refuses it ({_reason(error)}); export it again") from None
        self.front_end = self.description.front_end
        channels = {INPUT: self.front_end.inputs, OUTPUT: self.front_end.outputs}
        tensors = [*self._session.get_inputs(), *self._session.get_outputs()]
        found = {tensor.name: (tensor.type, tensor.shape[:2], list(map(type, tensor.shape[2:]))) for tensor in tensors}
        # The number of frames is a name, not a number.
        if found != {name: ("tensor(float)", [1, count], [str]) for name, count in channels.items()}:
            raise UserError(f"{path}: its graph does not fit its description; export it again")

    def output(self, raw: Tensor) -> Tensor:
        """Run the network on the front end's raw input, [1, channels, frames] to the same.

        Raises:
            UserError: ONNX Runtime cannot run the graph on this input.
        """
        try:
            outputs: list[NDArray[np.float32]] = self._session.run([OUTPUT], {INPUT: raw.numpy()})
        except _REFUSALS as error:
            raise UserError(f"the model cannot be run ({_reason(error)}); export it again") from None
        return torch.from_numpy(outputs[0])

    def separate(
        self, mixture: NDArray[np.float32], doa_deg: float | None = None, chunk_frames: int = CHUNK_FRAMES
    ) -> NDArray[np.float32]:
        """Separate a recording in memory.

        Args:
            mixture: [mics, samples] at the description's sample rate.
            doa_deg: direction of the target in degrees, if the front end looks at it.
            chunk_frames: frames separated at a time; see `separate_blocks`.

        Returns:
            The waveform of the target at microphone 0, [samples], or those of all speakers, [speakers, samples].

        Raises:
            UserError: a wrong number of microphones, no samples, samples that are not finite numbers of a plausible size, or
                anything that `separate_blocks` refuses.
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
        """Separate a recording that need not fit into memory.

        The recording is read twice: for the level of the whole, and for its separation. Each chunk comes with the context that
        the network and the front end reach, so the result is that of the whole recording up to rounding.

        Args:
            blocks: reads the recording from its beginning in blocks [mics, samples]. Samples are finite and within `LOUDEST`.
            samples: length of the recording.
            doa_deg: direction of the target in degrees, if the front end looks at it.
            chunk_frames: frames separated at a time, of a spectrum or of 128 samples each.

        Returns:
            Pieces [samples] of the target's waveform at microphone 0, or [speakers, samples] of all speakers' waveforms.

        Raises:
            UserError: a missing direction, one out of range, or a result that is not finite.
        """
        if chunk_frames < 1:
            raise UserError(f"chunks of {chunk_frames} frames; wanted at least 1")
        reach = context(self.description.network.graph)
        if isinstance(self.front_end, SpectralFrontEnd):
            direction = self._direction(doa_deg)
            return _finite(spectral_pieces(self.front_end, self.output, blocks, samples, direction, chunk_frames, reach))
        return _finite(waveform_pieces(self.output, blocks, samples, chunk_frames * _SAMPLES_PER_FRAME, reach))

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


def open_session(
    content: bytes, threads: int = 1, optimized: Path | None = None, *, fused: bool = True
) -> onnxruntime.InferenceSession:
    """Open a session of ONNX Runtime on the processor. It raises errors without printing them.

    Args:
        content: the bytes of a model.
        threads: threads within one operation; 0 leaves the choice to ONNX Runtime.
        optimized: where to write the optimized graph that the session runs.
        fused: whether layers between quantizers become integer kernels.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if not fused:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
