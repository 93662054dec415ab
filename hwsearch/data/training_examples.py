"""Training mixtures of recorded ones, and of both kinds."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hwsearch.data.audio import open_recording
from hwsearch.data.example import Example
from hwsearch.data.mixing import to_length
from hwsearch.data.recorded import RecordedMixture, resampled, sum_of_first
from hwsearch.data.seeding import generator

_DRAWS = 16
"""Largest number of segments drawn until the target speaks in one."""

_SPEAKS = 1e-3
"""Smallest power of the target, as a share of the mixture's at the same microphone, at which it speaks: -30 dB."""


class Examples(Protocol):
    """An endless set of mixtures of one length, each a pure function of its epoch and its index."""

    def example(self, epoch: int, index: int) -> Example:
        """Example `index` of `epoch`."""


@dataclass(frozen=True)
class RecordedExamples:
    """Segments of recorded mixtures, each a pure function of `name`, its epoch and its index.

    The segments are read from the recordings when they are wanted. Mixtures are drawn uniformly, and of each a place where the
    target speaks.

    Attributes:
        mixtures: the recorded mixtures of a split.
        sample_rate: in Hz.
        segment_samples: length of every segment.
        name: seed of the random generators.
    """

    mixtures: tuple[RecordedMixture, ...]
    sample_rate: int
    segment_samples: int
    name: tuple[str | int, ...]

    def example(self, epoch: int, index: int) -> Example:
        """Example `index` of `epoch`."""
        rng = generator(*self.name, "recorded", epoch, index)
        for _ in range(_DRAWS):
            found = self._segment(rng, self.mixtures[int(rng.integers(len(self.mixtures)))])
            powers = [float(np.mean(np.square(sound, dtype=np.float64))) for sound in (found.target, found.mixture[0])]
            if powers[0] > _SPEAKS * powers[1]:
                break
        return found

    def _segment(self, rng: np.random.Generator, mixture: RecordedMixture) -> Example:
        recording = open_recording(mixture.mixture)
        count = min(recording.samples, round(self.segment_samples * recording.sample_rate / self.sample_rate))
        first = int(rng.integers(recording.samples - count + 1))
        sound = recording.part(first, count)
        target = sum_of_first(open_recording(path).part(first, count) for path in mixture.targets)[None]
        parts = [resampled(part, recording.sample_rate, self.sample_rate) for part in (sound, target)]
        whole, wanted = (to_length(part, self.segment_samples) for part in parts)
        return Example(whole, wanted[0], 0.0 if mixture.doa_deg is None else mixture.doa_deg)


@dataclass(frozen=True)
class MixedExamples:
    """Examples of two sets.

    Attributes:
        made: the set that the other examples come from.
        recorded: the set of a share of the examples.
        share: share of the examples.
        name: seed of the random generators.
    """

    made: Examples
    recorded: Examples
    share: float
    name: tuple[str | int, ...]

    def example(self, epoch: int, index: int) -> Example:
        """Example `index` of `epoch`."""
        draw = generator(*self.name, "kind", epoch, index).uniform()
        return (self.recorded if draw < self.share else self.made).example(epoch, index)
