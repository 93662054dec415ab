"""Separation of a recording while it goes on."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsearch.errors import UserError
from hwsearch.export.sound.end_to_end import DIRECTION, MIXTURE, STATE, State
from hwsearch.separator.form import SpectralForm

_MOST_FRAMES = 256
"""Largest number of frames in a call."""

Numbers = NDArray[Any]
"""float32, or uint8."""

Call = Callable[[Mapping[str, Numbers]], tuple[NDArray[np.float32], list[Numbers]]]
"""Runs a graph of `end_to_end` that streams; returns the target and the next states."""


class Stream:
    """One recording that is separated while it goes on.

    The result is that of the whole recording. A sample comes out once `latency` further samples are in.

    Attributes:
        latency: in samples.
        taken: samples so far.
        seconds: how long they took, on the clock of the processor.
    """

    def __init__(self, call: Call, states: Sequence[State], form: SpectralForm, doa_deg: float) -> None:
        config = form.config
        self._call = call
        self._form = form
        self._direction = np.array([doa_deg], np.float32)
        self._states: list[Numbers] = [np.full(state.shape, state.first) for state in states]
        self._hop, self._half = config.hop_length, config.n_fft // 2
        # The first frame is centred on the first sample.
        self._waiting = np.zeros((form.array.microphones, self._half), np.float32)
        self._started = False
        self.taken = self._made = 0
        self.seconds = 0.0
        self._over = False
        self.latency = config.n_fft

    def push(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take further samples [mics, samples]; return those of the target that are ready, [samples].

        Raises:
            UserError: the recording is over, another number of microphones, or a result that is not finite.
        """
        if self._over or block.ndim != 2 or len(block) != len(self._waiting):
            found = "the recording is over" if self._over else f"a block of shape {block.shape}"
            raise UserError(f"{found}; wanted [{len(self._waiting)}, samples] of a recording that goes on")
        self.taken += block.shape[1]
        self._waiting = np.concatenate([self._waiting, block.astype(np.float32)], axis=1)
        return self._finite(list(self._separated()))

    def finish(self) -> NDArray[np.float32]:
        """Return the samples of the target that are left, [samples]: the recording is over.

        Raises:
            UserError: a result that is not finite.
        """
        if self._over or not self.taken:
            return np.zeros(0, np.float32)
        self._over = True
        end = (self._form.frames(self.taken) - 1) * self._hop + 2 * self._half
        missing = end - (self._half + self.taken)
        self._waiting = np.pad(self._waiting, ((0, 0), (0, missing)))
        pieces = list(self._separated())
        # What is left lacks no frame.
        *_, sound, windows = self._states
        rest = (sound / windows).ravel().astype(np.float32)
        return self._finite([*pieces, *self._cut(rest)])

    def _finite(self, pieces: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        found = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
        if not np.isfinite(found).all():
            raise UserError("the separated sound is not finite: the model does not fit this recording")
        return found

    def _separated(self) -> Iterator[NDArray[np.float32]]:
        """Separate the whole hops that wait."""
        if not self._started:
            length = 2 * self._half - self._hop
            if self._waiting.shape[1] < length:
                return
            self._states[0], self._waiting = self._waiting[:, :length], self._waiting[:, length:]
            self._started = True
        while count := min(self._waiting.shape[1] // self._hop, _MOST_FRAMES) * self._hop:
            block, self._waiting = self._waiting[:, :count], self._waiting[:, count:]
            states = {f"{STATE}{number}": state for number, state in enumerate(self._states)}
            begun = time.process_time()
            target, self._states = self._call({MIXTURE: block, DIRECTION: self._direction, **states})
            self.seconds += time.process_time() - begun
            yield from self._cut(target[0])

    def _cut(self, target: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        """Cut off what lies before and behind the recording."""
        first, last = max(self._made, self._half), min(self._made + len(target), self._half + self.taken)
        if first < last:
            yield target[first - self._made : last - self._made]
        self._made += len(target)
