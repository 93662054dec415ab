"""Separation of recordings of any length, in chunks of sound with the context that each chunk needs."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwsearch.experiment import SpectralConfig
from hwsearch.network.context import Context
from hwsearch.process.interrupts import checkpoint
from hwsearch.separator.features import apply_mask
from hwsearch.separator.front_end import SMALLEST_LEVEL, SpectralFrontEnd
from hwsearch.separator.stft import istft, stft

Blocks = Callable[[], Iterator[NDArray[np.float32]]]
"""Reads a recording from its beginning in blocks [mics, samples]."""

Network = Callable[[Tensor], Tensor]
"""Maps the front end's raw input to the network's output, both [1, channels, frames]."""


def spectral_pieces(
    front_end: SpectralFrontEnd,
    network: Network,
    blocks: Blocks,
    samples: int,
    doa_deg: float,
    chunk_frames: int,
    reach: Context | None,
) -> Iterator[Tensor]:
    """The waveform of the target in pieces [samples].

    Args:
        front_end: the front end of the network.
        network: the exported file.
        blocks: the recording.
        samples: its length.
        doa_deg: direction of the target in degrees.
        chunk_frames: frames separated at a time.
        reach: context of the network; none to separate the recording as a whole.
    """
    config = front_end.config
    hop, margin, frames, doa = config.hop_length, _margin(config), front_end.frames(samples), torch.tensor([doa_deg])
    level = _spectral_level(Tape(block[:1] for block in blocks()), config, frames, chunk_frames)
    tape = Tape(blocks())
    for first, last in _chunks(frames, frames if reach is None else chunk_frames):
        # Masks of the frames that overlap the samples of the chunk.
        inner_first, inner_last = max(0, first - margin), min(frames, last + margin)
        outer_first, outer_last = _read_frames(reach, inner_first, inner_last, frames)
        spectrum = _spectrum(tape, outer_first, outer_last, config)
        raw = front_end.features(spectrum[None], doa, level)
        mask = network(raw)
        wanted = slice(inner_first - outer_first, inner_last - outer_first)
        start = front_end.start(raw)
        start = start[..., wanted] if start.ndim else start  # a scalar zero without a beam
        estimate = apply_mask(spectrum[:1, ..., wanted], mask[..., wanted], start)
        offset = inner_first * hop
        # Frames consist of whole hops; zeros follow the last sample.
        end = (frames - 1 if last == frames else last) * hop
        yield istft(estimate, config.n_fft, hop, end - offset)[0, first * hop - offset : samples - offset]


def waveform_pieces(
    network: Network, blocks: Blocks, samples: int, chunk_samples: int, reach: Context | None
) -> Iterator[Tensor]:
    """The waveforms of all speakers in pieces [speakers, samples].

    Args:
        network: the exported file.
        blocks: the recording; only its first channel is used.
        samples: its length.
        chunk_samples: samples separated at a time.
        reach: context of the network; none to separate the recording as a whole.
    """
    energy = sum(float(np.square(block[0], dtype=np.float64).sum()) for block in blocks())
    level = max((energy / samples) ** 0.5, SMALLEST_LEVEL)
    tape = Tape(block[:1] for block in blocks())
    for first, last in _chunks(samples, samples if reach is None else chunk_samples):
        outer_first, outer_last = _read_frames(reach, first, last, samples)
        output = network(tape.between(outer_first, outer_last)[None] / level)[0]
        yield output[:, first - outer_first : last - outer_first] * level


class Tape:
    """A recording that is read in order. Samples before the last start are dropped."""

    def __init__(self, blocks: Iterator[NDArray[np.float32]]) -> None:
        self._blocks = blocks
        self._kept: list[NDArray[np.float32]] = []
        self._start = self._end = 0

    def between(self, start: int, stop: int) -> Tensor:
        """The samples from `start` to `stop` or to the recording's end, [mics, samples]. `start` must not decrease."""
        while self._kept and self._start + self._kept[0].shape[1] <= start:
            self._start += self._kept.pop(0).shape[1]
        while self._end < stop and (block := next(self._blocks, None)) is not None:
            self._kept.append(block)
            self._end += block.shape[1]
        return torch.from_numpy(np.concatenate(self._kept, axis=1)[:, start - self._start : stop - self._start])


def _read_frames(reach: Context | None, first: int, last: int, frames: int) -> tuple[int, int]:
    """The range of existing frames that the outputs from `first` to `last` depend on."""
    if reach is None:
        return 0, frames
    start = max(0, first - reach.before)
    return start - start % reach.multiple, min(frames, last + reach.after)


def _chunks(frames: int, chunk_frames: int) -> Iterator[tuple[int, int]]:
    for first in range(0, frames, chunk_frames):
        checkpoint()
        yield first, min(first + chunk_frames, frames)


def _margin(config: SpectralConfig) -> int:
    """Number of frames on each side of a frame whose windows overlap its samples."""
    return -(-config.n_fft // (2 * config.hop_length))


def _spectral_level(tape: Tape, config: SpectralConfig, frames: int, chunk_frames: int) -> Tensor:
    """Root mean square of the whole spectrum of the reference microphone, as `features` takes it."""
    total = torch.zeros((), dtype=torch.float64)
    for first, last in _chunks(frames, chunk_frames):
        total += _spectrum(tape, first, last, config).abs().square().sum(dtype=torch.float64)
    return (total / (frames * (config.n_fft // 2 + 1))).sqrt().float().reshape(1, 1, 1)


def _spectrum(tape: Tape, first: int, last: int, config: SpectralConfig) -> Tensor:
    """The frames from `first` to `last` of the recording's `stft`, [mics, bins, frames]."""
    hop = config.hop_length
    start = max(0, first - _margin(config))
    piece = tape.between(start * hop, (last + _margin(config)) * hop)
    return stft(piece, config.n_fft, hop)[..., first - start : last - start]
