"""Separation of recordings of any length with an exported file."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_errors

from hwsearch.data.audio import LOUDEST
from hwsearch.errors import UserError
from hwsearch.export.description import ExportDescription, read_model
from hwsearch.export.saturation import kernels_saturate
from hwsearch.export.sound.chunks import Blocks, Floats, spectral_pieces, waveform_pieces
from hwsearch.export.sound.end_to_end import MIXTURE, State, end_to_end, network_inside
from hwsearch.export.sound.stream import Numbers, Stream
from hwsearch.export.structure import ForeignGraphError, check_structure
from hwsearch.files.reading import MODEL_BYTES, read_content
from hwsearch.network.context import Context, context
from hwsearch.process.cores import check_threads
from hwsearch.process.interrupts import checkpoint
from hwsearch.separator.form import SpectralForm

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
    """A separator read from a file of `hwsearch export --format onnx`: that of the network alone, or that from sound to sound.

    Sound goes through numpy and ONNX Runtime alone.

    Attributes:
        description: what the file says about itself.
        form: of the network's front end.
        streams: whether it can separate a recording while it goes on.

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
        whole, self._states = _checked(model, self.description, str(path))
        if self.description.processors == "vnni" and kernels_saturate():
            raise UserError(f"{path}: exported for processors with VNNI, and this one has none; export it with --for any")
        try:
            # From bytes: a graph that refers to files outside itself is refused.
            self._session = open_session(whole.SerializeToString(), threads)
        except _REFUSALS as error:
            raise UserError(f"{path}: ONNX Runtime refuses it ({_reason(error)}); export it again") from None
        self.form = self.description.form
        self.streams = bool(self._states)

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
        wanted = self.form.microphones
        if mixture.ndim != 2 or mixture.shape[0] != (wanted or max(mixture.shape[0], 1)) or mixture.shape[1] == 0:
            array = self.description.microphones
            raise UserError(f"a recording of shape {mixture.shape}; wanted [{wanted or 1}, samples] for the array {array}")
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
        blocks: Blocks,
        samples: int,
        doa_deg: float | None = None,
        chunk_frames: int = CHUNK_FRAMES,
    ) -> Iterator[NDArray[np.float32]]:
        """Separate a recording that need not fit into memory.

        The recording is read twice: for the level of the whole, and for its separation. Each chunk comes with the context that
        the network and the front end reach, so the result is that of the whole recording up to rounding. A file that streams
        reads it once, and block by block.

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
        reach, direction = context(self.description.network.graph), None
        if isinstance(self.form, SpectralForm):
            direction = self._direction(doa_deg)
        return _finite(self._pieces(blocks, samples, direction, chunk_frames, reach))

    def stream(self, doa_deg: float | None = None) -> Stream:
        """Begin a recording that is separated while it goes on.

        Raises:
            UserError: a missing direction, one out of range, or a network that looks ahead.
        """
        if not self.streams or not isinstance(self.form, SpectralForm):
            raise UserError("this model cannot stream; wanted one with causal = true and level_seconds in [separator]")
        return Stream(self._call, self._states, self.form, self._direction(doa_deg))

    def _pieces(
        self, blocks: Blocks, samples: int, direction: float | None, chunk_frames: int, reach: Context | None
    ) -> Iterator[Floats]:
        if self.streams:
            stream = self.stream(direction)
            for block in blocks():
                checkpoint()
                yield stream.push(block)
            yield stream.finish()
        elif isinstance(self.form, SpectralForm) and direction is not None:
            yield from spectral_pieces(self.form, self._run, blocks, samples, direction, chunk_frames, reach)
        else:
            yield from waveform_pieces(self._run, blocks, samples, chunk_frames * _SAMPLES_PER_FRAME, reach)

    def _run(self, inputs: Mapping[str, Floats]) -> Floats:
        target, _ = self._call(inputs)
        return target

    def _call(self, inputs: Mapping[str, Numbers]) -> tuple[Floats, list[Numbers]]:
        """Run the graph; return the target and the next states."""
        try:
            target, *states = self._session.run(None, inputs)
        except _REFUSALS as error:
            raise UserError(f"the model cannot be run ({_reason(error)}); export it again") from None
        return target, states

    def _direction(self, doa_deg: float | None) -> float:
        array = self.description.microphones
        if doa_deg is None:
            raise UserError(f"no direction; this model wants that of the target, 0 to {array.max_doa_deg:.0f} degrees")
        if not 0.0 <= doa_deg <= array.max_doa_deg:
            raise UserError(f"direction {doa_deg} degrees; wanted 0 to {array.max_doa_deg:.0f} for the array {array}")
        return doa_deg


def _finite(pieces: Iterator[Floats]) -> Iterator[Floats]:
    for piece in pieces:
        if not np.isfinite(piece).all():
            raise UserError("the separated sound is not finite: the model does not fit this recording")
        yield piece


def _checked(model: ModelProto, description: ExportDescription, source: str) -> tuple[ModelProto, Sequence[State]]:
    """Return the graph from sound to sound of a file that holds it or the network alone, made anew, and its states.

    Raises:
        UserError: another graph; names `source`.
    """
    from_sound = any(tensor.name == MIXTURE for tensor in model.graph.input)
    try:
        inside = network_inside(model, description) if from_sound else model
        check_structure(inside, description, source)
        whole, states = end_to_end(inside, description)
    except ForeignGraphError as found:
        raise UserError(f"{source}: its graph does not fit its description ({found}); export it again") from None
    if from_sound:
        whole.metadata_props.extend(model.metadata_props)
        if whole.SerializeToString(deterministic=True) != model.SerializeToString(deterministic=True):
            raise UserError(f"{source}: its graph does not fit its description (its front end); export it again")
    return whole, states


def open_session(
    content: bytes, threads: int = 1, optimized: Path | None = None, *, fused: bool = True
) -> onnxruntime.InferenceSession:
    """Open a session of ONNX Runtime on the processor. It raises errors without printing them.

    Args:
        content: the bytes of a model.
        threads: threads within one operation; 0 leaves the choice to ONNX Runtime.
        optimized: where to write the optimized graph that the session runs.
        fused: whether layers between quantizers become integer kernels, and two quantizers in a row become one.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if not fused:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    left = None if fused else ["DoubleQDQPairsRemover"]
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"], disabled_optimizers=left)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
