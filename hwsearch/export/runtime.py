"""Separate recordings of any length with an exported file."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_errors
from torch import Tensor
from torch.nn import functional

from hwsearch.errors import UserError
from hwsearch.experiment import SeparatorConfig
from hwsearch.export.description import check_seal, read_model
from hwsearch.export.network import INPUT, OUTPUT
from hwsearch.files import MODEL_BYTES, read_content
from hwsearch.separator.features import apply_mask, feature_count, features, starting_mask
from hwsearch.separator.stft import frame_count, istft, stft

CHUNK_FRAMES = 1024
"""Frames separated at a time, which bounds the memory whatever the recording's length."""


class OnnxSeparator:
    """A separator read from a file of `export_onnx`.

    Args:
        path: the file.
        threads: threads within one operation; 0 leaves the choice to ONNX Runtime.

    Raises:
        UserError: no such file, no ONNX, not one of ours, or one that does not fit its own description.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        content = read_content(path, "an exported separator", MODEL_BYTES)
        _, self.description = read_model(content, str(path))
        check_seal(content, self.description, str(path))
        self._session = _session(content, threads, path)
        config = self.description.separator
        bins = config.n_fft // 2 + 1
        wanted = {
            INPUT: feature_count(self.description.microphones, bins, config.ipd, beam=config.beam),
            OUTPUT: 2 * bins,
        }
        tensors = [*self._session.get_inputs(), *self._session.get_outputs()]
        if {tensor.name: tensor.shape[1] for tensor in tensors} != wanted:
            raise UserError(f"{path}: its graph does not fit its description; export it again")

    def mask(self, raw_features: Tensor) -> Tensor:
        """Raw features [1, features, frames] to mask [1, 2 * bins, frames]."""
        outputs: list[NDArray[np.float32]] = self._session.run([OUTPUT], {INPUT: raw_features.numpy()})
        return torch.from_numpy(outputs[0])

    def separate(self, mixture: NDArray[np.float32], doa_deg: float, chunk_frames: int = CHUNK_FRAMES) -> NDArray[np.float32]:
        """The target's waveform at microphone 0.

        A recording longer than `chunk_frames` is separated in chunks, each with as many frames of context as
        the network and the transform reach, so that the result is that of the whole recording up to rounding.

        Args:
            mixture: [mics, samples] at the description's sample rate.
            doa_deg: direction of the target.
            chunk_frames: frames separated at a time.

        Returns:
            [samples].

        Raises:
            UserError: another number of microphones, no samples, numbers that are not finite, or a direction
                out of range.
        """
        array = self.description.microphones
        if mixture.ndim != 2 or mixture.shape[0] != array.microphones or mixture.shape[1] == 0:
            raise UserError(
                f"a recording of shape {mixture.shape}; wanted [{array.microphones}, samples] for the array '{array.name}'"
            )
        if not np.isfinite(mixture).all():
            raise UserError("the recording holds numbers that are not finite")
        if not 0.0 <= doa_deg <= array.max_doa_deg:
            raise UserError(f"direction {doa_deg} degrees; wanted 0 to {array.max_doa_deg:.0f} for '{array.name}'")
        waveform = torch.from_numpy(np.ascontiguousarray(mixture, dtype=np.float32))
        config = self.description.separator
        hop = config.hop_length
        samples = waveform.shape[1]
        frames = frame_count(samples, hop)
        # Whole hops, so that pieces of the recording have the frames of the whole.
        waveform = functional.pad(waveform, (0, -samples % hop))
        level = self._level(waveform, frames, chunk_frames)
        doa = torch.tensor([doa_deg])
        padded = waveform.shape[1]
        separated = torch.zeros(padded)
        margin = -(-config.n_fft // (2 * hop))
        before, after = context_frames(config)
        for first, last in _chunks(frames, chunk_frames):
            # Frames whose masks are wanted: those that overlap the chunk's samples.
            inner_first, inner_last = max(0, first - margin), min(frames, last + margin)
            outer_first, outer_last = max(0, inner_first - before), min(frames, inner_last + after)
            spectrum = _frames(waveform, outer_first, outer_last, config)
            raw = self._features(spectrum, doa, level)
            mask = self.mask(raw)
            wanted = slice(inner_first - outer_first, inner_last - outer_first)
            start = starting_mask(raw, spectrum.shape[-2], beam=config.beam)[..., wanted]
            estimate = apply_mask(spectrum[:1, ..., wanted], mask[..., wanted], start)
            begin, end = first * hop, padded if last == frames else last * hop
            offset = inner_first * hop
            part = istft(estimate, config.n_fft, hop, end - offset)[0]
            separated[begin:end] = part[begin - offset :]
        return separated[:samples].numpy()

    def _features(self, spectrum: Tensor, doa: Tensor, level: Tensor) -> Tensor:
        """Features of a chunk [mics, bins, frames], its log spectrum against the whole recording's level."""
        config = self.description.separator
        array, rate = self.description.microphones, self.description.sample_rate
        return features(spectrum[None], doa, array, rate, config.ipd, beam=config.beam, level=level)

    def _level(self, waveform: Tensor, frames: int, chunk_frames: int) -> Tensor:
        """Root mean square of the reference microphone's spectrum, as `features` takes it of a whole."""
        config = self.description.separator
        total = torch.zeros((), dtype=torch.float64)
        for first, last in _chunks(frames, chunk_frames):
            spectrum = _frames(waveform[:1], first, last, config)
            total += spectrum.abs().square().sum(dtype=torch.float64)
        return (total / (frames * (config.n_fft // 2 + 1))).sqrt().float().reshape(1, 1, 1)


def context_frames(config: SeparatorConfig) -> tuple[int, int]:
    """Frames before and after one that its mask depends on."""
    reach = config.R * (config.P - 1) * (2**config.X - 1)
    return (reach, 0) if config.causal else (reach // 2, reach // 2)


def _chunks(frames: int, chunk_frames: int) -> Iterator[tuple[int, int]]:
    for first in range(0, frames, chunk_frames):
        yield first, min(first + chunk_frames, frames)


def _frames(waveform: Tensor, first: int, last: int, config: SeparatorConfig) -> Tensor:
    """Frames `first` to `last` of `stft(waveform)`, from the samples they reach: [mics, bins, frames]."""
    hop = config.hop_length
    margin = -(-config.n_fft // (2 * hop))
    start = max(0, first - margin)
    piece = waveform[:, start * hop : (last + margin) * hop]
    return stft(piece, config.n_fft, hop)[..., first - start : last - start]


def _session(content: bytes, threads: int, path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        # From bytes: a graph that refers to files outside itself is refused.
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except (
        onnxruntime_errors.Fail,
        onnxruntime_errors.InvalidArgument,
        onnxruntime_errors.InvalidGraph,
        onnxruntime_errors.InvalidProtobuf,
        onnxruntime_errors.NotImplemented,
        onnxruntime_errors.RuntimeException,
    ) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: ONNX Runtime refuses it ({reason}); export it again") from None
