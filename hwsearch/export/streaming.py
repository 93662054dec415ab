"""Recordings of any length through a network: chunks of sound with the context that each of them needs."""

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
"""Reads a recording from its beginning, [mics, a number of samples] at a time."""

Network = Callable[[Tensor], Tensor]
"""A front end's raw input to the network's output, [1, channels, frames] both."""


def spectral_pieces(
    front_end: SpectralFrontEnd,
    network: Network,
    blocks: Blocks,
    samples: int,
    doa_deg: float,
    chunk_frames: int,
    reach: Context | None,
) -> Iterator[Tensor]:
    """The target's waveform, [a number of samples] at a time.

    Args:
        front_end: whose spectra and features the network takes.
        network: the exported file.
        blocks: the recording.
        samples: its length.
        doa_deg: direction of the target.
        chunk_frames: frames separated at a time.
        reach: of the network; without it the recording is separated as a whole.
    """
    config = front_end.config
    hop, margin, frames, doa = config.hop_length, _margin(config), front_end.frames(samples), torch.tensor([doa_deg])
    level = _spectral_level(Tape(block[:1] for block in blocks()), config, frames, chunk_frames)
    tape = Tape(blocks())
    for first, last in _chunks(frames, frames if reach is None else chunk_frames):
        # Frames whose masks are wanted: those that overlap the chunk's samples.
        inner_first, inner_last = max(0, first - margin), min(frames, last + margin)
        outer_first, outer_last = _read_frames(reach, inner_first, inner_last, frames)
        spectrum = _spectrum(tape, outer_first, outer_last, config)
        raw = front_end.features(spectrum[None], doa, level)
        mask = network(raw)
        wanted = slice(inner_first - outer_first, inner_last - outer_first)
        start = front_end.start(raw)
        start = start[..., wanted] if start.ndim else start  # without a beam one zero stands for all
        estimate = apply_mask(spectrum[:1, ..., wanted], mask[..., wanted], start)
        offset = inner_first * hop
        # Whole hops, as the frames are made of; behind the last sample are zeros.
        end = (frames - 1 if last == frames else last) * hop
        yield istft(estimate, config.n_fft, hop, end - offset)[0, first * hop - offset : samples - offset]


def waveform_pieces(
    network: Network, blocks: Blocks, samples: int, chunk_samples: int, reach: Context | None
) -> Iterator[Tensor]:
    """The waveforms of all speakers, [speakers, a number of samples] at a time.

    Args:
        network: the exported file.
        blocks: the recording, of which the first channel is heard.
        samples: its length.
        chunk_samples: samples separated at a time.
        reach: of the network; without it the recording is separated as a whole.
    """
    energy = sum(float(np.square(block[0], dtype=np.float64).sum()) for block in blocks())
    level = max((energy / samples) ** 0.5, SMALLEST_LEVEL)
    tape = Tape(block[:1] for block in blocks())
    for first, last in _chunks(samples, samples if reach is None else chunk_samples):
        outer_first, outer_last = _read_frames(reach, first, last, samples)
        output = network(tape.between(outer_first, outer_last)[None] / level)[0]
        yield output[:, first - outer_first : last - outer_first] * level


class Tape:
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


def _margin(config: SpectralConfig) -> int:
    """Frames on either side of one whose windows overlap its own samples."""
    return -(-config.n_fft // (2 * config.hop_length))


def _spectral_level(tape: Tape, config: SpectralConfig, frames: int, chunk_frames: int) -> Tensor:
    """Root mean square of the reference microphone's spectrum, as `features` takes it of a whole."""
    total = torch.zeros((), dtype=torch.float64)
    for first, last in _chunks(frames, chunk_frames):
        total += _spectrum(tape, first, last, config).abs().square().sum(dtype=torch.float64)
    return (total / (frames * (config.n_fft // 2 + 1))).sqrt().float().reshape(1, 1, 1)


def _spectrum(tape: Tape, first: int, last: int, config: SpectralConfig) -> Tensor:
    """Frames `first` to `last` of the whole recording's `stft`, from the samples they reach: [mics, bins, frames]."""
    hop = config.hop_length
    start = max(0, first - _margin(config))
    piece = tape.between(start * hop, (last + _margin(config)) * hop)
    return stft(piece, config.n_fft, hop)[..., first - start : last - start]
