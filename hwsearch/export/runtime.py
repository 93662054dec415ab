"""Separate recordings of any length with an exported file."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_errors
from torch import Tensor

from hwsearch.cores import check_threads
from hwsearch.data.audio import LOUDEST
from hwsearch.errors import UserError
from hwsearch.experiment import SeparatorConfig
from hwsearch.export.description import check_seal, read_model
from hwsearch.export.network import INPUT, OUTPUT
from hwsearch.export.structure import check_structure
from hwsearch.files import MODEL_BYTES, read_content
from hwsearch.interrupts import checkpoint
from hwsearch.network.context import Context, context
from hwsearch.separator.features import apply_mask, feature_count, features, starting_mask
from hwsearch.separator.stft import frame_count, istft, stft

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
        check_seal(content, self.description, str(path))
        check_structure(model, self.description, str(path))
        self._session = _session(content, threads, path)
        config = self.description.separator
        bins = config.n_fft // 2 + 1
        channels = {
            INPUT: feature_count(self.description.microphones, bins, config.ipd, beam=config.beam),
            OUTPUT: 2 * bins,
        }
        tensors = [*self._session.get_inputs(), *self._session.get_outputs()]
        found = {tensor.name: (tensor.type, tensor.shape[:2], list(map(type, tensor.shape[2:]))) for tensor in tensors}
        # The number of frames has a name.
        if found != {name: ("tensor(float)", [1, count], [str]) for name, count in channels.items()}:
            raise UserError(f"{path}: its graph does not fit its description; export it again")

    def mask(self, raw_features: Tensor) -> Tensor:
        """Raw features [1, features, frames] to mask [1, 2 * bins, frames].

        Raises:
            UserError: ONNX Runtime cannot run the graph on them.
        """
        try:
            outputs: list[NDArray[np.float32]] = self._session.run([OUTPUT], {INPUT: raw_features.numpy()})
        except _REFUSALS as error:
            raise UserError(f"the model cannot be run ({_reason(error)}); export it again") from None
        return torch.from_numpy(outputs[0])

    def separate(self, mixture: NDArray[np.float32], doa_deg: float, chunk_frames: int = CHUNK_FRAMES) -> NDArray[np.float32]:
        """The target's waveform at microphone 0.

        Args:
            mixture: [mics, samples] at the description's sample rate.
            doa_deg: direction of the target.
            chunk_frames: frames separated at a time; see `separate_blocks`.

        Returns:
            [samples].

        Raises:
            UserError: another number of microphones, no samples, samples that are no sound, or a direction out of range.
        """
        array = self.description.microphones
        if mixture.ndim != 2 or mixture.shape[0] != array.microphones or mixture.shape[1] == 0:
            raise UserError(
                f"a recording of shape {mixture.shape}; wanted [{array.microphones}, samples] for the array '{array.name}'"
            )
        if mixture.dtype.kind not in "fiu":
            raise UserError(f"a recording of type {mixture.dtype}; wanted float32")
        if not (mixture.min() >= -LOUDEST and mixture.max() <= LOUDEST):
            raise UserError(f"the recording holds samples that are not finite, or beyond {LOUDEST:g}; full scale is 1")

        def blocks() -> Iterator[NDArray[np.float32]]:
            for start in range(0, mixture.shape[1], _BLOCK_SAMPLES):
                yield mixture[:, start : start + _BLOCK_SAMPLES].astype(np.float32)

        return np.concatenate(list(self.separate_blocks(blocks, mixture.shape[1], doa_deg, chunk_frames)))

    def separate_blocks(
        self,
        blocks: Callable[[], Iterator[NDArray[np.float32]]],
        samples: int,
        doa_deg: float,
        chunk_frames: int = CHUNK_FRAMES,
    ) -> Iterator[NDArray[np.float32]]:
        """The target's waveform at microphone 0, of a recording that need not be in memory as a whole.

        It is read twice: for its level, which is that of all of it, and to separate it. That is done in chunks, each with as many
        frames of context as the network and the transform reach, so that the result is that of the whole recording up to
        rounding.

        Args:
            blocks: reads the recording from its beginning, [mics, a number of samples] at a time, all of them finite and none
                beyond `LOUDEST`.
            samples: how many there are in all.
            doa_deg: direction of the target.
            chunk_frames: frames separated at a time, where the network does not look at all of them.

        Returns:
            [a number of samples] at a time, `samples` in all.

        Raises:
            UserError: the direction is out of range, or the result is not finite.
        """
        array = self.description.microphones
        if not 0.0 <= doa_deg <= array.max_doa_deg:
            raise UserError(f"direction {doa_deg} degrees; wanted 0 to {array.max_doa_deg:.0f} for '{array.name}'")
        if chunk_frames < 1:
            raise UserError(f"chunks of {chunk_frames} frames; wanted at least 1")
        level = self._level(_Tape(block[:1] for block in blocks()), samples, chunk_frames)
        return self._pieces(_Tape(blocks()), samples, torch.tensor([doa_deg]), level, chunk_frames)

    def _pieces(
        self, tape: "_Tape", samples: int, doa: Tensor, level: Tensor, chunk_frames: int
    ) -> Iterator[NDArray[np.float32]]:
        config = self.description.separator
        hop = config.hop_length
        frames = frame_count(samples, hop)
        margin = _margin(config)
        reach = context(self.description.network.graph)
        for first, last in _chunks(frames, frames if reach is None else chunk_frames):
            # Frames whose masks are wanted: those that overlap the chunk's samples.
            inner_first, inner_last = max(0, first - margin), min(frames, last + margin)
            outer_first, outer_last = _read_frames(reach, inner_first, inner_last, frames)
            spectrum = _frames(tape, outer_first, outer_last, config)
            raw = self._features(spectrum, doa, level)
            mask = self.mask(raw)
            wanted = slice(inner_first - outer_first, inner_last - outer_first)
            start = starting_mask(raw, spectrum.shape[-2], beam=config.beam)[..., wanted]
            estimate = apply_mask(spectrum[:1, ..., wanted], mask[..., wanted], start)
            offset = inner_first * hop
            # Whole hops, as the frames are made of; behind the last sample are zeros.
            end = (frames - 1 if last == frames else last) * hop
            piece = istft(estimate, config.n_fft, hop, end - offset)[0, first * hop - offset : samples - offset]
            if not piece.isfinite().all():
                raise UserError("the separated sound is not finite: the model does not fit this recording")
            yield piece.numpy()

    def _features(self, spectrum: Tensor, doa: Tensor, level: Tensor) -> Tensor:
        """Features of a chunk [mics, bins, frames], its log spectrum against the whole recording's level."""
        config = self.description.separator
        array, rate = self.description.microphones, self.description.sample_rate
        return features(spectrum[None], doa, array, rate, config.ipd, beam=config.beam, level=level)

    def _level(self, tape: "_Tape", samples: int, chunk_frames: int) -> Tensor:
        """Root mean square of the reference microphone's spectrum, as `features` takes it of a whole."""
        config = self.description.separator
        frames = frame_count(samples, config.hop_length)
        total = torch.zeros((), dtype=torch.float64)
        for first, last in _chunks(frames, chunk_frames):
            spectrum = _frames(tape, first, last, config)
            total += spectrum.abs().square().sum(dtype=torch.float64)
        return (total / (frames * (config.n_fft // 2 + 1))).sqrt().float().reshape(1, 1, 1)


class _Tape:
    """A recording that is read in order, of which only what may still be asked for is kept."""

    def __init__(self, blocks: Iterator[NDArray[np.float32]]) -> None:
        self._blocks = blocks
        self._kept: list[NDArray[np.float32]] = []
        self._start = self._end = 0

    def between(self, start: int, stop: int) -> Tensor:
        """Samples `start` to `stop`, or to the recording's end: [mics, samples]; `start` never goes back."""
        while self._kept and self._start + self._kept[0].shape[1] <= start:
            self._start += self._kept.pop(0).shape[1]
        while self._end < stop and (block := next(self._blocks, None)) is not None:
            self._kept.append(block)
            self._end += block.shape[1]
        return torch.from_numpy(np.concatenate(self._kept, axis=1)[:, start - self._start : stop - self._start])


def _read_frames(reach: Context | None, first: int, last: int, frames: int) -> tuple[int, int]:
    """The frames that the masks of others depend on, as far as there are any."""
    if reach is None:
        return 0, frames
    start = max(0, first - reach.before)
    return start - start % reach.multiple, min(frames, last + reach.after)


def _chunks(frames: int, chunk_frames: int) -> Iterator[tuple[int, int]]:
    for first in range(0, frames, chunk_frames):
        checkpoint()
        yield first, min(first + chunk_frames, frames)


def _margin(config: SeparatorConfig) -> int:
    """Frames on either side of one whose windows overlap its own samples."""
    return -(-config.n_fft // (2 * config.hop_length))


def _frames(tape: _Tape, first: int, last: int, config: SeparatorConfig) -> Tensor:
    """Frames `first` to `last` of the whole recording's `stft`, from the samples they reach: [mics, bins, frames]."""
    hop = config.hop_length
    start = max(0, first - _margin(config))
    piece = tape.between(start * hop, (last + _margin(config)) * hop)
    return stft(piece, config.n_fft, hop)[..., first - start : last - start]


def _session(content: bytes, threads: int, path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # an error is raised, and need not stand on stderr, too
    try:
        # From bytes: a graph that refers to files outside itself is refused.
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except _REFUSALS as error:
        raise UserError(f"{path}: ONNX Runtime refuses it ({_reason(error)}); export it again") from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
