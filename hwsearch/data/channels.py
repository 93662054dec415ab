"""Checks of a recording's channels before it is separated."""

from itertools import combinations
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hwsearch.data.audio import SILENCE_PEAK, Recording, refuse_silent
from hwsearch.errors import UserError


class SoundFormat(Protocol):
    """The sample rate and channels of sound from any source."""

    @property
    def source(self) -> str:
        """What it comes from."""

    @property
    def sample_rate(self) -> int:
        """In Hz."""

    @property
    def channels(self) -> int:
        """Number of channels."""


def check_format(sound: SoundFormat, sample_rate: int, microphones: int | None) -> None:
    """Raise `UserError` if sound has another sample rate, or another number of channels than `microphones`, if that is given."""
    if sound.sample_rate != sample_rate:
        raise UserError(f"{sound.source}: sample rate is {sound.sample_rate} Hz; wanted {sample_rate} Hz")
    if microphones is not None and sound.channels != microphones:
        raise UserError(f"{sound.source}: {sound.channels} channel{'s' * (sound.channels != 1)}; wanted {microphones}")


def inspect(recording: Recording, sample_rate: int, microphones: int | None) -> list[str]:
    """Read a whole recording and check its channels.

    With `microphones` None, any number of channels is accepted and only the first is checked. A wrong sample rate or number of
    channels is refused, not converted, because the separator relies on the phase differences between channels.

    Returns:
        Warnings, one sentence each.

    Raises:
        UserError: the sample rate or the number of channels is wrong, the file cannot be read, or the recording or microphone 1,
            from which the target is taken, is silent.
    """
    path = recording.path
    check_format(recording, sample_rate, microphones)
    microphones = microphones or 1
    lowest, highest = np.full(microphones, np.inf, np.float32), np.full(microphones, -np.inf, np.float32)
    alike = set(combinations(range(microphones), 2))
    for recorded in recording.blocks():
        block = recorded[:microphones]
        lowest, highest = np.minimum(lowest, block.min(axis=1)), np.maximum(highest, block.max(axis=1))
        alike = {(one, other) for one, other in alike if np.array_equal(block[one], block[other])}
    refuse_silent(path, float(max(-lowest.min(), highest.max())))
    dead = [int(channel) for channel in np.flatnonzero((highest - lowest) / 2 < SILENCE_PEAK)]
    if 0 in dead:
        raise UserError(f"{path}: channel 1 {_state(highest, 0)}; wanted sound there: the target is taken from microphone 1")
    warnings = [f"channel {channel + 1} {_state(highest, channel)}" for channel in dead]
    warnings += [f"channels {group} are the same" for group in _groups(microphones, alike, dead)]
    return [f"{path}: {warning}; the result may be wrong" for warning in warnings]


def _state(highest: NDArray[np.float32], channel: int) -> str:
    return "is silent" if abs(highest[channel]) < SILENCE_PEAK else f"never moves from {highest[channel]:.3g}"


def _groups(channels: int, alike: set[tuple[int, int]], dead: list[int]) -> list[str]:
    """Groups of channels with the same samples, each as a list in words, counted from 1."""
    groups = []
    seen = set(dead)
    for one in range(channels):
        group = [one, *(other for other in range(one + 1, channels) if (one, other) in alike)]
        if one not in seen and len(group) > 1:
            groups.append(", ".join(str(channel + 1) for channel in group[:-1]) + f" and {group[-1] + 1}")
        seen.update(group)
    return groups
