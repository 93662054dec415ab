"""Directions of sources whose positions are given beside those of the microphones."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwsearch.data.arrays import MicrophoneArray


@dataclass(frozen=True)
class Turned:
    """How an array lies among measured microphones.

    Attributes:
        centre: [2] metres, the mean position of the microphones.
        angle_deg: angle from the measured x axis to that of the array, counter-clockwise.
        misfit_m: largest distance of a measured microphone from where the array has it.
    """

    array: MicrophoneArray
    centre: NDArray[np.float64]
    angle_deg: float
    misfit_m: float

    def doa_deg(self, source: NDArray[np.float64]) -> float:
        """Direction of a source [2] in metres, as the array counts it.

        A linear array cannot tell its two sides, so a source behind it has the direction of its mirror image.
        """
        east, north = (source - self.centre).tolist()
        return wrapped(math.degrees(math.atan2(north, east)) - self.angle_deg, self.array)


def angle_between(first_deg: float, second_deg: float) -> float:
    """Angle between two directions in degrees, 0 to 180."""
    difference = abs(first_deg - second_deg) % 360.0
    return min(difference, 360.0 - difference)


def wrapped(doa_deg: float, array: MicrophoneArray) -> float:
    """A direction, at any number of turns and on any side, in the range of an array."""
    turned = doa_deg % 360.0
    return 360.0 - turned if turned > array.max_doa_deg else turned


def fit_array(array: MicrophoneArray, microphones: NDArray[np.float64]) -> Turned | None:
    """Turn an array onto measured microphones [mics, 2] so that the sum of squared distances is smallest.

    Returns:
        None if the microphones lie in one place, so that nothing says how the array is turned.
    """
    centre = microphones.mean(axis=0)
    wanted, found = array.positions - array.positions.mean(axis=0), microphones - centre
    if array.microphones == 1 or np.abs(found).max() < 1e-4:
        return None
    # With complex numbers for points, the best turn has the angle of the sum of their products.
    ours, theirs = wanted @ (1, 1j), found @ (1, 1j)
    angle = float(np.angle(np.sum(np.conj(ours) * theirs)))
    misfit = float(np.abs(theirs - ours * np.exp(1j * angle)).max())
    return Turned(array, centre, math.degrees(angle), misfit)
