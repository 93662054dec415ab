"""Directions of the speakers in a recording.

In short frames of speech, one speaker is mostly louder than the others. So each frame votes for one direction, the one from which
SRP-PHAT gets the most power (DiBiase, 2000), and speakers are where the votes gather. The sum of SRP-PHAT over all frames, in
which speakers are not apart, finds fewer of them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwsearch.data.arrays import SPEED_OF_SOUND, MicrophoneArray
from hwsearch.process.interrupts import checkpoint

STEP_DEG = 2.0
"""Degrees from one direction looked at to the next."""

MOST_DIRECTIONS = 4
"""Most directions that are returned."""

LEAST_STRENGTH = 0.05
"""Directions weaker than this, relative to the strongest, are left out."""

LEAST_APART_DEG = 10.0
"""Directions nearer to a stronger one than this are left out."""

_BAND_HZ = (300.0, 3500.0)
"""Frequencies with most of the energy of speech, without those at which small arrays hear no direction."""

_FRAME_SECONDS = 0.064
_SPREAD_DEG = 4.0
"""Standard deviation of a vote, which makes a smooth curve of votes."""

_LOUD = 1e-4
"""Frames vote whose power is at least this share of that of the loudest frame until then."""

_FRAMES_AT_ONCE = 64
_SMALLEST_MAGNITUDE = 1e-12


@dataclass(frozen=True)
class Direction:
    """A direction from which a recording holds sound.

    Attributes:
        doa_deg: in degrees.
        strength: votes of frames relative to the strongest direction, 0 to 1.
    """

    doa_deg: float
    strength: float


def find_directions(blocks: Iterable[NDArray[np.float32]], array: MicrophoneArray, sample_rate: int) -> tuple[Direction, ...]:
    """Find the directions that speech comes from, the strongest first. Memory does not grow with the length of the recording.

    Args:
        blocks: consecutive parts of the recording, [mics, samples].
        array: the microphones, at least two that differ in the horizontal plane.
        sample_rate: in Hz.

    Returns:
        At most `MOST_DIRECTIONS`; none if no frame is whole or all are silent.
    """
    grid = directions_looked_at(array)
    votes, loudest = np.zeros(len(grid)), 0.0
    for spectra in _spectra(blocks, sample_rate):
        checkpoint()
        power = np.square(np.abs(spectra[:, 0])).sum(axis=0)
        loudest = max(loudest, float(power.max()))
        heard = steered_power(spectra[:, :, power > _LOUD * loudest], array, sample_rate)
        # A frame whose best direction stands out has one speaker, and counts more.
        sharpness = heard.max(axis=0) - heard.mean(axis=0)
        np.add.at(votes, heard.argmax(axis=0), np.square(sharpness))
    return _peaks(_smooth(votes, array), grid, array)


def directions_looked_at(array: MicrophoneArray) -> NDArray[np.float64]:
    """Return the directions of the grid in degrees: both ends of the range for a line, and one end of a whole turn."""
    end = array.max_doa_deg + (STEP_DEG / 2 if _has_ends(array) else 0.0)
    return np.arange(0.0, end, STEP_DEG)


def steered_power(spectra: NDArray[np.complex64], array: MicrophoneArray, sample_rate: int) -> NDArray[np.float32]:
    """Compute SRP-PHAT of every frame: the power of the sum of the microphones, whose spectra are whitened and steered.

    Args:
        spectra: [bins, mics, frames], of the frequencies of `band`.
        array: the microphones.
        sample_rate: in Hz.

    Returns:
        [directions, frames], the mean over the bins; 1 if all microphones agree with the direction, and 1 / mics for noise.
    """
    angle = np.deg2rad(directions_looked_at(array))
    advance = np.stack([np.cos(angle), np.sin(angle)], axis=1) @ array.positions.T / SPEED_OF_SOUND
    steering = np.exp(-2j * np.pi * band(sample_rate)[:, None, None] * advance).astype(np.complex64)
    phases = spectra / np.maximum(np.abs(spectra), _SMALLEST_MAGNITUDE)
    total = np.zeros((len(angle), spectra.shape[2]), np.float32)
    for steer, phase in zip(steering, phases, strict=True):
        summed = steer @ phase
        total += np.square(summed.real) + np.square(summed.imag)
    return total / np.float32(len(steering) * array.microphones**2)


def band(sample_rate: int) -> NDArray[np.float64]:
    """Return the frequencies of the bins that are looked at, in Hz."""
    every = np.fft.rfftfreq(_frame_samples(sample_rate), 1 / sample_rate)
    low, high = _BAND_HZ
    inside: NDArray[np.float64] = every[(every >= low) & (every <= high)].astype(np.float64)
    return inside


def _frame_samples(sample_rate: int) -> int:
    return round(_FRAME_SECONDS * sample_rate)


def _spectra(blocks: Iterable[NDArray[np.float32]], sample_rate: int) -> Iterator[NDArray[np.complex64]]:
    """Transform a recording into spectra [bins, mics, frames], some frames at a time. Half a frame is between two frames."""
    length = _frame_samples(sample_rate)
    hop, window = length // 2, np.hanning(length + 1)[:-1].astype(np.float32)
    first = int(np.searchsorted(np.fft.rfftfreq(length, 1 / sample_rate), _BAND_HZ[0]))
    bins = slice(first, first + len(band(sample_rate)))
    rest: NDArray[np.float32] | None = None
    for block in blocks:
        sound = block if rest is None else np.concatenate([rest, block], axis=1)
        count = max(0, (sound.shape[1] - length) // hop + 1)
        for start in range(0, count, _FRAMES_AT_ONCE):
            places = range(start, min(start + _FRAMES_AT_ONCE, count))
            frames = np.stack([sound[:, hop * place : hop * place + length] for place in places], axis=1)
            yield np.fft.rfft(frames * window, axis=2)[:, :, bins].transpose(2, 0, 1).astype(np.complex64)
        rest = sound[:, count * hop :].copy()


def _has_ends(array: MicrophoneArray) -> bool:
    return array.max_doa_deg < 360.0


def _smooth(votes: NDArray[np.float64], array: MicrophoneArray) -> NDArray[np.float64]:
    """Spread each vote over its neighbours, across the end of a whole turn."""
    reach = round(3 * _SPREAD_DEG / STEP_DEG)
    weights = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) * STEP_DEG / _SPREAD_DEG))
    padded = np.pad(votes, reach, mode="constant" if _has_ends(array) else "wrap")
    return np.convolve(padded, weights, mode="valid")


def _peaks(curve: NDArray[np.float64], grid: NDArray[np.float64], array: MicrophoneArray) -> tuple[Direction, ...]:
    """Return the maxima of a curve, the highest first."""
    around = np.pad(curve, 1, mode="constant" if _has_ends(array) else "wrap")
    is_peak = (curve > around[:-2]) & (curve >= around[2:])
    found: list[Direction] = []
    for place in np.argsort(-curve, kind="stable"):
        strength = float(curve[place] / curve.max()) if curve[place] > 0 else 0.0
        doa_deg = float(grid[place])
        near = any(_apart(doa_deg, other.doa_deg) < LEAST_APART_DEG for other in found)
        if is_peak[place] and strength >= LEAST_STRENGTH and not near:
            found.append(Direction(doa_deg, strength))
    return tuple(found[:MOST_DIRECTIONS])


def _apart(one_deg: float, other_deg: float) -> float:
    difference = abs(one_deg - other_deg) % 360.0
    return min(difference, 360.0 - difference)
