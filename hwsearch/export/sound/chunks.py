"""Separation of recordings of any length, in chunks of sound with the context that each chunk needs."""

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from hwsearch.experiment import SpectralConfig
from hwsearch.export.sound.end_to_end import DIRECTION, LEVEL, MIXTURE
from hwsearch.network.context import Context
from hwsearch.process.interrupts import checkpoint
from hwsearch.separator.form import SMALLEST_LEVEL, SpectralForm, hann

Floats = NDArray[np.float32]

Blocks = Callable[[], Iterator[Floats]]
"""Reads a recording from its beginning in blocks [mics, samples]."""

Run = Callable[[Mapping[str, Floats]], Floats]
"""Runs a graph of `end_to_end` that does not stream, from its inputs to the target."""


def spectral_pieces(
    form: SpectralForm,
    run: Run,
    blocks: Blocks,
    samples: int,
    doa_deg: float,
    chunk_frames: int,
    reach: Context | None,
) -> Iterator[Floats]:
    """Give the waveform of the target in pieces [samples].

    Args:
        form: of the network's front end.
        run: the graph.
        blocks: the recording.
        samples: its length.
        doa_deg: direction of the target in degrees.
        chunk_frames: frames separated at a time.
        reach: context of the network; none to separate the recording as a whole.
    """
    config = form.config
    hop, margin, frames = config.hop_length, config.n_fft // (2 * config.hop_length), form.frames(samples)
    levels = _levels(blocks, form, frames, chunk_frames)
    tape, direction = Tape(blocks()), np.array([doa_deg], np.float32)
    for first, last in _chunks(frames, frames if reach is None else chunk_frames):
        # The frames that overlap the samples of the chunk need their context.
        outer_first, outer_last = _read_frames(reach, max(0, first - margin), min(frames, last + margin), frames)
        start, stop = _samples_of(config, outer_first, outer_last)
        level = levels if len(levels) == 1 else levels[outer_first:outer_last]
        target = run({MIXTURE: tape.between(start, stop), DIRECTION: direction, LEVEL: level})
        yield target[0, first * hop - start : min(last * hop, samples) - start]


def waveform_pieces(run: Run, blocks: Blocks, samples: int, chunk_samples: int, reach: Context | None) -> Iterator[Floats]:
    """Give the waveforms of all speakers in pieces [speakers, samples].

    Args:
        run: the graph.
        blocks: the recording; only its first channel is used.
        samples: its length.
        chunk_samples: samples separated at a time.
        reach: context of the network; none to separate the recording as a whole.
    """
    energy = sum(float(np.square(block[0], dtype=np.float64).sum()) for block in blocks())
    level = np.array([max((energy / samples) ** 0.5, SMALLEST_LEVEL)], np.float32)
    tape = Tape(block[:1] for block in blocks())
    for first, last in _chunks(samples, samples if reach is None else chunk_samples):
        outer_first, outer_last = _read_frames(reach, first, last, samples)
        target = run({MIXTURE: tape.between(outer_first, outer_last), LEVEL: level})
        yield target[:, first - outer_first : last - outer_first]


class Tape:
    """A recording that is read in order. Samples before the last start are dropped."""

    def __init__(self, blocks: Iterator[Floats]) -> None:
        self._blocks = blocks
        self._kept: list[Floats] = []
        self._start = self._end = 0

    def between(self, start: int, stop: int) -> Floats:
        """Return the samples from `start` to `stop`, [mics, samples], with zeros where the recording has none.

        `start` must not decrease.
        """
        while self._kept and self._start + self._kept[0].shape[1] <= start:
            self._start += self._kept.pop(0).shape[1]
        while self._end < stop and (block := next(self._blocks, None)) is not None:
            self._kept.append(block)
            self._end += block.shape[1]
        first, last = max(start, self._start), min(stop, self._end)
        found = np.concatenate(self._kept, axis=1)[:, first - self._start : last - self._start]
        return np.pad(found, ((0, 0), (first - start, stop - last)))


def _read_frames(reach: Context | None, first: int, last: int, frames: int) -> tuple[int, int]:
    """Return the range of existing frames that the outputs from `first` to `last` depend on."""
    if reach is None:
        return 0, frames
    start = max(0, first - reach.before)
    return start - start % reach.multiple, min(frames, last + reach.after)


def _chunks(frames: int, chunk_frames: int) -> Iterator[tuple[int, int]]:
    for first in range(0, frames, chunk_frames):
        checkpoint()
        yield first, min(first + chunk_frames, frames)


def _samples_of(config: SpectralConfig, first: int, last: int) -> tuple[int, int]:
    """Return the range of samples that the frames from `first` to `last` consist of."""
    half = config.n_fft // 2
    return first * config.hop_length - half, (last - 1) * config.hop_length + half


def _levels(blocks: Blocks, form: SpectralForm, frames: int, chunk_frames: int) -> Floats:
    """Return the level of microphone 0 that `hwsearch.separator.features` takes: [1], or [frames] if it is followed."""
    tape, config, decay = Tape(block[:1] for block in blocks()), form.config, form.level_decay
    window = hann(config.n_fft)
    powers = []
    for first, last in _chunks(frames, chunk_frames):
        (sound,) = tape.between(*_samples_of(config, first, last))
        cut = np.lib.stride_tricks.sliding_window_view(sound, config.n_fft)[:: config.hop_length]
        powers.append(np.square(np.abs(np.fft.rfft(cut * window))).mean(axis=1))
    power = np.concatenate(powers)
    squared = power.mean(keepdims=True)
    if decay is not None:
        sums = [list(accumulate(each, lambda past, new: decay * past + new)) for each in (power.tolist(), [1.0] * frames)]
        squared = np.array(sums[0]) / sums[1]
    levels: Floats = np.sqrt(squared).astype(np.float32)
    return levels
